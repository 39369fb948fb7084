"""Plugins: code that runs inside a plan, and that must be named by whoever builds or loads it."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_native.errors import PlanError
from trt_native.files import sha256_of_file

__all__ = ["is_python_plugin", "missing_plugins", "plugin_records"]


def is_python_plugin(source: str) -> bool:
    """Whether it is ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``; else it is a library."""
    origin, separator, name = source.rpartition(":")
    return bool(separator and origin) and name.isidentifier() and not Path(source).exists()


def plugin_records(sources: Sequence[str]) -> list[dict[str, str]]:
    """What a manifest says of plugins: ``file``, their name without folders, and ``sha256``.

    Raises:
        PlanError: a file cannot be read, or there is no such module.
    """
    return [_record(source) for source in sources]


def _record(source: str) -> dict[str, str]:
    try:
        if not is_python_plugin(source):
            return {"file": Path(source).name, "sha256": sha256_of_file(Path(source))}
        origin, _, name = source.rpartition(":")
        path = Path(origin) if origin.endswith(".py") else _module_file(origin)
        file = f"{path.name if origin.endswith('.py') else origin}:{name}"
        return {"file": file, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    except OSError as error:
        raise PlanError(
            f"plugin {source}: cannot be read: {error.strerror or error}", options=("plugins",)
        ) from None


def _module_file(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise PlanError(f"plugin {name}: there is no such module", options=("plugins",))
    return Path(spec.origin)


def missing_plugins(
    needed: Sequence[Mapping[str, Any]], given: Sequence[str], *, carried: bool
) -> Iterator[str]:
    """Reasons why a plan cannot be loaded with the plugins that are given.

    Kernels of Python plugins may be in the plan, so that only TensorRT knows whether it needs them.

    Args:
        needed: What the manifest says of the plugins that the plan was built with.
        given: The plugins to load it with.
        carried: The plan contains its libraries.
    """
    names = {Path(source).name for source in given}
    for record in needed:
        file = str(record["file"])
        if not carried and not is_python_plugin(file) and file not in names:
            yield (
                f"it needs the plugins of {file} (SHA-256 {str(record['sha256'])[:16]}...), which"
                " are loaded only where they are named"
            )
