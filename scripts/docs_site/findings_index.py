"""The index of ``findings/``, from the comment at the head of each script."""

from __future__ import annotations

from pathlib import Path

__all__ = ["findings_index", "headers"]

_INTRODUCTION = """\
# Findings

Behaviour of the libraries and formats underneath that is easily met, and not expected. The folder
`findings/` of the repository has a script for each: it installs pinned public packages in a
temporary folder, shows the behaviour on valid input without trt_native, and fails once the
behaviour changes. Run one with `bash findings/NAME.sh`.
"""


def headers(folder: Path) -> dict[str, str]:
    """The text of the comment that each script of a folder begins with, by the script's name."""
    return {script.name: _header(script) for script in sorted(folder.glob("*.sh"))}


def _header(script: Path) -> str:
    lines = []
    for line in script.read_text().splitlines()[1:]:
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def findings_index(folder: Path) -> str:
    """The page: a line for each finding, by library and version."""
    libraries: dict[str, list[str]] = {}
    for name, text in headers(folder).items():
        library, _, rest = text.partition(": ")
        libraries.setdefault(library.partition(" (")[0], []).append(
            f"- {_capitalized(rest)}  \n  `{name}`"
        )
    sections = (f"## {library}\n\n" + "\n".join(lines) for library, lines in libraries.items())
    return "\n".join((_INTRODUCTION, "\n\n".join(sections), ""))


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
