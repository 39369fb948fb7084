"""What adds an operator with random attributes to a random graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from fuzzing.graphs import Graph, RejectedNodeError, Template, Value

__all__ = ["TEMPLATES"]

TEMPLATES: dict[str, tuple[Template, float]] = {}
"""Templates with their weights."""

_INT_MAX = 2**31 - 1


def _template(weight: float = 1.0, since: int = 1) -> Callable[[Template], Template]:
    """Register a template, named after its operator, for opsets from ``since``."""

    def register(function: Template) -> Template:
        def guarded(g: Graph) -> None:
            if g.opset < since:
                raise RejectedNodeError
            function(g)

        TEMPLATES[function.__name__.strip("_")] = guarded, weight
        return function

    return register


# ---------------------------------------------------------------- elementwise

_ANY = "Abs Asinh Atan Cos Erf HardSwish Identity Neg Relu Sigmoid Sin Softplus Softsign Tanh"
_JUMPING = "Ceil Floor Round Sign"
_UNIT = "Acos Asin Atanh Cosh Exp Sinh Tan"
_POSITIVE = "Log Sqrt Reciprocal"
_SINCE = {"HardSwish": 14, "Mish": 18, "Gelu": 20, "Swish": 24}


def _unary(operator: str, weight: float, prepare: Callable[[Graph, Value], Value]) -> None:
    def add(g: Graph) -> None:
        g.emit(operator, [prepare(g, g.pick())])

    add.__name__ = operator
    _template(weight, _SINCE.get(operator, 1))(add)


def _as_is(g: Graph, value: Value) -> Value:  # noqa: ARG001  # as _bounded
    return value


def _bounded(g: Graph, value: Value) -> Value:
    """Values between -0.9 and 0.9."""
    if np.abs(value.arrays[0]).max() < 0.95 and np.abs(value.arrays[1]).max() < 0.95:
        return value
    return g.emit("Mul", [g.emit("Tanh", [value]), g.constant(np.float32(0.9))])


def _positive(g: Graph, value: Value) -> Value:
    """Values of at least 0.3."""
    if value.arrays[0].min() > 0.25 and value.arrays[1].min() > 0.25:
        return value
    return g.emit("Add", [g.emit("Abs", [value]), g.constant(np.float32(0.3))])


for _name in _ANY.split():
    _unary(_name, 0.5, _as_is)
for _name in ("Mish",):
    _unary(_name, 0.5, _as_is)
for _name in _JUMPING.split():
    _unary(_name, 0.25, _as_is)
for _name in _UNIT.split():
    _unary(_name, 0.35, _bounded)
for _name in _POSITIVE.split():
    _unary(_name, 0.5, _positive)


@_template(0.3)
def _acosh(g: Graph) -> None:
    g.emit("Acosh", [g.emit("Add", [_positive(g, g.pick()), g.constant(np.float32(1))])])


@_template(0.5, 20)
def _gelu(g: Graph) -> None:
    g.emit("Gelu", [g.pick()], approximate=g.choose("none", "tanh"))


def _with_attributes(operator: str, **ranges: tuple[float, float]) -> None:
    def add(g: Graph) -> None:
        attributes = {k: g.rng.uniform(*r) for k, r in ranges.items() if g.chance(0.7)}
        g.emit(operator, [g.pick()], **attributes)

    add.__name__ = operator
    _template(0.4)(add)


_with_attributes("Elu", alpha=(0.1, 2))
_with_attributes("Celu", alpha=(0.3, 2))
_with_attributes("Selu", alpha=(0.5, 2), gamma=(0.5, 2))
_with_attributes("LeakyRelu", alpha=(-0.5, 0.9))
_with_attributes("HardSigmoid", alpha=(0.1, 0.5), beta=(0.2, 0.8))
_with_attributes("ThresholdedRelu", alpha=(0.1, 1.5))
_with_attributes("Shrink", lambd=(0.1, 1), bias=(-0.5, 0.5))


@_template()
def _clip(g: Graph) -> None:
    low, high = sorted(g.rng.uniform(-2, 2) for _ in range(2))
    lowest = g.constant(np.float32(low)) if g.chance(0.8) else None
    highest = g.constant(np.float32(high)) if g.chance(0.8) else None
    g.emit("Clip", [g.pick(), lowest, highest])


@_template()
def _prelu(g: Graph) -> None:
    x = g.pick()
    slope = g.floats(*_some_ones(g, x)) if g.chance(0.7) else g.floats(1)
    g.emit("PRelu", [x, slope])


def _some_ones(g: Graph, x: Value) -> list[int]:
    """A shape that broadcasts to that of a value."""
    shape = [e if x.is_static(a) and g.chance(0.7) else 1 for a, e in enumerate(x.shape)]
    return shape[g.rng.randrange(len(shape)) :] if shape and g.chance(0.4) else shape


def _partner(g: Graph, x: Value) -> Value:
    """A value or constant that broadcasts with another value."""

    def fits(v: Value) -> bool:
        try:
            shapes = [
                np.broadcast_shapes(a.shape, b.shape)
                for a, b in zip(x.arrays, v.arrays, strict=True)
            ]
        except ValueError:
            return False
        return v.dtype == x.dtype and len(shapes) == 2

    if g.chance(0.7):
        return g.pick(x.dtype.kind, fits)
    if x.dtype.kind == "f":
        return g.floats(*_some_ones(g, x))
    if x.dtype.kind == "b":
        return g.constant(np.array(g.chance(0.5)))
    return g.constant(np.array(g.rng.randint(1, 4), x.dtype))


def _binary(operator: str, weight: float, kinds: str = "f") -> None:
    def add(g: Graph) -> None:
        x = g.pick(kinds)
        y = _partner(g, x)
        if operator == "Div":
            y = (
                _positive(g, y)
                if x.dtype.kind == "f"
                else g.constant(np.array(g.rng.randint(1, 4), x.dtype))
            )
        g.emit(operator, [x, y] if operator == "Div" or g.chance(0.7) else [y, x])

    add.__name__ = operator
    _template(weight)(add)


for _name in ("Add", "Mul", "Sub"):
    _binary(_name, 2.0, "fffi")
_binary("Div", 1.0, "ffi")
for _name in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual"):
    _binary(_name, 0.3, "fi")
_binary("Equal", 0.2, "ib")
for _name in ("And", "Or", "Xor"):
    _binary(_name, 0.3, "b")


@_template(0.3)
def _not(g: Graph) -> None:
    g.emit("Not", [g.pick("b")])


def _bitwise(operator: str) -> None:
    def add(g: Graph) -> None:
        x = g.pick("i")
        g.emit(operator, [x] if operator == "BitwiseNot" else [x, _partner(g, x)])

    add.__name__ = operator
    _template(0.15, 18)(add)


for _name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"):
    _bitwise(_name)


@_template(0.5)
def _pow(g: Graph) -> None:
    exponent = g.constant(np.float32(g.choose(2, 3, 0.5, -1, 1.7)))
    whole = float(exponent.arrays[0]) in (2, 3)
    x = g.pick() if whole else _positive(g, g.pick())
    g.emit("Pow", [x, exponent])


@_template(0.4)
def _mod(g: Graph) -> None:
    if g.chance(0.5):
        x = g.pick("i")
        g.emit("Mod", [x, g.constant(np.array(g.rng.randint(2, 5), x.dtype))], fmod=g.choose(0, 1))
    else:
        g.emit("Mod", [g.pick(), g.constant(np.float32(g.rng.uniform(0.5, 3)))], fmod=1)


def _variadic(operator: str) -> None:
    def add(g: Graph) -> None:
        x = g.pick()
        g.emit(operator, [x, *(_partner(g, x) for _ in range(g.choose(0, 1, 1, 2)))])

    add.__name__ = operator
    _template(0.6)(add)


for _name in ("Max", "Min", "Mean", "Sum"):
    _variadic(_name)


@_template()
def _where(g: Graph) -> None:
    x = g.pick()
    y = _partner(g, x)
    if g.chance(0.5):
        condition = g.emit(
            "Greater", [_partner(g, x), g.constant(np.float32(g.rng.uniform(-1, 1)))]
        )
    else:
        condition = g.pick("b")
    g.emit("Where", [condition, x, y])


@_template(0.3)
def _isnan(g: Graph) -> None:
    g.emit("IsNaN", [g.pick()])


@_template(0.3)
def _isinf(g: Graph) -> None:
    g.emit("IsInf", [g.pick()], detect_negative=g.choose(0, 1), detect_positive=g.choose(0, 1))


_CASTS = (TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)


@_template(0.7)
def _cast(g: Graph) -> None:
    x = g.pick("fib")
    to = TensorProto.FLOAT if x.dtype.kind in "ib" and g.chance(0.6) else g.choose(*_CASTS)
    y = g.emit("Cast", [x], to=to)
    if y.dtype.kind != "f" and g.chance(0.5):
        g.emit("Cast", [y], to=TensorProto.FLOAT)


@_template(0.2, 15)
def _castlike(g: Graph) -> None:
    g.emit("CastLike", [g.pick("ib"), g.pick("f")])


@_template(0.2)
def _dropout(g: Graph) -> None:
    g.emit("Dropout", [g.pick(), g.constant(np.float32(0.3))] if g.chance(0.5) else [g.pick()])


# ---------------------------------------------------------------- reductions

_REDUCTIONS = "ReduceMax ReduceMin ReduceMean ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum"
_REDUCTIONS += " ReduceLogSumExp ReduceSumSquare"


def _some_axes(g: Graph, x: Value) -> list[int]:
    if not x.rank:
        raise RejectedNodeError
    count = g.rng.randint(1, x.rank)
    axes = sorted(g.rng.sample(range(x.rank), min(count, g.choose(1, 2, 2, 5))))
    return [a - x.rank if g.chance(0.2) else a for a in axes]


def _reduction(operator: str) -> None:
    def add(g: Graph) -> None:
        x = g.pick("fffi" if operator in ("ReduceSum", "ReduceMax", "ReduceMin") else "f")
        if operator == "ReduceProd":
            x = _bounded(g, x)
        elif operator == "ReduceLogSum":
            x = _positive(g, x)
        axes, keepdims = _some_axes(g, x), g.choose(0, 1)
        attributes: dict[str, Any] = {"keepdims": keepdims}
        if g.chance(0.1):
            g.emit(operator, [x], **attributes)
        elif operator == "ReduceSum" or g.opset >= 18:
            if g.chance(0.1):
                attributes["noop_with_empty_axes"] = g.choose(0, 1)
            g.emit(operator, [x, g.ints(axes)], **attributes)
        else:
            g.emit(operator, [x], axes=axes, **attributes)

    add.__name__ = operator
    _template(1.0)(add)


for _name in _REDUCTIONS.split():
    _reduction(_name)


@_template(2.0)
def _softmax(g: Graph) -> None:
    x = g.pick()
    g.emit("Softmax", [x], axis=g.axis(x))


@_template(1.0)
def _logsoftmax(g: Graph) -> None:
    x = g.pick()
    g.emit("LogSoftmax", [x], axis=g.axis(x))


@_template(0.2)
def _hardmax(g: Graph) -> None:
    x = g.pick()
    g.emit("Hardmax", [x], axis=g.axis(x))


def _argument(operator: str) -> None:
    def add(g: Graph) -> None:
        x = g.pick()
        last = g.choose(0, 1) if g.chance(0.2) else 0
        g.emit(operator, [x], axis=g.axis(x), keepdims=g.choose(0, 1), select_last_index=last)

    add.__name__ = operator
    _template(0.4)(add)


_argument("ArgMax")
_argument("ArgMin")


@_template(0.8)
def _topk(g: Graph) -> None:
    x = g.pick()
    axis = g.axis(x)
    k = g.rng.randint(1, min(array.shape[axis] for array in x.arrays))
    g.emit_all("TopK", [x, g.ints([k])], 2, axis=axis, largest=g.choose(0, 1), sorted=1)


@_template(1.2)
def _cumsum(g: Graph) -> None:
    x = g.pick("fffi")
    axis = g.constant(np.array(g.axis(x), g.choose(np.int64, np.int32)))
    g.emit("CumSum", [x, axis], exclusive=g.choose(0, 0, 1), reverse=g.choose(0, 0, 1))


# ---------------------------------------------------------------- norms


@_template(1.2)
def _instancenormalization(g: Graph) -> None:
    x = g.of_rank(3, 4, 4, 5)
    channels = x.extent(1)
    scale, bias = g.floats(channels), g.floats(channels)
    g.emit("InstanceNormalization", [x, scale, bias], epsilon=g.choose(1e-5, 1e-3))


@_template(1.2, 18)
def _groupnormalization(g: Graph) -> None:
    x = g.of_rank(3, 4, 4)
    channels = x.extent(1)
    groups = g.choose(*[d for d in (1, 2, 4, channels) if channels % d == 0])
    size = channels if g.opset >= 21 else groups
    g.emit("GroupNormalization", [x, g.floats(size), g.floats(size)], num_groups=groups)


@_template(1.5, 17)
def _layernormalization(g: Graph) -> None:
    x = g.pick()
    axis = -1 if g.chance(0.7) else g.axis(x)
    shape = [x.extent(a) for a in range(axis % x.rank, x.rank)]
    bias = [g.floats(*shape)] if g.chance(0.7) else []
    g.emit("LayerNormalization", [x, g.floats(*shape), *bias], axis=axis, epsilon=1e-3)


@_template(1.2, 23)
def _rmsnormalization(g: Graph) -> None:
    x = g.pick()
    g.emit("RMSNormalization", [x, g.floats(x.extent(x.rank - 1))], axis=-1, epsilon=1e-3)


@_template(0.8, 14)
def _batchnormalization(g: Graph) -> None:
    x = g.of_rank(2, 3, 4, 4, 5)
    c = x.extent(1)
    variance = g.constant(g.generator.uniform(0.3, 2, c).astype(np.float32))
    g.emit("BatchNormalization", [x, g.floats(c), g.floats(c), g.floats(c), variance], epsilon=1e-4)


@_template(0.7)
def _lpnormalization(g: Graph) -> None:
    x = g.pick()
    g.emit("LpNormalization", [x], axis=g.axis(x), p=g.choose(1, 2))


@_template(0.4)
def _meanvariancenormalization(g: Graph) -> None:
    x = g.pick()
    axes = sorted(a % x.rank for a in _some_axes(g, x))
    g.emit("MeanVarianceNormalization", [x], axes=axes)


@_template(0.5)
def _lrn(g: Graph) -> None:
    x = g.of_rank(4)
    g.emit(
        "LRN", [x], size=g.choose(1, 3, 5), alpha=g.rng.uniform(1e-4, 0.1), bias=g.choose(1.0, 2.0)
    )


# ---------------------------------------------------------------- movement


@_template(1.5)
def _transpose(g: Graph) -> None:
    x = g.pick("ffffib")
    perm = list(range(x.rank))
    g.rng.shuffle(perm)
    if g.chance(0.9):
        g.emit("Transpose", [x], perm=perm)
    else:
        g.emit("Transpose", [x])


@_template(1.8)
def _reshape(g: Graph) -> None:
    x = g.pick("ffffib")
    dynamic = [a for a in range(x.rank) if not x.is_static(a)]
    head = [0] if dynamic == [0] and g.chance(0.6) else []
    rest = [e for a, e in enumerate(x.shape) if a not in dynamic]
    size = int(np.prod(rest or [1]))
    factors = []
    for _ in range(g.choose(0, 1, 2, 3)):
        divisors = [d for d in (1, 2, 3, 4, 5, 7, 8, 16) if size % d == 0]
        factors.append(g.rng.choice(divisors))
        size //= factors[-1]
    free = [-1] if dynamic or g.chance(0.5) else [size]
    if head and dynamic:
        free = [size] if g.chance(0.5) else [-1]
    tail = [*factors, *free]
    g.rng.shuffle(tail)
    g.emit("Reshape", [x, g.ints([*head, *tail])])


@_template(0.4)
def _flatten(g: Graph) -> None:
    x = g.pick()
    g.emit("Flatten", [x], axis=g.rng.randint(0, x.rank))


@_template(0.7)
def _unsqueeze(g: Graph) -> None:
    x = g.pick("ffib")
    g.emit("Unsqueeze", [x, g.ints([g.rng.randint(0, x.rank)])])


@_template(0.7)
def _squeeze(g: Graph) -> None:
    x = g.pick("fffib", lambda v: any(v.is_static(a) and v.shape[a] == 1 for a in range(v.rank)))
    axes = [a for a, e in enumerate(x.shape) if e == 1 and x.is_static(a)]
    g.emit("Squeeze", [x, g.ints([g.rng.choice(axes)])])


@_template(1.0)
def _concat(g: Graph) -> None:
    x = g.pick("fffi")
    axis = g.axis(x)

    def fits(v: Value) -> bool:
        return (
            v.dtype == x.dtype
            and v.rank == x.rank
            and all(
                all(
                    i == axis % x.rank or i >= a.ndim or a.shape[i] == b.shape[i]
                    for i in range(a.ndim)
                )
                for a, b in zip(v.arrays, x.arrays, strict=True)
            )
        )

    g.emit(
        "Concat", [x, *(g.pick(x.dtype.kind, fits) for _ in range(g.choose(1, 1, 2)))], axis=axis
    )


@_template(1.0)
def _split(g: Graph) -> None:
    x = g.pick("fffi")
    axis = g.axis(x)
    extent = x.extent(axis)
    if extent < 2:
        raise RejectedNodeError
    first = g.rng.randint(1, extent - 1)
    if g.opset >= 18 and g.chance(0.3):
        g.emit_all("Split", [x], 2, axis=axis, num_outputs=2)
    else:
        g.emit_all("Split", [x, g.ints([first, extent - first])], 2, axis=axis)


@_template(1.2)
def _slice(g: Graph) -> None:
    x = g.pick("fffib")
    axes = sorted(g.rng.sample(range(x.rank), g.rng.randint(1, min(2, x.rank)))) if x.rank else []
    starts: list[int] = []
    ends: list[int] = []
    steps: list[int] = []
    for axis in axes:
        extent = min(array.shape[axis] for array in x.arrays)
        start, step = g.rng.randrange(extent), g.choose(1, 1, 1, 2, -1)
        if step < 0:
            starts, ends = [*starts, -1], [*ends, -_INT_MAX]
        else:
            starts = [*starts, start]
            ends = [*ends, g.choose(_INT_MAX, extent, start + 1)]
        steps.append(step)
    g.emit("Slice", [x, g.ints(starts), g.ints(ends), g.ints(axes), g.ints(steps)])


@_template(1.0)
def _gather(g: Graph) -> None:
    x = g.pick("fffi")
    axis = g.axis(x)
    extent = min(array.shape[axis] for array in x.arrays)
    shape = g.choose((), (1,), (3,), (2, 2))
    low = -extent if g.chance(0.3) else 0
    indices = g.generator.integers(low, extent, shape)
    g.emit("Gather", [x, g.constant(np.asarray(indices, g.choose(np.int64, np.int32)))], axis=axis)


@_template(0.5)
def _gatherelements(g: Graph) -> None:
    x = g.pick()
    axis = g.axis(x)
    shape = [
        x.extent(a) if a == axis % x.rank else min(b.shape[a] for b in x.arrays)
        for a in range(x.rank)
    ]
    g.emit(
        "GatherElements", [x, g.constant(g.generator.integers(0, shape[axis], shape))], axis=axis
    )


@_template(0.5)
def _gathernd(g: Graph) -> None:
    x = g.pick("f", lambda v: v.rank > 1)
    depth = g.rng.randint(1, min(2, x.rank))
    shape = g.choose((1,), (3,), (2, 2))
    columns = [
        g.generator.integers(0, min(b.shape[a] for b in x.arrays), shape) for a in range(depth)
    ]
    g.emit("GatherND", [x, g.constant(np.stack(columns, -1).astype(np.int64))])


@_template(0.5, 16)
def _scatterelements(g: Graph) -> None:
    x = g.pick("f", lambda v: v.rank > 0)
    axis = g.axis(x)
    shape = [min(b.shape[a] for b in x.arrays) for a in range(x.rank)]
    extent = shape[axis]
    shape[axis] = g.rng.randint(1, extent)
    order = [
        g.generator.permutation(extent)[: shape[axis]]
        for _ in range(int(np.prod(shape)) // shape[axis])
    ]
    indices = np.moveaxis(
        np.array(order).reshape(
            [e for i, e in enumerate(shape) if i != axis % x.rank] + [shape[axis]]
        ),
        -1,
        axis,
    )
    kinds = ("none", "add", "mul") + (("max", "min") if g.opset >= 18 else ())
    g.emit(
        "ScatterElements",
        [x, g.constant(np.ascontiguousarray(indices, np.int64)), g.floats(*shape)],
        axis=axis,
        reduction=g.choose("none", *kinds),
    )


@_template(0.5)
def _scatternd(g: Graph) -> None:
    x = g.pick("f", lambda v: v.rank > 0)
    extent = min(b.shape[0] for b in x.arrays)
    rows = g.rng.randint(1, extent)
    indices = g.generator.permutation(extent)[:rows].reshape(rows, 1).astype(np.int64)
    updates = g.floats(rows, *(x.extent(a) for a in range(1, x.rank)))
    attributes = {"reduction": g.choose("none", "add", "mul")} if g.opset >= 16 else {}
    g.emit("ScatterND", [x, g.constant(indices), updates], **attributes)


@_template(0.8)
def _pad(g: Graph) -> None:
    x = g.pick("f", lambda v: v.rank > 0)
    mode = g.choose("constant", "constant", "reflect", "edge", *(["wrap"] if g.opset >= 19 else []))
    pads = [0] * (2 * x.rank)
    for axis in g.rng.sample(range(x.rank), min(2, x.rank)):
        room = min(b.shape[axis] for b in x.arrays) - 1
        for side in (axis, axis + x.rank):
            pads[side] = g.rng.randint(
                -1 if mode == "constant" and room > 2 else 0,
                min(2, room) if mode != "constant" else 2,
            )
    value = (
        [g.constant(np.float32(g.rng.uniform(-1, 1)))]
        if mode == "constant" and g.chance(0.6)
        else []
    )
    g.emit("Pad", [x, g.ints(pads), *value], mode=mode)


@_template(0.6)
def _expand(g: Graph) -> None:
    x = g.pick("ffi")
    shape = [g.choose(1, 2, 3) if e == 1 and x.is_static(a) else 1 for a, e in enumerate(x.shape)]
    lead = [g.choose(1, 2)] if g.chance(0.3) else []
    g.emit("Expand", [x, g.ints([*lead, *shape])])


@_template(0.5)
def _tile(g: Graph) -> None:
    x = g.pick("ffi")
    g.emit("Tile", [x, g.ints([g.choose(1, 1, 2, 3) for _ in range(x.rank)])])


@_template(0.6)
def _depthtospace(g: Graph) -> None:
    x = g.of_rank(4)
    block = g.choose(*[b for b in (1, 2, 3) if x.extent(1) % (b * b) == 0])
    g.emit("DepthToSpace", [x], blocksize=block, mode=g.choose("DCR", "CRD"))


@_template(0.5)
def _spacetodepth(g: Graph) -> None:
    x = g.of_rank(4)
    block = g.choose(*[b for b in (1, 2, 3) if x.extent(2) % b == 0 and x.extent(3) % b == 0])
    g.emit("SpaceToDepth", [x], blocksize=block)


@_template(0.5, 14)
def _trilu(g: Graph) -> None:
    x = g.pick("f", lambda v: v.rank > 1)
    inputs = [x, g.constant(np.array(g.rng.randint(-2, 2), np.int64))] if g.chance(0.6) else [x]
    g.emit("Trilu", inputs, upper=g.choose(0, 1))


@_template(0.3)
def _reversesequence(g: Graph) -> None:
    x = g.pick("f", lambda v: v.rank > 1)
    time = g.choose(0, 1)
    extent, batch = min(b.shape[time] for b in x.arrays), x.extent(1 - time)
    lengths = g.generator.integers(1, extent + 1, batch)
    g.emit("ReverseSequence", [x, g.constant(lengths)], time_axis=time, batch_axis=1 - time)


@_template(0.3)
def _onehot(g: Graph) -> None:
    x = g.pick("i")
    depth = g.constant(np.array(g.choose(3, 5), np.int64))
    values = g.constant(np.array([0.0, g.rng.uniform(0.5, 2)], np.float32))
    g.emit("OneHot", [x, depth, values], axis=g.choose(-1, 0, 1) if x.rank else -1)


@_template(0.2)
def _eyelike(g: Graph) -> None:
    g.emit("EyeLike", [g.of_rank(2)], k=g.rng.randint(-1, 2), dtype=TensorProto.FLOAT)


@_template(0.5)
def _shape(g: Graph) -> None:
    x = g.pick()
    bounds = {"start": g.rng.randrange(max(1, x.rank))} if g.opset >= 15 and g.chance(0.5) else {}
    y = g.emit("Shape", [x], **bounds)
    if g.chance(0.6):
        g.emit("Cast", [y], to=TensorProto.FLOAT)


@_template(0.2)
def _size(g: Graph) -> None:
    g.emit("Size", [g.pick()])


@_template(0.3)
def _constantofshape(g: Graph) -> None:
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [g.rng.uniform(-1, 1)])
    g.emit("ConstantOfShape", [g.emit("Shape", [g.pick()])], value=value)


@_template(0.3)
def _range(g: Graph) -> None:
    x = g.pick()
    limit = g.emit("Gather", [g.emit("Shape", [x]), g.constant(np.array(g.axis(x), np.int64))])
    y = g.emit("Range", [g.constant(np.array(0)), limit, g.constant(np.array(1))])
    if g.chance(0.6):
        g.emit("Cast", [y], to=TensorProto.FLOAT)


@_template(0.2)
def _nonzero(g: Graph) -> None:
    g.emit("NonZero", [g.emit("Greater", [g.pick(), g.constant(np.float32(0.5))])])


@_template(0.2)
def _compress(g: Graph) -> None:
    x = g.pick()
    axis = g.axis(x)
    keep = np.array([g.chance(0.6) for _ in range(x.extent(axis))])
    g.emit("Compress", [x, g.constant(keep)], axis=axis)


# ---------------------------------------------------------------- products


def _quantized(g: Graph, x: Value, *, axis: int | None = None) -> Value:
    """A Q/DQ pair behind a value, if the graph has those."""
    if not g.quantized:
        return x
    if axis is None:
        largest = max(float(np.abs(array).max()) for array in x.arrays)
        scale = np.array(max(largest, 1e-2) / 127, np.float32)
    else:
        others = tuple(a for a in range(x.rank) if a != axis)
        scale = (np.maximum(np.abs(x.arrays[0]).max(others), 1e-2) / 127).astype(np.float32)
    zero = g.constant(np.zeros(scale.shape, np.int8))
    step = g.constant(scale)
    attributes = {} if axis is None else {"axis": axis}
    y = g.emit("QuantizeLinear", [x, step, zero], **attributes)
    return g.emit("DequantizeLinear", [y, step, zero], **attributes)


def _weight(g: Graph, *shape: int, axis: int | None = 0) -> Value:
    fan = max(1, int(np.prod(shape[1:])))
    return _quantized(g, g.floats(*shape, scale=fan**-0.5), axis=axis)


@_template(2.5)
def _conv(g: Graph) -> None:
    x = g.of_rank(3, 4, 4, 4, 4, 5)
    channels, spatial = x.extent(1), x.rank - 2
    groups = g.choose(*[d for d in (1, 1, 2, channels) if channels % d == 0])
    outputs = groups * g.choose(1, 2, 4)
    kernel = [g.choose(1, 2, 3, 3) for _ in range(spatial)]
    attributes: dict[str, Any] = {"group": groups}
    if g.chance(0.8):
        attributes["kernel_shape"] = kernel
    _windows(g, attributes, kernel, dilations=True)
    bias = [g.floats(outputs)] if g.chance(0.6) else []
    weight = _weight(g, outputs, channels // groups, *kernel)
    g.emit("Conv", [_quantized(g, x), weight, *bias], **attributes)


def _windows(g: Graph, attributes: dict[str, Any], kernel: list[int], *, dilations: bool) -> None:
    """Random strides, padding and dilations."""
    spatial = len(kernel)
    if g.chance(0.4):
        attributes["strides"] = [g.choose(1, 2, 3) for _ in range(spatial)]
    if dilations and g.chance(0.25):
        attributes["dilations"] = [g.choose(1, 2) for _ in range(spatial)]
    if g.chance(0.2):
        attributes["auto_pad"] = g.choose("SAME_UPPER", "SAME_LOWER", "VALID")
    elif g.chance(0.7):
        attributes["pads"] = [
            g.rng.randint(0, kernel[i % spatial] // 2) for i in range(2 * spatial)
        ]


@_template(1.0)
def _convtranspose(g: Graph) -> None:
    x = g.of_rank(3, 4, 4, 4, 5)
    channels, spatial = x.extent(1), x.rank - 2
    groups = g.choose(*[d for d in (1, 1, 2, channels) if channels % d == 0])
    kernel = [g.choose(1, 2, 3, 4) for _ in range(spatial)]
    strides = [g.choose(1, 2, 3) for _ in range(spatial)]
    attributes: dict[str, Any] = {"group": groups, "strides": strides, "kernel_shape": kernel}
    if g.chance(0.5):
        attributes["pads"] = [g.rng.randint(0, (k - 1) // 2) for k in kernel] * 2
    if g.chance(0.3):
        attributes["output_padding"] = [g.rng.randrange(s) for s in strides]
    if g.chance(0.2):
        attributes["dilations"] = [g.choose(1, 2) for _ in range(spatial)]
    outputs = g.choose(1, 2, 3)
    bias = [g.floats(groups * outputs)] if g.chance(0.6) else []
    weight = g.floats(channels, outputs, *kernel, scale=0.4)
    g.emit("ConvTranspose", [x, weight, *bias], **attributes)


@_template(0.2, 19)
def _deformconv(g: Graph) -> None:
    x = g.of_rank(4)
    c, n = x.extent(1), x.extent(0)
    h, w = x.extent(2), x.extent(3)
    k = g.choose(1, 2, 3)
    if h < k or w < k:
        raise RejectedNodeError
    offset = g.floats(n, 2 * k * k, h - k + 1, w - k + 1, scale=0.5)
    g.emit("DeformConv", [x, _weight(g, 3, c, k, k), offset], kernel_shape=[k, k], pads=[0] * 4)


@_template(2.0)
def _matmul(g: Graph) -> None:
    x = g.pick("f", lambda v: v.rank > 0)

    def fits(v: Value) -> bool:
        if v.dtype != x.dtype or v.rank < 2 or x.rank < 2:
            return False
        return all(
            b.shape[-2] == a.shape[-1]
            and (b.ndim == 2 or (a.ndim == b.ndim and a.shape[:-2] == b.shape[:-2]))
            for a, b in zip(x.arrays, v.arrays, strict=True)
        )

    if g.chance(0.5):
        y = g.pick("f", fits)
    elif g.chance(0.3) and x.rank > 1:
        y = g.emit("Transpose", [x], perm=[*range(x.rank - 2), x.rank - 1, x.rank - 2])
    else:
        y = _weight(g, x.extent(x.rank - 1), g.choose(1, 3, 4, 8), axis=1)
    g.emit("MatMul", [_quantized(g, x), _quantized(g, y) if y.name.startswith(("x", "v")) else y])


@_template(1.0)
def _gemm(g: Graph) -> None:
    x = g.of_rank(2)
    left, right = g.choose(0, 1), g.choose(0, 1)
    inner, outputs = x.extent(0 if left else 1), g.choose(1, 3, 4, 8)
    weight = _weight(g, *((outputs, inner) if right else (inner, outputs)), axis=None)
    bias = [g.floats(*g.choose((outputs,), (1, outputs), (1,), ()))] if g.chance(0.6) else []
    attributes = (
        {"alpha": g.rng.uniform(0.3, 1.5), "beta": g.rng.uniform(0.3, 1.5)} if g.chance(0.4) else {}
    )
    g.emit("Gemm", [_quantized(g, x), weight, *bias], transA=left, transB=right, **attributes)


@_template(0.8)
def _einsum(g: Graph) -> None:
    x = g.of_rank(2, 3, 4)
    letters = "abcd"[: x.rank]
    if g.chance(0.4):
        kept = "".join(g.rng.sample(letters, g.rng.randint(1, x.rank)))
        g.emit("Einsum", [x], equation=f"{letters}->{kept}")
    elif g.chance(0.5):
        last = x.extent(x.rank - 1)
        equation = f"{letters},{letters[-1]}e->{letters[:-1]}e"
        g.emit("Einsum", [x, g.floats(last, 3, scale=last**-0.5)], equation=equation)
    else:
        other = letters[:-2] + "f" + letters[-1]
        equation = f"{letters},{other}->{letters[:-1]}f"
        y = g.pick("f", lambda v: v.rank == x.rank and v.arrays[0].shape[-1] == x.shape[-1])
        g.emit("Einsum", [x, y], equation=equation)


@_template(0.3)
def _det(g: Graph) -> None:
    x = g.of_rank(2, 3, 4)
    size = min(x.extent(x.rank - 1), x.extent(x.rank - 2), 4)
    axes = [x.rank - 2, x.rank - 1]
    g.emit("Det", [g.emit("Slice", [x, g.ints([0, 0]), g.ints([size, size]), g.ints(axes)])])


@_template(0.7, 23)
def _attention(g: Graph) -> None:
    x = g.of_rank(3, 4)
    heads = g.choose(*[h for h in (1, 2, 4) if x.extent(x.rank - 1) % h == 0])
    attributes: dict[str, Any] = (
        {} if x.rank == 4 else {"q_num_heads": heads, "kv_num_heads": heads}
    )
    if g.chance(0.4):
        attributes["is_causal"] = 1
    if g.chance(0.2):
        attributes["softcap"] = 2.0
    if g.chance(0.3):
        attributes["scale"] = g.rng.uniform(0.2, 1)
    g.emit("Attention", [x, x, g.emit("Mul", [x, g.constant(np.float32(0.7))])], **attributes)


# ---------------------------------------------------------------- windows and sampling


def _pool(operator: str) -> None:
    def add(g: Graph) -> None:
        x = g.of_rank(3, 4, 4, 4, 5)
        kernel = [g.choose(1, 2, 3, 3) for _ in range(x.rank - 2)]
        attributes: dict[str, Any] = {"kernel_shape": kernel}
        _windows(g, attributes, kernel, dilations=g.opset >= 19 or operator == "MaxPool")
        if operator != "LpPool" or g.opset >= 18:
            attributes["ceil_mode"] = g.choose(0, 0, 1)
        if operator == "AveragePool":
            attributes["count_include_pad"] = g.choose(0, 1)
        if operator == "LpPool":
            attributes["p"] = g.choose(1, 2, 3)
            if g.opset < 18:
                attributes.pop("dilations", None)
        if operator == "MaxPool" and g.chance(0.2):
            g.emit_all(operator, [x], 2, **attributes)
        else:
            g.emit(operator, [x], **attributes)

    add.__name__ = operator
    _template(1.0 if operator != "LpPool" else 0.4)(add)


for _name in ("MaxPool", "AveragePool", "LpPool"):
    _pool(_name)


def _global_pool(operator: str) -> None:
    def add(g: Graph) -> None:
        attributes = {"p": g.choose(1, 2, 3)} if operator == "GlobalLpPool" else {}
        g.emit(operator, [g.of_rank(3, 4, 4, 5)], **attributes)

    add.__name__ = operator
    _template(0.5)(add)


for _name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
    _global_pool(_name)


@_template(1.5)
def _resize(g: Graph) -> None:
    x = g.of_rank(3, 4, 4, 4, 5)
    mode = g.choose("nearest", "linear", "cubic") if x.rank == 4 else g.choose("nearest", "linear")
    modes = ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]
    if g.opset >= 19:
        modes.append("half_pixel_symmetric")
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": g.choose(*modes)}
    if mode == "nearest":
        attributes["nearest_mode"] = g.choose(
            "floor", "ceil", "round_prefer_floor", "round_prefer_ceil"
        )
    if mode == "cubic":
        attributes["cubic_coeff_a"] = g.choose(-0.75, -0.5)
        attributes["exclude_outside"] = g.choose(0, 0, 1)
    spatial = range(2, x.rank)
    if g.chance(0.5) and all(x.is_static(a) for a in spatial):
        head = [x.shape[0], x.shape[1]]
        if not x.is_static(0) or not x.is_static(1):
            head = []
        sizes = [max(1, x.shape[a] * g.choose(1, 2, 3) // g.choose(1, 1, 2)) for a in spatial]
        if head:
            g.emit("Resize", [x, None, None, g.ints([*head, *sizes])], **attributes)
        elif g.opset >= 18:
            g.emit("Resize", [x, None, None, g.ints(sizes)], axes=list(spatial), **attributes)
        else:
            raise RejectedNodeError
    else:
        scales = [g.choose(1.0, 2.0, 2.0, 0.5, 1.5) for _ in spatial]
        g.emit("Resize", [x, None, g.constant(np.array([1, 1, *scales], np.float32))], **attributes)


@_template(0.9, 16)
def _gridsample(g: Graph) -> None:
    x = g.of_rank(4)
    modes = ("linear", "nearest", "cubic") if g.opset >= 20 else ("bilinear", "nearest", "bicubic")
    h, w = g.choose(1, 3, 4), g.choose(2, 5)
    grid = (
        g.pick("f", lambda v: v.rank == 4 and v.arrays[0].shape[-1] == 2) if g.chance(0.1) else None
    )
    if grid is None:
        values = g.generator.uniform(-1.1, 1.1, (x.extent(0), h, w, 2)).astype(np.float32)
        grid = g.constant(values)
    g.emit(
        "GridSample",
        [x, grid],
        mode=g.choose(*modes),
        padding_mode=g.choose("zeros", "border", "reflection"),
        align_corners=g.choose(0, 1),
    )


@_template(0.2, 20)
def _affinegrid(g: Graph) -> None:
    theta = g.floats(2, 2, 3)
    g.emit(
        "AffineGrid",
        [theta, g.ints([2, 3, g.choose(2, 5), g.choose(3, 4)])],
        align_corners=g.choose(0, 1),
    )


@_template(0.3, 16)
def _roialign(g: Graph) -> None:
    x = g.of_rank(4)
    h, w = x.extent(2), x.extent(3)
    corners = g.generator.uniform(0, 0.5, (3, 2)) * [w, h]
    ends = corners + g.generator.uniform(0.3, 0.5, (3, 2)) * [w, h]
    boxes = g.constant(np.concatenate([corners, ends], 1).astype(np.float32))
    batches = g.ints(g.generator.integers(0, min(b.shape[0] for b in x.arrays), 3))
    g.emit(
        "RoiAlign",
        [x, boxes, batches],
        output_height=g.choose(1, 2, 3),
        output_width=g.choose(2, 3),
        sampling_ratio=g.choose(1, 2),
        mode=g.choose("avg", "avg", "max"),
        coordinate_transformation_mode=g.choose("half_pixel", "output_half_pixel"),
    )


@_template(0.2, 18)
def _col2im(g: Graph) -> None:
    columns = g.floats(2, 3 * 4, 9)
    g.emit("Col2Im", [columns, g.ints([4, 4]), g.ints([2, 2])])


# ---------------------------------------------------------------- recurrences and control flow


def _recurrent(operator: str, gates: int) -> None:
    def add(g: Graph) -> None:
        x = g.of_rank(3)
        size, hidden = x.extent(2), g.choose(1, 3, 4)
        direction = g.choose("forward", "reverse", "bidirectional")
        n = 2 if direction == "bidirectional" else 1
        inputs: list[Value | None] = [
            x,
            g.floats(n, gates * hidden, size, scale=size**-0.5),
            g.floats(n, gates * hidden, hidden, scale=hidden**-0.5),
        ]
        if g.chance(0.6):
            inputs.append(g.floats(n, 2 * gates * hidden, scale=0.3))
        attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
        if operator == "GRU":
            attributes["linear_before_reset"] = g.choose(0, 1)
        count = 3 if operator == "LSTM" else 2
        g.emit_all(operator, inputs, count, **attributes)

    add.__name__ = operator
    _template(0.4, 14)(add)


for _name, _gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    _recurrent(_name, _gates)


@_template(0.4)
def _if(g: Graph) -> None:
    x = g.pick()
    total = g.emit("ReduceSum", [x], keepdims=0)
    condition = g.emit("Greater", [total, g.constant(np.float32(0))])

    def branch(operator: str) -> onnx.GraphProto:
        info = helper.make_tensor_value_info(f"b_{operator}", TensorProto.FLOAT, [*[None] * x.rank])
        node = helper.make_node(operator, [x.name], [f"b_{operator}"], name=f"in_{operator}")
        return helper.make_graph([node], operator, [], [info])

    first, second = g.rng.sample(["Tanh", "Relu", "Neg", "Sigmoid"], 2)
    g.emit("If", [condition], captured=[x], then_branch=branch(first), else_branch=branch(second))


@_template(0.3)
def _loop(g: Graph) -> None:
    x = g.pick()
    infos = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, [*[None] * x.rank]),
    ]
    outputs = [
        helper.make_tensor_value_info("c_out", TensorProto.BOOL, []),
        helper.make_tensor_value_info("s_out", TensorProto.FLOAT, [*[None] * x.rank]),
    ]
    nodes = [
        helper.make_node("Identity", ["c"], ["c_out"], name="in_condition"),
        helper.make_node(g.choose("Sin", "Tanh", "Sigmoid"), ["s"], ["s_in"], name="in_function"),
        helper.make_node("Add", ["s_in", "s_in"], ["s_out"], name="in_sum"),
    ]
    body = helper.make_graph(nodes, "body", infos, outputs)
    trips, go = g.constant(np.array(g.choose(1, 2, 3), np.int64)), g.constant(np.array(True))
    g.emit("Loop", [trips, go, x], body=body)
