"""Docstrings with the roles of reStructuredText as Markdown that links."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["RoleExtension"]

_ROLE = re.compile(r":(?:class|meth|func|attr|data|mod|exc):`~?([^`<]+?)(?:\s*<([^`]+)>)?`")


class RoleExtension(griffe.Extension):
    """Writes roles as links to what they name, where that has a place on the site."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(
                lambda role: _link(obj, *role.groups()), obj.docstring.value
            )


def _link(obj: griffe.Object, name: str, target: str | None) -> str:
    target = _resolved(obj, target or name)
    shown = name.removeprefix("trt_native.")
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'


def _resolved(obj: griffe.Object, name: str) -> str:
    """The full path of a name in the scope of an object."""
    first, *rest = name.split(".")
    try:
        return ".".join((obj.resolve(first), *rest))
    except griffe.NameResolutionError:
        return name
