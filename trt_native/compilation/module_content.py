"""The content of a module: its weights, its settings, and the files of its code.

A plan that was compiled from a module is found again by these, without an export.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import time
import types
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trt_native.files import sha256_of_file

__all__ = ["code_files", "digest_module"]

_LOADED = time.time()
_PLAIN = (type(None), bool, int, float, complex, str, bytes, range)
_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)
_OWN_FIELDS = {"_parameters", "_buffers", "_modules", "training"}
# In configurations of diffusers: the entries that were not given, in the order of a set of texts,
# which is another one in each process. Their values are entries, too.
_UNORDERED_KEY = "_use_default_values"
_KNOWN_BY_VERSION = {*sys.stdlib_module_names, "torch", "trt_native", "__builtin__"}


def digest_module(module: torch.nn.Module) -> tuple[str, frozenset[str]] | None:
    """Hash the weights and settings of a module, and find the Python modules of its classes.

    Args:
        module: The module. It may be on any device.

    Returns:
        A hash in hexadecimal, and names of Python modules; None where an attribute is of a kind
        whose content cannot be read.
    """
    digest = _Digest()
    try:
        digest.add(module)
    except (TypeError, RuntimeError, NotImplementedError, RecursionError):
        return None
    return digest.hash.hexdigest(), frozenset(digest.modules)


def code_files(modules: frozenset[str]) -> dict[str, str] | None:
    """Hash the files of Python modules, and of those that they use.

    Python's own library and PyTorch are left out: their versions say what they are.

    Args:
        modules: Names of loaded Python modules.

    Returns:
        File to its SHA-256; None where a module has no file, or its file is newer than this
        process, which may run what was in it before.
    """
    ahead, seen, files = list(modules), set(modules), dict[str, str]()
    while ahead:
        name = ahead.pop()
        loaded = sys.modules.get(name)
        if name.partition(".")[0] in _KNOWN_BY_VERSION or loaded is None:
            continue
        path = getattr(loaded, "__file__", None)
        if path is None:
            if hasattr(loaded, "__path__"):  # a package of no file of its own
                continue
            return None
        try:
            if os.stat(path).st_mtime >= _process_start():
                return None
            files[os.path.abspath(path)] = sha256_of_file(Path(path))
        except OSError:
            return None
        for value in list(vars(loaded).values()):
            used = value.__name__ if isinstance(value, types.ModuleType) else _module_of(value)
            if used is not None and used not in seen:
                seen.add(used)
                ahead.append(used)
    return files


def _module_of(value: Any) -> str | None:
    """The Python module that defines a function or a class, or the class of an object."""
    name = None
    with suppress(Exception):  # objects may raise anything for an attribute
        name = value.__module__
    return name if isinstance(name, str) else None


@functools.cache
def _process_start() -> float:
    """When this process began, in seconds since 1970; when this module was loaded, at the least."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks
    return _LOADED


class _Digest:
    """A hash of Python objects by their content.

    Attributes:
        hash: The hash.
        modules: Names of the Python modules that define the classes and functions.
    """

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.modules: set[str] = set()
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def add(self, value: Any) -> None:
        """Add an object.

        Raises:
            TypeError: its content cannot be read.
        """
        if isinstance(value, (*_PLAIN, *_TORCH)):
            return self._write(type(value).__name__, repr(value))
        if id(value) in self._seen:
            return self._write("seen", str(self._seen[id(value)]))
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if isinstance(value, torch.Tensor):
            return self._add_tensor(value)
        if isinstance(value, np.ndarray):
            self._write("array", f"{value.dtype} {value.shape}")
            return self.hash.update(np.ascontiguousarray(value).tobytes())
        if isinstance(value, torch.nn.Module):
            return self._add_module(value)
        if isinstance(value, type):
            return self._add_class(value)
        if isinstance(value, Enum):
            self._add_class(type(value))
            return self._write("enum", value.name)
        if not (self._add_container(value) or self._add_code(value)):
            self._add_object(value)
        return None

    def _write(self, *texts: str) -> None:
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            self.hash.update(len(data).to_bytes(8, "little"))
            self.hash.update(data)

    def _add_tensor(self, value: torch.Tensor) -> None:
        value = value.detach()
        self._write("tensor", f"{value.dtype} {tuple(value.shape)} {value.device.type}")
        raw: Any = value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self.hash.update(raw)

    def _add_module(self, value: torch.nn.Module) -> None:
        self._add_class(type(value))
        for kind in ("_parameters", "_buffers", "_modules"):
            self._write(kind)
            self.add(dict(getattr(value, kind)))
        for name, item in sorted(vars(value).items()):
            if name in _OWN_FIELDS:
                continue
            self._write(name)
            # The numbers of hooks count those of all modules.
            self.add(list(item.values()) if name.endswith("hooks") else item)

    def _add_class(self, value: type[Any]) -> None:
        for one in value.__mro__:
            self._write("class", one.__module__, one.__qualname__)
            self.modules.add(one.__module__)

    def _add_container(self, value: Any) -> bool:
        if isinstance(value, Mapping):
            self._write("mapping", type(value).__qualname__, str(len(value)))
            for key, item in value.items():
                if key != _UNORDERED_KEY:
                    self.add(key)
                    self.add(item)
        elif isinstance(value, (tuple, list)):
            self._write("sequence", type(value).__qualname__, str(len(value)))
            for item in value:
                self.add(item)
        elif isinstance(value, (set, frozenset)):
            if not all(isinstance(item, _PLAIN) for item in value):
                raise TypeError("a set of objects")
            self._write("set", *sorted(map(repr, value)))
        else:
            return False
        return True

    def _add_code(self, value: Any) -> bool:
        if isinstance(value, functools.partial):
            self._write("partial")
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self._write("method")
            self.add((value.__self__, value.__func__))
        elif isinstance(value, types.FunctionType):
            self._write("function", value.__module__ or "", value.__qualname__)
            self.modules.add(value.__module__ or "")
            self.add((value.__defaults__, value.__kwdefaults__))
            self.add([cell.cell_contents for cell in value.__closure__ or ()])
        elif isinstance(value, types.BuiltinFunctionType):
            self._write("builtin", str(value.__module__), value.__qualname__)
        elif isinstance(value, types.ModuleType):
            self._write("python module", value.__name__)
            self.modules.add(value.__name__)
        else:
            return False
        return True

    def _add_object(self, value: Any) -> None:
        if not hasattr(value, "__dict__"):
            raise TypeError(f"the content of a {type(value).__name__} cannot be read")
        self._add_class(type(value))
        self.add(dict(vars(value)))
