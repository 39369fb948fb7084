"""Compiled modules around an engine that computes on the CPU, as onnx.reference does.

tests/gpu/test_compile_gpu.py runs them on engines.
"""

from __future__ import annotations

import onnx
import pytest
import torch
from helpers.metrics import relative_error
from helpers.torch_modules import CASES, same_structure, tensors_in
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

import trt_native
from trt_native import CompiledModule
from trt_native.backends.registry import load_backend
from trt_native.compilation import compiled_module, compiled_plan, compiling
from trt_native.compilation.compiled_plan import CompiledPlan, Recipe
from trt_native.config import BuildConfig
from trt_native.errors import BuildError, PlanError, SpecError, UnsupportedError
from trt_native.export.structure import CallStructure, OutputStructure
from trt_native.runtime import Session
from trt_native.shapes import TensorSpec

pytestmark = [pytest.mark.backend]
FACTOR = [1]


class ReferenceEngine:
    """The last model that was exported, with weights that can be replaced."""

    model = None
    error = 0.0

    def __init__(self, plan, *, backend, ordinal):
        self.plan, self.ordinal, self.closed = plan, ordinal, False
        self.model = onnx.ModelProto.FromString(ReferenceEngine.model)
        self.inputs = plan.manifest.inputs if plan.manifest else ()

    def run(self, inputs):
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        found = ReferenceEvaluator(self.model).run(None, arrays)
        names = [output.name for output in self.model.graph.output]
        return {
            name: torch.from_numpy(array * (1 + self.error))
            for name, array in zip(names, found, strict=True)
        }

    @property
    def replaceable_weights(self):
        return [TensorSpec(w.name, "float32", tuple(w.dims)) for w in self.model.graph.initializer]

    def refit(self, weights):
        for one in self.model.graph.initializer:
            if one.name in weights:
                array = weights[one.name].numpy()
                assert tuple(one.dims) == array.shape
                one.CopyFrom(numpy_helper.from_array(array.copy(), one.name))

    def save_runtime_cache(self):
        pass

    def close(self):
        self.closed = True


class ReferenceSession(Session):
    def __init__(self, engine):
        self._made_of, self.closed = engine, 0

    @property
    def engine(self):
        return self._made_of

    @engine.setter
    def engine(self, value):
        raise AssertionError

    def run(self, inputs, *, stream=None):
        assert stream is None
        return self.engine.run(inputs)

    def close(self):
        self.closed += 1


@pytest.fixture(autouse=True)
def _engines(monkeypatch):
    export = Recipe.export

    def exported(recipe, path, progress):
        report = export(recipe, path, progress)
        ReferenceEngine.model = path.read_bytes()
        return report

    monkeypatch.setattr(ReferenceEngine, "error", 0.0)
    monkeypatch.setattr(Recipe, "export", exported)
    monkeypatch.setattr(compiled_module, "Engine", ReferenceEngine)
    monkeypatch.setattr(compiled_module, "Session", ReferenceSession)
    monkeypatch.setattr(compiling, "require_gpu", lambda ordinal: None)


def compiled(name, **options):
    case = CASES[name]
    args, kwargs = case.call()
    return trt_native.compile(
        case.module(), args, kwargs, dynamic=case.dynamic, backend="rtx", **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dicts", "dataclasses", "keywords", "lists", "lstm"])
def test_it_is_called_as_the_module_is(name):
    case, found = CASES[name], compiled(name)
    module = case.module()
    assert isinstance(found, trt_native.TensorRTModule)
    assert max(one.relative_l2 for one in found.comparison) <= 1e-5
    for extent in case.extents:
        args, kwargs = case.call(extent)
        with torch.no_grad():
            expected, results = module(*args, **kwargs), found(*args, **kwargs)
        assert same_structure(results, expected)
        for one, other in zip(tensors_in(results), tensors_in(expected), strict=True):
            assert relative_error(one, other) <= 1e-5
    found.close()
    assert found.session.closed == 1
    assert found.session.engine.closed


def test_plain_tensors_by_position_and_by_name():
    module, found = CASES["unet"].module(), compiled("unet")
    (x, t), _ = CASES["unet"].call()
    with torch.no_grad():
        expected = module(x, t)
    for result in (found(x, t), found(x, timestep=t), found(timestep=t, sample=x)):
        assert relative_error(result, expected) <= 1e-5
    with pytest.raises(SpecError, match="timestep is missing"):
        found(x)
    with pytest.raises(SpecError, match=r"inputs do not fit UNet.forward: too many"):
        found(x, t, t)
    with pytest.raises(SpecError, match="timestep is a int, not a tensor"):
        found(x, 3)
    with pytest.raises(UnsupportedError, match="has no backward"):
        found(x.requires_grad_(), t)


def test_the_module_keeps_its_mode_and_the_inputs_their_values():
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x.mul_(2))

    module, x = Changing().train(), torch.ones(2, 4)
    found = trt_native.compile(module, x, backend="rtx")
    assert module.training
    assert torch.equal(x, torch.ones(2, 4))
    assert torch.equal(found(x), torch.full((2, 4), 2.0))


def test_an_engine_that_differs_is_refused(monkeypatch):
    monkeypatch.setattr(ReferenceEngine, "error", 0.02)
    with pytest.raises(BuildError, match=r"differs from MLP on the inputs given .*0\.01") as caught:
        compiled("mlp")
    assert caught.value.problems == ("output: relative L2 0.02 > 0.01",)
    assert compiled("mlp", max_error=0.03).comparison[0].relative_l2 == pytest.approx(
        0.02, rel=1e-4
    )
    assert compiled("mlp", verify=False).comparison == ()


def test_a_plan_of_code_that_was_changed_is_not_taken(monkeypatch):
    """Though its files, weights and settings are as they were."""

    class Net(nn.Module):
        def forward(self, x):
            return {"y": x * FACTOR[0]}

    monkeypatch.setattr(compiled_plan, "code_files", lambda modules: {})
    FACTOR[0] = 2
    x = torch.ones(2, 4)
    assert trt_native.compile(Net(), x, backend="rtx")(x)["y"].unique().tolist() == [2]
    again = trt_native.compile(Net(), x, backend="rtx")
    assert again.cached
    assert again(x)["y"].unique().tolist() == [2]
    FACTOR[0] = 3
    found = trt_native.compile(Net(), x, backend="rtx")
    assert found(x)["y"].unique().tolist() == [3]
    assert not found.cached


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float32, 1e-2), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)],
)
def test_limits_are_those_of_the_arithmetic(dtype, limit):
    module = nn.Linear(4, 4).to(dtype)
    plan = trt_native.compile_plan(module, torch.ones(2, 4, dtype=dtype), backend="rtx")
    found, _ = compiling._default_limits(module, plan)
    assert found.max_relative_error == limit


class Failing(nn.Module):
    def forward(self, x):
        raise ValueError(f"a line\nand another of {x.shape[0]}")


class Numbers(nn.Module):
    def forward(self, x):
        return x * 2, x.shape[0] * 2


def test_modules_that_cannot_be_compiled():
    x = torch.ones(2, 4)
    with pytest.raises(SpecError, match=r"Failing raised ValueError: a line and another of 2; it"):
        trt_native.compile(Failing(), x, backend="rtx")
    found = trt_native.compile(Numbers(), x, backend="rtx")
    assert found(x)[1] == 4
    with pytest.raises(UnsupportedError, match="returns 1 tensors, and its export has 2 outputs"):
        trt_native.compile(Numbers(), x, dynamic={"x": {0: "n"}}, backend="rtx")


@pytest.fixture
def refittable(tmp_path):
    """Makes a compiled module whose weights can be replaced."""

    def make(module, x, **options):
        backend, config = load_backend("rtx"), BuildConfig(refit=True, **options)
        call, tensors = CallStructure.of(module, x)
        plan = trt_native.compile_plan(module, x, backend="rtx")
        recipe = Recipe(module, call, tensors, {}, config, backend)
        report = recipe.export(tmp_path / "m.onnx", None)
        output, _ = OutputStructure.of(module, module(x))
        outputs = tuple(spec.name for spec in report.outputs)
        made = CompiledPlan(plan, outputs, report.weights, cached=False, exported=True)
        return CompiledModule(recipe, made, output, 0)

    return make


class Tied(nn.Module):
    """One weight in two places, as it is and transposed."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.inner = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 10)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        hidden = self.norm(self.inner(self.embedding(ids)))
        return self.head(hidden), hidden[None] @ self.inner.weight


def test_new_weights_in_place(refittable):
    ids = torch.tensor([[1, 2, 3]])
    old, new = Tied(0).eval(), Tied(1).eval()
    before = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    found = refittable(old, ids)
    engine = found.session.engine
    found.refit(new.state_dict())
    assert found.session.engine is engine
    for one, other in zip(found(ids), new(ids), strict=True):
        assert relative_error(one.detach(), other.detach()) <= 1e-5
    found.refit({name: tensor.double() for name, tensor in before.items()})
    assert relative_error(found(ids)[0], old(ids)[0].detach()) <= 1e-5
    for name, tensor in old.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_weights_that_do_not_fit(refittable):
    ids = torch.tensor([[1, 2, 3]])
    found, state = refittable(Tied(0).eval(), ids), Tied(1).state_dict()
    wrong = {**state, "inner.bias": torch.zeros(3), "norm.bias": 3, "norm.weigth": torch.ones(6)}
    del wrong["norm.weight"]
    with pytest.raises(SpecError) as caught:
        found.refit(wrong)
    assert caught.value.problems == (
        "'norm.weight' is missing",
        "'inner.bias' has the shape 3, the module 6",
        "'norm.bias' is a int, not a tensor",
        "'norm.weigth' is not a weight of Tied; close: 'norm.weight'",
    )
    with pytest.raises(SpecError, match=r"head.weight shares its memory with another weight"):
        found.refit({**state, "head.weight": torch.zeros(10, 6)})
    with pytest.raises(SpecError, match="not a mapping of names to tensors: list"):
        found.refit([1])


def test_what_was_not_compiled_for_new_weights(refittable):
    module = CASES["mlp"].module()
    with pytest.raises(PlanError, match="compile it with refit=True"):
        compiled("mlp").refit(module.state_dict())
    x = CASES["mlp"].call()[0][0]
    options = {"precision": "int8", "quantization": {"calibration_data": "data"}}
    with pytest.raises(UnsupportedError, match="activations that calibration data had"):
        refittable(module, x, **options).refit(module.state_dict())
