"""What MkDocs calls while it builds the site: pages that are made, not written."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from api_reference import PUBLIC_MODULES, api_pages
from cli_reference import cli_reference
from findings_index import findings_index
from mkdocs.structure.files import File

from trt_native._version import __version__

ROOT = Path(__file__).resolve().parents[2]
COPIED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "calib_data/README.md": "calibration_data.md",
    "examples/README.md": "examples/index.md",
}
"""Pages that are elsewhere in the repository, and their place on the site."""

_CODE_IN_TABLE = re.compile(r"`[^`\n]*\\\|[^`\n]*`")
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")


def on_config(config: Any) -> None:
    """Name the version in the title, and modules and examples in the navigation."""
    config.site_name = f"{config.site_name} {__version__}"
    sections = {name: pages for entry in config.nav for name, pages in entry.items()}
    sections["Python API"] += ({module: f"api/{module}.md"} for module in PUBLIC_MODULES)
    sections["Examples"] += ["examples/index.md", *_examples().values()]


def on_files(files: Any, config: Any) -> None:
    """Add the pages that are made."""
    for path, content in _pages():
        files.append(File.generated(config, path, content=content))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Take the backslashes out of code in tables, which hosts of repositories need there."""
    return _CODE_IN_TABLE.sub(lambda code: code[0].replace(r"\|", "|"), markdown)


def _pages() -> Iterator[tuple[str, str]]:
    yield "cli.md", cli_reference()
    yield "findings.md", findings_index(ROOT / "findings")
    yield from api_pages().items()
    copied = {**COPIED, **_examples()}
    for source, page in copied.items():
        yield page, _relinked(source, page, copied)


def _examples() -> dict[str, str]:
    names = sorted(path.parent.name for path in ROOT.glob("examples/*/README.md"))
    return {f"examples/{name}/README.md": f"examples/{name}.md" for name in names}


def _relinked(source: str, page: str, copied: Mapping[str, str]) -> str:
    """The text of a page with links between its places in the repository and on the site.

    A link to a file that is not on the site becomes its text.
    """

    def relink(link: re.Match[str]) -> str:
        path, hash_mark, anchor = link["target"].partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if ":" in path or not path or not (ROOT / target).exists():
            return link[0]
        if target not in copied and not target.startswith("docs/"):
            return link["text"]
        there = copied.get(target, target.removeprefix("docs/"))
        relative = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"[{link['text']}]({relative}{hash_mark}{anchor})"

    return _LINK.sub(relink, (ROOT / source).read_text())
