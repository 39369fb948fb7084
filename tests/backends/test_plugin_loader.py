"""Plugins on the real registries: of Python functions, and of a library where there are headers.

The parsers under the lanes ask no registry, so no model with a plugin is parsed there.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from helpers import tiny_models

from trt_native.config import BuildConfig
from trt_native.errors import PlanError, SpecError, UnsupportedError
from trt_native.plans.host_code import HEAD_BYTES, PLUGINS, carried_code

pytestmark = pytest.mark.backend

REGISTERING = """
try:
    import tensorrt.plugin as trtp
except ImportError:
    import tensorrt_bindings.plugin as trtp
calls = []

def register():
    calls.append(1)

    @trtp.register("trt_native_test::double")
    def describe(x: trtp.TensorDesc) -> trtp.TensorDesc:
        return x.like()

    @trtp.impl("trt_native_test::double")
    def run(x: trtp.Tensor, outputs: tuple[trtp.Tensor], stream: int) -> None:
        raise NotImplementedError

def fails():
    raise RuntimeError("no kernel")
"""


@pytest.fixture
def taking(backend):
    """A backend that takes plugins."""
    if backend.name == "rtx":
        pytest.skip("TensorRT-RTX takes no plugins")
    return backend


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A library with the plugin TrtNativeCopy, compiled against TensorRT's public headers."""
    root, compiler = os.environ.get("TENSORRT_ROOT"), shutil.which("c++")
    if not root or compiler is None:
        pytest.skip("TENSORRT_ROOT does not name a TensorRT with headers, or no C++ compiler")
    path = tmp_path_factory.mktemp("plugin") / "libcopy.so"
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    includes = [f"-I{folder}/include" for folder in (root, cuda)]
    source = Path(__file__).with_name("copy_plugin.cpp")
    command = [compiler, "-std=c++17", "-w", "-shared", "-fPIC", *includes, "-o", path, source]
    subprocess.run(command, check=True)
    return path


def creators(backend):
    found = backend._trt.get_plugin_registry().all_creators
    return [(creator.plugin_namespace, creator.name) for creator in found]


def test_a_python_function_registers_plugins_once(taking, tmp_path, monkeypatch):
    (tmp_path / "registering.py").write_text(REGISTERING)
    source = f"{tmp_path / 'registering.py'}:register"
    for _ in range(2):
        taking.load_plugins([source])
    assert creators(taking).count(("trt_native_test", "double")) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("registering.py:fails", r"registering\.py:fails raised RuntimeError: no kernel"),
        ("registering.py:nothing", r"registering\.py has no function 'nothing'; its functions are"),
        ("none.py:register", r"none\.py: no such file"),
        ("text.so", r"cannot load the plugins of .*text\.so: it must be a library of plugins"),
        ("none.so", r"cannot load the plugins of .*none\.so: it must"),
    ],
)
def test_what_cannot_be_loaded(taking, tmp_path, name, reason):
    (tmp_path / "registering.py").write_text(REGISTERING)
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(PlanError, match=reason) as caught:
        taking.load_plugins([str(tmp_path / name)])
    assert caught.value.options == ("plugins",)
    if name.endswith(".so"):
        assert any("Unable to load library" in line for line in caught.value.details)


def test_a_library_is_registered_once(taking, library):
    for _ in range(2):
        taking.load_plugins([str(library)])
    assert creators(taking).count(("", "TrtNativeCopy")) == 1


def test_a_plan_with_its_library_inside(taking, library, request_for):
    config = BuildConfig(plugins=(str(library),), serialize_plugins=True)
    request = request_for(lambda path: tiny_models.conv(path, (1, 3, 8, 8)), config=config)
    plan = taking.build(request, None, threading.Event()).data
    assert carried_code(plan[:HEAD_BYTES], len(plan)) == (PLUGINS,)
    assert library.read_bytes() in bytes(plan)
    plain = dataclasses.replace(request, config=BuildConfig(plugins=(str(library),)))
    plan = taking.build(plain, None, threading.Event()).data
    assert carried_code(plan[:HEAD_BYTES], len(plan)) == ()


def test_tensorrt_rtx_refuses_plugins_by_name(backend, request_for):
    if backend.name != "rtx":
        pytest.skip("TensorRT takes plugins")
    with pytest.raises(UnsupportedError, match=r"plugins is not supported: it takes none; build"):
        backend.check(BuildConfig(plugins=("libx.so",)))
    with pytest.raises(UnsupportedError, match=r"plugin libx\.so: it takes none; use TensorRT 10"):
        backend.load_plugins(["libx.so"])
    backend.load_plugins([])


def test_a_library_is_named_to_be_put_into_the_plan():
    for plugins in ((), ("plugins.py:register",)):
        with pytest.raises(SpecError, match="no library of plugins is named"):
            BuildConfig(plugins=plugins, serialize_plugins=True)
