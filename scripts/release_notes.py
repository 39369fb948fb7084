"""Print what the changelog says of a version, for the notes of its release.

    python scripts/release_notes.py v1.2.3

Exit code 1: the tag is not that of the version, or the changelog has no section of it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def notes(tag: str, version: str, changelog: str) -> str:
    """The section of a version.

    Args:
        tag: The tag to release, such as ``v1.2.3``.
        version: The version of the package.
        changelog: The text of the changelog.

    Raises:
        ValueError: the tag, the version and the sections of the changelog do not go together.
    """
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag}, but the version of the package is {version}")
    section = re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)",
        changelog,
        re.MULTILINE | re.DOTALL,
    )
    if section is None:
        raise ValueError(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")
    if not section[1].strip():
        raise ValueError(f"the section of {version} in CHANGELOG.md is empty")
    return section[1].strip() + "\n"


def main() -> None:
    """Print the notes of the tag that is given."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} TAG")
    version = (ROOT / "trt_native/_version.py").read_text().split('"')[-2]
    try:
        print(notes(sys.argv[1], version, (ROOT / "CHANGELOG.md").read_text()), end="")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
