"""Write recurrent layers out as loops of products that keep out of TF32.

Where TensorRT takes TF32 regardless of its flag, the products inside of a recurrent layer have an
error of 1e-3, and nothing in the graph can be split. Those of a written-out layer are nodes, which
:mod:`~trt_native.passes.split_fp32_products` splits: one over all steps for the input, and one in
each step for the state.

Lengths of sequences become a mask: a step behind the end of a sequence leaves its state as it is,
which is right backwards, too, where such steps come first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir

from trt_native.graph.inference import infer_around
from trt_native.graph.nodes import FLOAT, all_nodes, constant_of, input_of, is_fp32, opset_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.array_builder import BOOL, INT64, ArrayBuilder
from trt_native.passes.base import GraphPass
from trt_native.passes.raise_opset import opset_problems, require_opset
from trt_native.passes.replacement import NameAuthority
from trt_native.passes.split_fp32_products import hides_products

__all__ = ["LowerRecurrent"]

_OPSET = 13  # that of split products
_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
_DEFAULTS = {
    "GRU": ("Sigmoid", "Tanh"),
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "RNN": ("Tanh",),
}
_W, _R, _B, _LENGTHS, _H, _C, _PEEPHOLES = range(1, 8)  # the places of inputs

_Function: TypeAlias = Callable[[ArrayBuilder, ir.Value], ir.Value]


class LowerRecurrent(GraphPass):
    """A loop over products for each recurrent layer in FP32, where TensorRT would take TF32."""

    name = "lower_recurrent"
    title = "Writing recurrent layers as FP32 products"
    early = True  # its products are split later
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether TF32 is off, the backend uses it all the same, and the model has such layers."""
        if not hides_products(self.context):
            return False
        infer_around(model, (node for node in all_nodes(model.graph) if _is_recurrent(node)))
        return bool(_layers(model)) and not opset_problems(model, _OPSET)

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Write the layers out."""
        require_opset(model, _OPSET, "products in FP32")
        names, opset = NameAuthority(model), opset_of(model)
        layers = _layers(model)
        for node in layers:
            _write(ArrayBuilder(node, names, opset), partial(ArrayBuilder, node, names, opset))
        return {"nodes": dict(Counter(node.op_type for node in layers))}

    def preview(self, model: ir.Model) -> Mapping[str, Any]:
        """Counts of the layers."""
        return {"nodes": dict(Counter(node.op_type for node in _layers(model)))}


def _is_recurrent(node: ir.Node) -> bool:
    return node.op_type in _GATES and not node.domain


def _layers(model: ir.Model) -> list[ir.Node]:
    """The recurrent layers in FP32 whose activations are known."""
    return [
        node
        for node in all_nodes(model.graph)
        if _is_recurrent(node)
        and all(is_fp32(input_of(node, index)) for index in range(3))
        and all(name.lower() in _ACTIVATIONS for name in _activations(node))
    ]


# ---------------------------------------------------------------- activations


def _one(operator: str, *factors: str) -> Callable[..., ir.Value]:
    """An operator with the given attributes, as far as there are factors."""

    def apply(new: ArrayBuilder, x: ir.Value, *numbers: float) -> ir.Value:
        attributes = dict(zip(factors, numbers, strict=True))
        return new.add_with(operator, [x], 1, attributes, FLOAT)[0]

    return apply


def _affine(new: ArrayBuilder, x: ir.Value, a: float, b: float) -> ir.Value:
    return new.op("Add", new.op("Mul", x, new.number(a, x)), new.number(b, x))


def _scaled_tanh(new: ArrayBuilder, x: ir.Value, a: float, b: float) -> ir.Value:
    return new.op("Mul", new.op("Tanh", new.op("Mul", x, new.number(b, x))), new.number(a, x))


# Each with the defaults of its alpha and beta.
_ACTIVATIONS: Mapping[str, tuple[Callable[..., ir.Value], tuple[float, ...]]] = {
    "relu": (_one("Relu"), ()),
    "tanh": (_one("Tanh"), ()),
    "sigmoid": (_one("Sigmoid"), ()),
    "softsign": (_one("Softsign"), ()),
    "softplus": (_one("Softplus"), ()),
    "leakyrelu": (_one("LeakyRelu", "alpha"), (0.01,)),
    "thresholdedrelu": (_one("ThresholdedRelu", "alpha"), (1.0,)),
    "elu": (_one("Elu", "alpha"), (1.0,)),
    "hardsigmoid": (_one("HardSigmoid", "alpha", "beta"), (0.2, 0.5)),
    "affine": (_affine, (1.0, 0.0)),
    "scaledtanh": (_scaled_tanh, (1.0, 1.0)),
}


def _activations(node: ir.Node) -> Sequence[str]:
    default = _DEFAULTS[node.op_type] * _directions(node)
    return node.attributes.get_strings("activations", ()) or default


def _functions(node: ir.Node) -> list[_Function]:
    """The activations of all directions, with their factors and the clip of what they read."""
    given = [iter(node.attributes.get_floats(f"activation_{one}", ())) for one in ("alpha", "beta")]
    limit = node.attributes.get_float("clip", 0.0)
    functions: list[_Function] = []
    for name in _activations(node):
        function, defaults = _ACTIVATIONS[name.lower()]
        factors = [next(source, default) for source, default in zip(given, defaults, strict=False)]
        functions.append(partial(_activated, function, factors, limit))
    return functions


def _activated(
    function: Callable[..., ir.Value],
    factors: Sequence[float],
    limit: float,
    new: ArrayBuilder,
    x: ir.Value,
) -> ir.Value:
    if limit:
        x = new.op("Clip", x, new.number(-limit, x), new.number(limit, x))
    return function(new, x, *factors)


# ---------------------------------------------------------------- cells


class _Weights(NamedTuple):
    """Weights of one direction, as values outside of the loop.

    Attributes:
        w: Of the input, (input size, gates * hidden).
        r: Of the state, by groups of gates that read the same state.
        w_bias: Added to the product with the input, (gates * hidden); None for zeros.
        r_bias: Added to the product with the state, (gates * hidden); None for zeros.
        peepholes: Of the gates i, o and f, (hidden); None without.
    """

    w: ir.Value
    r: list[ir.Value]
    w_bias: ir.Value | None
    r_bias: ir.Value | None
    peepholes: list[ir.Value] | None


class _Cell(NamedTuple):
    """One step of a layer: what it computes with, and its size."""

    new: ArrayBuilder
    weights: _Weights
    functions: Sequence[_Function]
    hidden: int
    flag: bool

    def act(self, index: int, x: ir.Value) -> ir.Value:
        return self.functions[index](self.new, x)

    def parts(self, x: ir.Value, count: int) -> list[ir.Value]:
        """The gates that are joined in a value."""
        h = self.hidden
        return [self.new.slice(x, 1, i * h, (i + 1) * h) for i in range(count)]

    def from_state(self, group: int, state: ir.Value) -> ir.Value:
        # A product over one unit is one of numbers, of which TensorRT would write long sums.
        operator = "Mul" if self.hidden == 1 else "MatMul"
        made = self.new.op(operator, state, self.weights.r[group])
        bias = self.weights.r_bias
        return made if bias is None else self.new.op("Add", made, bias)


def _rnn(cell: _Cell, x: ir.Value, state: Sequence[ir.Value]) -> list[ir.Value]:
    return [cell.act(0, cell.new.op("Add", x, cell.from_state(0, state[0])))]


def _gru(cell: _Cell, x: ir.Value, state: Sequence[ir.Value]) -> list[ir.Value]:
    new, (h,) = cell.new, state
    x_z, x_r, x_h = cell.parts(x, 3)
    if cell.flag:  # linear_before_reset
        h_z, h_r, h_h = cell.parts(cell.from_state(0, h), 3)
    else:
        h_z, h_r = cell.parts(cell.from_state(0, h), 2)
    z = cell.act(0, new.op("Add", x_z, h_z))
    r = cell.act(0, new.op("Add", x_r, h_r))
    given = new.op("Mul", r, h_h) if cell.flag else cell.from_state(1, new.op("Mul", r, h))
    candidate = cell.act(1, new.op("Add", x_h, given))
    # The definition, so that z of 1 leaves the state as it is.
    rest = new.op("Mul", new.op("Sub", new.number(1, h), z, kind=FLOAT), candidate)
    return [new.op("Add", rest, new.op("Mul", z, h))]


def _lstm(cell: _Cell, x: ir.Value, state: Sequence[ir.Value]) -> list[ir.Value]:
    new, (h, c) = cell.new, state
    i, o, f, g = cell.parts(new.op("Add", x, cell.from_state(0, h)), 4)

    def seen(gate: ir.Value, index: int, c: ir.Value) -> ir.Value:
        if cell.weights.peepholes is None:
            return gate
        return new.op("Add", gate, new.op("Mul", cell.weights.peepholes[index], c))

    i = cell.act(0, seen(i, 0, c))
    # input_forget
    f = new.op("Sub", new.number(1, i), i, kind=FLOAT) if cell.flag else cell.act(0, seen(f, 2, c))
    c = new.op("Add", new.op("Mul", f, c), new.op("Mul", i, cell.act(1, g)))
    o = cell.act(0, seen(o, 1, c))
    return [new.op("Mul", o, cell.act(2, c)), c]


_CELLS = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}
_FLAGS = {"GRU": "linear_before_reset", "LSTM": "input_forget", "RNN": "none"}


# ---------------------------------------------------------------- layers


def _directions(node: ir.Node) -> int:
    return 2 if node.attributes.get_string("direction", "") == "bidirectional" else 1


def _write(new: ArrayBuilder, inside: Callable[[], ArrayBuilder]) -> None:
    node = new.node
    layout, count = node.attributes.get_int("layout", 0), _directions(node)
    functions, running = _functions(node), _running(new, steps_axis=layout)
    x = new.op("Transpose", node.inputs[0], perm=[1, 0, 2]) if layout else node.inputs[0]
    assert x is not None  # noqa: S101  # for the type checker
    every = len(functions) // count
    ys, finals = [], []
    for d in range(count):
        backwards = d == 1 or node.attributes.get_string("direction", "") == "reverse"
        own = functions[d * every :][:every]
        y, final = _direction(new, inside(), d, x, own, running, backwards=backwards)
        y = new.op("Transpose", y, perm=[1, 0, 2]) if layout else y
        ys.append(new.unsqueeze(y, [1 + layout]))
        finals.append([new.unsqueeze(one, [layout]) for one in final])
    last = [_joined(new, one, layout) for one in zip(*finals, strict=True)]
    new.finish(_joined(new, ys, 1 + layout), *last)


def _joined(new: ArrayBuilder, parts: Sequence[ir.Value], axis: int) -> ir.Value:
    return parts[0] if len(parts) == 1 else new.op("Concat", *parts, axis=axis)


def _running(new: ArrayBuilder, steps_axis: int) -> ir.Value | None:
    """Which sequences go on at each step, (steps, batch, 1), as 0 and 1; None for all."""
    lengths = input_of(new.node, _LENGTHS)
    if lengths is None:
        return None
    steps = new.squeeze(new.extent(new.node.inputs[0], steps_axis), [0])
    places = new.op("Range", np.array(0), steps, np.array(1), kind=INT64)
    column = new.unsqueeze(places, [1])
    goes_on = new.op("Less", column, new.cast(lengths, INT64), kind=BOOL)
    return new.unsqueeze(new.cast(goes_on, FLOAT), [2])


def _direction(
    new: ArrayBuilder,
    inside: ArrayBuilder,
    d: int,
    x: ir.Value,
    functions: Sequence[_Function],
    running: ir.Value | None,
    *,
    backwards: bool,
) -> tuple[ir.Value, list[ir.Value]]:
    """All states, (steps, batch, hidden), and the last ones, (batch, hidden), of a direction."""
    node = new.node
    hidden, flag = _hidden(node), bool(node.attributes.get_int(_FLAGS[node.op_type], 0))
    weights = _weights(new, d, hidden, apart=flag and node.op_type == "GRU")
    from_x = new.op("MatMul", x, weights.w)
    if weights.w_bias is not None:
        from_x = new.op("Add", from_x, weights.w_bias)
    places = (_H, _C) if node.op_type == "LSTM" else (_H,)
    initial = [_initial(new, input_of(node, place), d, hidden) for place in places]
    scanned = [from_x] if running is None else [from_x, running]
    cell = _Cell(inside, weights, functions, hidden, flag)
    body = _body(cell, d, len(initial), masked=running is not None)
    attributes = {
        "body": body,
        "num_scan_inputs": len(scanned),
        "scan_input_directions": [int(backwards)] * len(scanned),
        "scan_output_directions": [int(backwards)],
    }
    *final, y = new.add_with("Scan", [*initial, *scanned], len(initial) + 1, attributes, FLOAT)
    return y, final


def _hidden(node: ir.Node) -> int:
    weights = node.inputs[2]
    last = weights.shape[-1] if weights is not None and weights.shape else 0
    return node.attributes.get_int("hidden_size", last if isinstance(last, int) else 0)


def _weights(new: ArrayBuilder, d: int, hidden: int, *, apart: bool) -> _Weights:
    """The weights of a direction; ``apart``: those of the state have their own bias."""
    node, size = new.node, hidden * _GATES[new.node.op_type]
    # A GRU resets the state that its last gate reads, or its product with it.
    bounds = [0, 2 * hidden, size] if node.op_type == "GRU" and not apart else [0, size]
    r = [_part(new, _R, d, *pair, transposed=True) for pair in pairwise(bounds)]
    w = _part(new, _W, d, 0, size, transposed=True)
    w_bias, r_bias = None, None
    if input_of(node, _B) is not None:
        w_bias, r_bias = _part(new, _B, d, 0, size), _part(new, _B, d, size, 2 * size)
        if not apart:
            w_bias, r_bias = new.op("Add", w_bias, r_bias), None
    peepholes = None
    if input_of(node, _PEEPHOLES) is not None:
        steps = range(0, 3 * hidden, hidden)
        peepholes = [_part(new, _PEEPHOLES, d, one, one + hidden) for one in steps]
    return _Weights(w, r, w_bias, r_bias, peepholes)


def _part(
    new: ArrayBuilder, place: int, d: int, start: int, end: int, *, transposed: bool = False
) -> ir.Value:
    """Some rows of a weight of a direction, a constant where the weight is one."""
    value = new.node.inputs[place]
    tensor = None if value is None else constant_of(value)
    if tensor is not None:
        rows = tensor.numpy()[d, start:end]
        return new.constant(np.ascontiguousarray(rows.T if transposed else rows))
    made = new.slice(new.op("Gather", value, np.array(d), axis=0), 0, start, end)
    return new.op("Transpose", made, perm=[1, 0]) if transposed else made


def _initial(new: ArrayBuilder, state: ir.Value | None, d: int, hidden: int) -> ir.Value:
    """The state before the first step, (batch, hidden)."""
    layout = new.node.attributes.get_int("layout", 0)
    if state is not None:
        return new.op("Gather", state, np.array(d), axis=layout)
    batch = new.extent(new.node.inputs[0], 1 - layout)
    return new.op("Expand", np.zeros(1, np.float32), new.joined([batch, hidden]))


def _body(cell: _Cell, d: int, count: int, *, masked: bool) -> ir.Graph:
    new, node = cell.new, cell.new.node

    def given(name: str) -> ir.Value:
        return new.parameter(name, FLOAT)

    states = [given(f"state_{index}") for index in range(count)]
    x, running = given("step"), given("running") if masked else None
    made = _CELLS[node.op_type](cell, x, states)
    y = made[0]
    if running is not None:
        goes_on = new.op("Greater", running, new.number(0.5, x), kind=BOOL)
        y = new.op("Where", goes_on, y, new.number(0, x), kind=FLOAT)
        pairs = zip(made, states, strict=True)
        made = [new.op("Where", goes_on, one, old, kind=FLOAT) for one, old in pairs]
    else:
        y = new.op("Identity", y)
    inputs = [*states, x, *([] if running is None else [running])]
    for one in new.nodes:  # other names than those of the nodes outside
        one.name = f"{one.name}__of_step_{d}" if one.name else None
    return ir.Graph(inputs, [*made, y], nodes=new.nodes, name=f"{node.name or node.op_type}__step")
