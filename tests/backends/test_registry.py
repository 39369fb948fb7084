"""The choice of a TensorRT library; modules of another version or none stand in for packages."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from trt_native.backends.registry import (
    BACKEND_VARIABLE,
    BACKENDS,
    available_backends,
    load_backend,
)
from trt_native.errors import UnsupportedError


@pytest.fixture
def package(monkeypatch):
    """Make a package one of some version, or one that is not installed."""
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)

    def replace(name, version=None):
        module = None
        if version is not None:
            module = ModuleType(name)
            module.__version__ = version
        monkeypatch.setitem(sys.modules, name, module)

    return replace


def test_a_name_that_is_not_a_backend(package, monkeypatch):
    with pytest.raises(UnsupportedError, match="no backend 'cuda'; the backends are auto, tens"):
        load_backend("cuda")
    monkeypatch.setenv(BACKEND_VARIABLE, "vulkan")
    with pytest.raises(UnsupportedError, match="no backend 'vulkan'"):
        load_backend()


def test_without_any_package_the_error_says_what_to_install(package):
    package("tensorrt")
    package("tensorrt_rtx")
    with pytest.raises(
        UnsupportedError, match="no TensorRT is installed; install one: pip"
    ) as auto:
        load_backend()
    assert [line.split(":")[0] for line in auto.value.details] == ["tensorrt", "rtx"]
    with pytest.raises(UnsupportedError, match="backend 'rtx' is not installed") as rtx:
        load_backend("rtx")
    assert [line.split(":")[0] for line in rtx.value.details] == ["rtx"]
    with pytest.raises(UnsupportedError, match="'tensorrt' is not installed; install it") as one:
        load_backend("tensorrt")
    assert "rtx" not in str(one.value)


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "12.0.0.1"])
def test_versions_without_a_backend(package, version):
    package("tensorrt", version)
    with pytest.raises(UnsupportedError, match=f"TensorRT {version} is not supported; use 10.3"):
        load_backend("tensorrt")


def test_auto_takes_tensorrt_before_rtx(package):
    package("tensorrt", "9.9")
    package("tensorrt_rtx")
    with pytest.raises(UnsupportedError, match=r"TensorRT 9\.9 is not supported"):
        load_backend()


def test_the_environment_decides_only_where_no_argument_does(package, monkeypatch):
    package("tensorrt", "9.9")
    package("tensorrt_rtx")
    monkeypatch.setenv(BACKEND_VARIABLE, "rtx")
    with pytest.raises(UnsupportedError, match="backend 'rtx' is not installed"):
        load_backend()
    with pytest.raises(UnsupportedError, match=r"TensorRT 9\.9 is not supported"):
        load_backend("tensorrt")


def test_the_error_lists_why_a_package_does_not_import(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("raise RuntimeError('libnvinfer.so is\\n missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UnsupportedError, match="no TensorRT is installed") as caught:
        load_backend()
    assert caught.value.details[0] == "tensorrt: libnvinfer.so is missing"


@pytest.mark.backend
def test_a_library_has_one_backend_object(backend):
    assert load_backend() is backend
    assert load_backend(backend) is backend


@pytest.mark.backend
def test_the_backend_is_that_of_the_package_and_its_version(backend):
    version = backend._trt.__version__
    expected = "rtx" if backend._trt.__name__ == "tensorrt_rtx" else f"trt{version.split('.')[0]}"
    assert (backend.name, backend.version) == (expected, version)


def test_available_backends_are_the_installed_packages(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    found = available_backends()
    assert list(found) == list(BACKENDS) == ["tensorrt", "rtx"]
    assert found["tensorrt"] is True
    assert found["rtx"] is (importlib.util.find_spec("tensorrt_rtx") is not None)
