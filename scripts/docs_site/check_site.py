"""Check a built site: links inside it lead somewhere, and every public name has its place.

    python scripts/docs_site/check_site.py FOLDER

Exit code 1: something is wrong, and each line says what.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from api_reference import PUBLIC_MODULES, exports

_LINKS = {"a": "href", "img": "src", "link": "href", "script": "src"}


class _Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors.add(found.get("id") or "")
        if link := found.get(_LINKS.get(tag, "")):
            self.links.append(link)


def problems(site: Path) -> list[str]:
    """What is wrong with a site, a line each."""
    pages = {path: _Page(path) for path in sorted(site.rglob("*.html"))}
    del pages[site / "404.html"]  # its links are those of a server's root
    return [*_broken_links(site, pages), *_missing_names(pages)]


def _broken_links(site: Path, pages: dict[Path, _Page]) -> Iterator[str]:
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{path.relative_to(site)}: no page behind {link}"
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{path.relative_to(site)}: no place behind {link}"


def _missing_names(pages: dict[Path, _Page]) -> Iterator[str]:
    documented = {name for page in pages.values() for name in page.anchors}
    for module in PUBLIC_MODULES:
        for name in exports(module):
            names = (f"{module}.{name}", f"trt_native.{name}")
            if name != "__version__" and not documented.intersection(names):
                yield f"{module}.{name} is public, and not in the API reference"


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]).resolve())
    print("\n".join(found) or "every link leads somewhere; every public name is documented")
    sys.exit(bool(found))
