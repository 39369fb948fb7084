"""Lazy public names, against Python's own import system."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import trt_native
from trt_native._lazy import HEAVY_MODULES, delay_imports, lazy_exports

PACKAGES = (
    "trt_native",
    "trt_native.calibration",
    "trt_native.models.latentsync",
    "trt_native.page",
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one lazy name, and a module with the same name that is not lazy."""
    sources = {
        "lazy_package/__init__.py": """
            from trt_native._lazy import lazy_exports
            __getattr__, __dir__ = lazy_exports(
                __name__, {"Thing": "inner.things", "Absent": "inner.things", "Other": "missing"})
        """,
        "lazy_package/inner/__init__.py": "",
        "lazy_package/inner/things.py": "class Thing: pass",
        "plain_module.py": "",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazy_package")
    for name in [name for name in sys.modules if name.split(".")[0] == "lazy_package"]:
        del sys.modules[name]
    sys.modules.pop("plain_module", None)


def test_a_name_is_imported_when_it_is_first_used(package):
    assert "lazy_package.inner" not in sys.modules
    thing = package.Thing
    assert thing is importlib.import_module("lazy_package.inner.things").Thing
    assert package.Thing is thing


def test_from_imports_find_names_and_submodules(package):
    from lazy_package import Thing, inner

    assert Thing is inner.things.Thing
    assert inner is sys.modules["lazy_package.inner"]
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'lazy_package'"):
        from lazy_package import nothing  # noqa: F401


def test_unknown_names_are_an_error_as_of_any_module(package):
    plain = importlib.import_module("plain_module")
    with pytest.raises(AttributeError) as expected:
        plain.nothing  # noqa: B018
    with pytest.raises(AttributeError) as caught:
        package.nothing  # noqa: B018
    assert str(caught.value) == str(expected.value).replace("plain_module", "lazy_package")
    assert not hasattr(package, "nothing")
    assert "lazy_package.inner" not in sys.modules


def test_a_wrong_export_shows(package):
    with pytest.raises(AttributeError, match=r"'lazy_package.inner.things' has no .*'Absent'"):
        package.Absent  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match=r"lazy_package\.missing"):
        package.Other  # noqa: B018


def test_dir_lists_the_exports_in_order():
    get, names = lazy_exports("trt_native", {"b": "errors", "SpecError": "errors", "a": "errors"})
    assert names() == ["SpecError", "a", "b"]
    assert get("SpecError") is trt_native.errors.SpecError


def typed_imports(path):
    """Public name to submodule, as the imports for type checkers state them."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                for alias in statement.names:
                    found[alias.asname or alias.name] = statement.module
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_the_names_that_are_exported(name):
    package = importlib.import_module(name)
    found = typed_imports(Path(package.__file__))
    assert set(found) == set(dir(package))
    assert set(found) <= set(package.__all__)


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_the_objects_that_are_imported(name):
    pytest.importorskip("torch")
    package = importlib.import_module(name)
    for public, module in typed_imports(Path(package.__file__)).items():
        assert getattr(package, public) is getattr(importlib.import_module(module), public)


WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, sys
import torch
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for module, names in ((signal, ("SIGBUS", "SIGXCPU", "SIGHUP")), (os, ("O_NONBLOCK", "O_CLOEXEC"))):
    for name in names:
        delattr(module, name)
import trt_native
for found in pkgutil.walk_packages(trt_native.__path__, "trt_native."):
    if found.name != "trt_native.__main__":
        importlib.import_module(found.name)
"""


def test_every_module_can_be_imported_without_posix():
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-c", WITHOUT_POSIX], check=True)


def test_modules_that_run_when_they_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "heavy_module.py").write_text("import sys\nsys.heavy_module_ran = True\nNAME = 1")
    delay_imports("heavy_module")
    module = importlib.import_module("heavy_module")
    assert not hasattr(sys, "heavy_module_ran")
    assert module.NAME == 1
    assert sys.heavy_module_ran
    del sys.heavy_module_ran, sys.modules["heavy_module"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("heavier_module")


def test_onnx_ir_works_with_modules_that_run_later():
    code = f"""
        import sys
        from trt_native._lazy import delay_imports
        delay_imports(*{HEAVY_MODULES})
        import onnx_ir
        assert "sympy.core" not in sys.modules
        assert (onnx_ir.SymbolicDim("2*n") + 1).evaluate({{"n": 3}}) == 7
        assert "sympy.core" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
