"""Loading is refused before TensorRT sees the bytes. That plans load is tested on a GPU."""

from __future__ import annotations

import dataclasses

import pytest
from helpers import tiny_models

from trt_native import Engine, Plan, build_plan
from trt_native.backends.registry import load_backend
from trt_native.config import BuildConfig, KernelSpecialization
from trt_native.cuda import GpuInfo
from trt_native.errors import PlanError, TrtNativeError
from trt_native.plans.engine_layers import layer_records
from trt_native.runtime.engine import environment_of

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend

L4 = GpuInfo("NVIDIA L4", "8.9", "13.0", 24 << 30, 20 << 30)


@pytest.fixture
def guarded_backend(monkeypatch):
    """The real backend on a machine said to have a GPU; the bytes must not reach it."""
    backend = load_backend("rtx")
    monkeypatch.setattr("trt_native.runtime.engine.require_gpu", lambda ordinal: L4)
    monkeypatch.setattr(
        backend, "deserialize", lambda *_, **__: pytest.fail("TensorRT got the bytes")
    )
    return backend


def test_a_plan_of_another_version_never_reaches_tensorrt(tmp_path, guarded_backend):
    path = tiny_models.conv(tmp_path / "m.onnx", (1, 3, 8, 8))
    data = bytearray(build_plan(path, backend="rtx").data)
    data[25] += 1  # the minor version
    with pytest.raises(PlanError, match=r"built by TensorRT-RTX 1\.7"):
        Engine(Plan(bytes(data)), backend=guarded_backend)


def test_a_plan_for_another_gpu_never_reaches_tensorrt(tmp_path, guarded_backend):
    path = tiny_models.conv(tmp_path / "m.onnx", (1, 3, 8, 8))
    plan = build_plan(path, BuildConfig(compute_capabilities=("8.6",)), backend="rtx")
    with pytest.raises(PlanError, match=r"for compute capability 8.6, this GPU is NVIDIA L4"):
        Engine(plan, backend=guarded_backend)


@pytest.mark.parametrize(
    ("asked", "specializes", "found"),
    [
        (None, True, "eager"),
        ("LAZY", True, "lazy"),
        (KernelSpecialization.NONE, True, "none"),
        ("often", True, "'often' is none of: eager, lazy, none"),
        (None, False, None),
        ("none", False, "kernel specialization none: it compiles no kernels where a plan runs"),
    ],
)
def test_the_kernel_specialization(guarded_backend, monkeypatch, asked, specializes, found):
    class StoppedError(Exception):
        pass

    def contexts(engine, cached, *, specialization):
        assert specialization == (found or "eager")
        raise StoppedError

    changed = dataclasses.replace(guarded_backend.capabilities, specializes_kernels=specializes)
    monkeypatch.setattr(guarded_backend, "capabilities", changed)
    monkeypatch.setattr(guarded_backend, "deserialize", lambda *_, **__: object())
    monkeypatch.setattr(guarded_backend, "contexts", contexts)
    head = b"vtrt" + bytes(12) + (64).to_bytes(8, "little")
    version = bytes(int(part) % 256 for part in guarded_backend.version.split("."))
    plan = Plan(head + version + bytes(36))
    refused = bool(found) and " " in found
    with pytest.raises(
        TrtNativeError if refused else StoppedError, match=found if refused else None
    ):
        Engine(plan, backend=guarded_backend, kernel_specialization=asked)


def test_environment_of():
    backend = load_backend("rtx")
    environment = environment_of([backend], L4)
    assert environment.libraries == {"TensorRT-RTX": backend.version}
    assert "8.9" in environment.targets["TensorRT-RTX"]
    assert (environment.gpu, environment.compute_capability) == ("NVIDIA L4", "8.9")
    assert environment_of([], None).gpu is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"Layers": [{"Name": "a", "LayerType": "b"}]}', [{"Name": "a", "LayerType": "b"}]),
        ('{"Layers": ["a", "b"], "Bindings": ["x"]}', [{"Name": "a"}, {"Name": "b"}]),
        ('{"Layers": []}', []),
        ('{"Name": "a"}', [{"Name": "a"}]),
        ('"a"', [{"Name": "a"}]),
        ('["a"]', [{"Name": "a"}]),
        ('{"Layers": [{"Name": "a"', None),
        ('{"Layers": null}', None),
        ("{}", None),
        ("3", None),
        ("a", None),
        ("", None),
        (None, None),
    ],
)
def test_what_an_engine_inspector_may_write(text, expected):
    assert layer_records(text) == expected
