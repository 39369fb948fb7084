"""Names and modules that are imported when they are first used."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["HEAVY_MODULES", "delay_imports", "lazy_exports"]

HEAVY_MODULES = ("sympy", "onnx_ir._symbolic_shapes")
"""What onnx_ir imports, for 0.2 s, and needs for arithmetic on symbolic dimensions alone."""


def lazy_exports(
    package: str, exports: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    Args:
        package: Name of the package.
        exports: Public name to the submodule that defines it, such as ``runtime.session``.
    """

    def get(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{exports[name]}"), name)

    return get, lambda: sorted(exports)


def delay_imports(*names: str) -> None:
    """Let modules run when something of them is first used, for the rest of this process.

    It is for programs of this package: the process of a library's user is left as it is.

    Args:
        names: Full names of modules that are not imported yet.
    """
    sys.meta_path.insert(0, _Delaying(frozenset(names)))


class _Delaying:
    """Finds some modules as others do, and lets them run later."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self._names else None
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec
