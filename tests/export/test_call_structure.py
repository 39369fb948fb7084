"""Structures around tensors, and exports of modules that take and return them."""

from __future__ import annotations

import collections
import dataclasses

import onnx
import pytest
import torch
from helpers.metrics import relative_error
from helpers.torch_modules import CASES, Keywords, Request, same_structure, tensors_in
from onnx.reference import ReferenceEvaluator
from torch import nn

from trt_native.errors import SpecError
from trt_native.export import export_module
from trt_native.export.structure import CallStructure, OutputStructure


def exported(path, case, **options):
    """The module, its call structure, and what runs its ONNX file on a call."""
    module, (args, kwargs) = case.module(), case.call()
    axes = {
        n: {a: d.partition("=")[0] for a, d in dims.items()} for n, dims in case.dynamic.items()
    }
    export_module(module, args, kwargs, path=path, dynamic=axes, **options)
    call, _ = CallStructure.of(module, args, kwargs)
    output, _ = OutputStructure.of(module, module(*args, **kwargs))
    onnx.checker.check_model(str(path), full_check=True)
    evaluator = ReferenceEvaluator(str(path))

    def run(*args, **kwargs):
        inputs = {n: t.numpy() for n, t in call.flatten(args, kwargs).items()}
        return output.rebuild([torch.from_numpy(y) for y in evaluator.run(None, inputs)])

    return module, run


@pytest.mark.parametrize("name", CASES)
def test_calls_at_other_extents_give_what_the_module_gives(tmp_path, name, one_thread):
    case = CASES[name]
    module, run = exported(tmp_path / "m.onnx", case)
    for extent in case.extents:
        args, kwargs = case.call(extent)
        with torch.no_grad():
            expected = module(*args, **kwargs)
        found = run(*args, **kwargs)
        assert same_structure(found, expected)
        pairs = list(zip(tensors_in(found), tensors_in(expected), strict=True))
        assert pairs
        for one, other in pairs:
            assert one.shape == other.shape
            assert relative_error(one.numpy(), other.numpy()) <= 1e-5


def test_every_part_keeps_its_mode(tmp_path):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.frozen = nn.Dropout(), nn.Dropout()

        def forward(self, batch):
            return self.frozen(self.kept(batch["x"]))

    module = Frozen().train()
    module.frozen.eval()
    export_module(module, [{"x": torch.ones(2)}], path=tmp_path / "m.onnx")
    assert [part.training for part in module.modules()] == [True, True, False]


def test_compiled_modules_are_unwrapped_and_others_refused(tmp_path):
    module = nn.Linear(3, 2)
    report = export_module(torch.compile(module), torch.ones(1, 3), path=tmp_path / "m.onnx")
    assert [spec.name for spec in report.inputs] == ["input"]
    for other in (torch.jit.script(module), torch.relu, 3):
        with pytest.raises(SpecError, match=r"not a torch\.nn\.Module of Python code"):
            export_module(other, torch.ones(1, 3), path=tmp_path / "n.onnx")


def test_names_in_the_file_are_those_of_the_module(tmp_path):
    path = tmp_path / "m.onnx"
    exported(path, CASES["dicts"])
    graph = onnx.load(path).graph
    assert [i.name for i in graph.input] == ["batch_features_left", "batch_features_right"]
    assert [o.name for o in graph.output] == ["sum", "parts_left", "parts_right"]
    assert {i.name for i in graph.initializer} == {
        "left.weight", "left.bias", "right.weight", "right.bias",
    }  # fmt: skip
    assert {node.name for node in graph.node} == {"left/Gemm", "right/Gemm", "/Add"}


def call_of(*args, **kwargs):
    return CallStructure.of(Keywords(), args, kwargs)[0]


X = torch.zeros(2, 8)


def test_constants_may_be_left_out_and_defaults_given():
    call = call_of(X, X, mode="multiply")
    assert [*call.flatten((X, X), {})] == ["x", "y"]
    assert [*call.flatten((X,), {"y": X, "power": 1, "mask": None})] == ["x", "y"]
    assert call.rebuild({"x": 1, "y": 2}) == ((1, 2), {"mode": "multiply"})


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ((X, X), {"mode": "add"}, r"mode is 'add', and 'multiply' is a constant"),
        ((X, X), {"power": 2}, "power was not among the inputs of the example"),
        ((X, X), {"power": True}, "power was not among the inputs of the example"),
        ((X, 3), {}, "y is a int, not a tensor"),
        ((X,), {}, "y is missing"),
        ((X, X), {"other": X}, "extra was not among the inputs"),
        ((), {"mode": "add"}, "(?s)mode is 'add'.*x is missing.*y is missing"),
        ((X, X), {"mode": X}, "mode is a Tensor, and 'multiply' is a constant"),
    ],
)
def test_calls_that_do_not_fit(args, kwargs, problem):
    with pytest.raises(SpecError, match=problem):
        call_of(X, X, mode="multiply").flatten(args, kwargs)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"scale": 2.0}, "request.scale is 2.0, and 1.0 is a constant"),
        ({"label": "b"}, "request.label is 'b', and None is a constant"),
        ({"mask": None}, "request.mask is a NoneType, not a tensor"),
        ({"mask": {"a": X}}, "request.mask is a dict, not a tensor"),
    ],
)
def test_nested_calls_that_do_not_fit(changes, problem):
    module, request = CASES["dataclasses"].module(), Request(X, X)
    call, _ = CallStructure.of(module, [request])
    with pytest.raises(SpecError, match=problem):
        call.flatten((dataclasses.replace(request, **changes),), {})
    with pytest.raises(SpecError, match="request is a dict, not a Request"):
        call.flatten(({"tokens": X, "mask": X},), {})


def test_a_mapping_that_lacks_or_has_more_keys():
    call, _ = CallStructure.of(CASES["dicts"].module(), ({"features": {"left": X, "right": X}},))
    with pytest.raises(SpecError, match=r"batch.features.right is missing"):
        call.flatten(({"features": {"left": X}},), {})
    with pytest.raises(SpecError, match=r"batch.more was not in the example"):
        call.flatten(({"features": {"left": X, "right": X}, "more": X},), {})


class Anything(nn.Module):
    def forward(self, value):
        return value


@dataclasses.dataclass
class Derived:
    a: torch.Tensor
    b: int = dataclasses.field(init=False, default=3)


@pytest.mark.parametrize(
    "value",
    [
        {"a": X, "b": [X, (X, 1.5)], "c": None},
        collections.OrderedDict(b=X, a=X),
        collections.defaultdict(list, {"a": X}),
        Derived(X),
        (X, {"n": torch.float16, "d": torch.device("cpu"), "s": "text"}),
    ],
)
def test_outputs_are_rebuilt_as_they_were(value):
    structure, tensors = OutputStructure.of(Anything(), value)
    assert structure.count == len(tensors) == len(tensors_in(value))
    found = structure.rebuild(tensors)
    assert found is not value
    assert same_structure(found, value)
    assert [id(t) for t in tensors_in(found)] == [id(t) for t in tensors_in(value)]
    if isinstance(value, collections.defaultdict):
        assert found["new"] == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (object(), "value is a object, which is neither a tensor"),
        ({"a": X, "b": {1, 2}}, r"value.b is a set, which is neither a tensor"),
        ({"a_b": X, "a": {"b": X}}, "two tensors would have the name 'value_a_b'"),
        ([1, 2], "needs at least one tensor"),
    ],
)
def test_arguments_that_cannot_be_compiled(value, problem):
    with pytest.raises(SpecError, match=problem):
        CallStructure.of(Anything(), [value])


def test_arguments_of_other_forms():
    with pytest.raises(SpecError, match="found a int"):
        CallStructure.of(Anything(), 3)
    with pytest.raises(SpecError, match="kwargs: given twice: value"):
        CallStructure.of(Anything(), {"value": X}, {"value": X})
    with pytest.raises(SpecError, match=r"do not fit Anything.forward: .*'value'; a mapping"):
        CallStructure.of(Anything(), {"values": X})
    with pytest.raises(SpecError, match="Anything returns no tensor"):
        OutputStructure.of(Anything(), {"a": 1})


def test_names_are_identifiers():
    _, tensors = CallStructure.of(Anything(), [{"a/b": X, 1: {"c d": X}}])
    assert [*tensors] == ["value_a_b", "value_1_c_d"]
    _, tensors = CallStructure.of(Keywords(), [X, X], {"from": X})
    assert [*tensors] == ["x", "y", "from_"]


def test_equal_weights_stay_apart_where_they_are_to_be_replaced(tmp_path):
    module = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))
    for refittable in (False, True):
        report = export_module(module, X, path=tmp_path / "m.onnx", refittable=refittable)
        weights = {i.name for i in onnx.load(report.path).graph.initializer}
        assert len(weights) == (4 if refittable else 2)
    assert report.weights == {name: (name,) for name in module.state_dict()}
    assert "weights" not in report.to_dict()


def test_weights_are_traced_to_the_state(tmp_path):
    """Those that are folded into constants, or merged, are not taken for what they were."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.gain = nn.Linear(8, 8), nn.Parameter(torch.ones(8))
            self.tied = nn.Linear(8, 8)
            self.tied.weight = self.linear.weight
            self.lstm = nn.LSTM(8, 4)
            self.unused = nn.Linear(2, 2)
            self.register_buffer("bias", torch.full((8,), 2.0))

        def forward(self, x):
            x = self.tied(self.linear(x)) * (self.gain * self.bias) + self.bias
            return x, torch.matmul(x[None], self.tied.weight.T), self.lstm(x[None])[0]

    weights = export_module(Mixed(), X, path=tmp_path / "m.onnx", refittable=True).weights
    both = ("linear.weight", "linear.weight.T")
    assert set(weights["linear.weight"]) == set(weights["tied.weight"])
    assert {name.split(".", 1)[1] for name in weights["linear.weight"]} == {"weight", "weight.T"}
    assert len(weights["linear.weight"]) == len(both)
    assert weights["linear.bias"] == ("linear.bias",)
    assert weights["tied.bias"] == ("tied.bias",)
    assert weights["unused.weight"] == ()
    assert weights["gain"] is None
    assert weights["bias"] is None
    assert weights["lstm.weight_ih_l0"] is None
