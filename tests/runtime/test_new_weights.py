"""New weights of a plan, against the weights of a model that has them from the start."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.fake_gpu import Memory
from helpers.refittable import lowered_weights, made_refittable, record_of
from onnx import numpy_helper

from trt_native import BuildConfig, ProfileSpec
from trt_native.cuda import DeviceArray
from trt_native.errors import PlanError, SpecError
from trt_native.runtime.new_weights import WeightReader, _from_torch
from trt_native.runtime.tensor_views import TensorView

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend

STREAM = 9


def config(precision="fp16"):
    return BuildConfig(profiles=ProfileSpec.parse(["batch=2"]), precision=precision)


@pytest.fixture(scope="module", params=["fp16", "fp32", "bf16"])
def case(request, tmp_path_factory):
    """A plan, new values of all weights of its model, and the model with these."""
    folder = tmp_path_factory.mktemp("weights")
    path = tiny_models.norm(folder / "m.onnx")
    record = record_of(path, config(request.param))
    plan = made_refittable(folder / "m.plan", record)
    proto, new = onnx.load(path), {}
    for one in proto.graph.initializer:
        new[one.name] = numpy_helper.to_array(one) * np.float32(-0.3) + np.float32(0.01)
        one.CopyFrom(numpy_helper.from_array(new[one.name], one.name))
    onnx.save(proto, folder / "new.onnx")
    return plan, new, lowered_weights(folder / "new.onnx", config(request.param))


def on_gpu(array, ordinal=0, offset=0):
    """An array in memory that stands for that of a GPU."""
    memory = Memory(array.nbytes, offset)
    ctypes.memmove(memory.handle, array.ctypes.data, array.nbytes)
    return DeviceArray(memory, array.shape, array.dtype, ordinal)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, new in found.items():
        assert new.values.dtype == expected[name].dtype.name
        assert new.values.count == expected[name].size
        assert ctypes.string_at(new.values.pointer, expected[name].nbytes) == (
            expected[name].tobytes()
        ), name


@pytest.mark.parametrize("kind", ["numpy", "strided", "float64", "torch", "device", "unaligned"])
def test_they_become_what_a_build_makes_of_them(gpu, case, kind):
    import torch

    plan, new, expected = case
    convert = {
        "numpy": lambda array: array,
        "strided": lambda array: np.repeat(array, 2, -1)[..., ::2],
        "float64": lambda array: array.astype(np.float64),
        "torch": torch.from_numpy,
        "device": on_gpu,
        "unaligned": lambda array: on_gpu(array, offset=4),
    }[kind]
    given = {name: convert(array) for name, array in new.items()}
    reader = WeightReader(plan, 0)
    assert {spec.name: spec.shape for spec in reader.replaceable()} == {
        name: array.shape for name, array in new.items()
    }
    found = reader.read(given, STREAM)
    assert_same(found, expected)
    for name, weight in found.items():
        as_it_is = kind == "device" and expected[name].dtype == np.float32 and name in new
        assert weight.values.on_device is weight.held is as_it_is


def test_tensors_of_torch_are_converted_where_they_are(case, monkeypatch):
    import torch

    plan, new, expected = case
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    reader = WeightReader(plan, 0)
    found = {}
    for name, array in new.items():
        tensor = torch.from_numpy(array)
        view = TensorView("torch", tensor, array.shape, "float32", pointer=tensor.data_ptr())
        for target in reader._targets[name]:
            found[target.name], beyond = _from_torch(view, target, STREAM)
            assert beyond is None or not beyond
    assert_same(found, expected)


def test_all_problems_are_in_one_error(gpu, case):
    plan, new, _ = case
    given = {
        "W": new["w"],
        "scale": new["scale"][:3],
        "bias": new["bias"].astype(np.int32),
        "w": [1, 2],
    }
    with pytest.raises(SpecError, match="do not fit the plan, which keeps those") as caught:
        WeightReader(plan, 0).read(given, STREAM)
    dtypes = "float32 or float64"
    assert caught.value.problems == (
        "'W' is unknown to the plan",
        f"'scale' is float32 3, the plan needs {dtypes} 16",
        f"'bias' is int32 16, the plan needs {dtypes} 16",
        "'w': expected a NumPy array, a torch tensor, or an object with __cuda_array_interface__ or"
        " __dlpack__, got list",
    )
    with pytest.raises(SpecError) as caught:
        WeightReader(plan, 0).read({"scales": 1, "bias": on_gpu(new["bias"], 1)}, STREAM)
    assert caught.value.problems[1] == "'bias' is on GPU 1, the engine on GPU 0"
    for nothing in ({}, None, [new["w"]]):
        with pytest.raises(SpecError, match="give an array for one weight or more"):
            WeightReader(plan, 0).read(nothing, STREAM)


@pytest.mark.parametrize("case", ["fp16"], indirect=True)
def test_values_that_a_type_cannot_hold(gpu, case):
    plan, new, _ = case
    reader = WeightReader(plan, 0)
    reader.read({"w": np.where(new["w"] == new["w"].max(), np.inf, new["w"])}, STREAM)
    for others in (1, np.nan, np.inf):
        large = np.full((16, 16), others, np.float32)
        large[3, 5] = -65520
        with pytest.raises(SpecError, match="'w' has values that float16 cannot hold"):
            reader.read({"w": large, "bias": new["bias"]}, STREAM)
        large[3, 5] = 65519
        reader.read({"w": large}, STREAM)
    assert reader.read({"w": new["w"].astype(np.float16)}, STREAM)


@pytest.mark.parametrize("case", ["fp16"], indirect=True)
def test_weights_that_the_plan_has_not_as_they_are(gpu, case):
    plan, new, _ = case
    refit = plan.manifest.refit

    def problem(**changes):
        manifest = dataclasses.replace(plan.manifest, refit={**refit, **changes})
        reader = WeightReader(dataclasses.replace(plan, manifest=manifest), 0)
        assert "w" not in [spec.name for spec in reader.replaceable()]
        with pytest.raises(SpecError) as caught:
            reader.read({"w": new["w"]}, STREAM)
        return caught.value.problems

    assert problem(marked=["bias"]) == ("'w' was not made replaceable when the plan was built",)
    assert problem(marked=[]) == problem(marked=["bias"])
    assert problem(rewritten={"w": ["w"]}) == (
        "'w' is computed into 'w': put it in by a file (refit_plan)",
    )
    assert problem(constants=["w"]) == ("'w' is unknown to the plan",)


@pytest.mark.parametrize("case", ["fp16"], indirect=True)
def test_plans_that_take_no_weights(case):
    plan, _, _ = case
    old = {name: plan.manifest.refit[name] for name in ("structure", "weights")}
    for changes, message in (
        ({"options": {}}, "not built as refittable"),
        ({"refit": old}, "does not record which weights of the ONNX file"),
        ({"options": {"strip_weights": True}}, "its weights were left out"),
    ):
        manifest = dataclasses.replace(plan.manifest, **changes)
        with pytest.raises(PlanError, match=message):
            WeightReader(dataclasses.replace(plan, manifest=manifest), 0)
    with pytest.raises(PlanError, match="has no manifest"):
        WeightReader(dataclasses.replace(plan, manifest=None), 0)
