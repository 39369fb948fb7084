"""A random graph under construction.

Each node is evaluated as it is added, by ``onnx.reference``, for two sets of inputs. Extents that
differ between the two are dynamic dimensions. A node that cannot be evaluated for both, or whose
values would make any comparison meaningless, is not added.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

__all__ = [
    "Array",
    "Graph",
    "RandomModel",
    "RejectedNodeError",
    "Template",
    "Value",
    "random_model",
]

Array = np.ndarray[Any, Any]
Pair = tuple[Array, Array]
Template = Callable[["Graph"], None]

_EXTENTS = (1, 2, 2, 3, 4, 4, 5, 7, 8, 16)
_LARGEST = 300.0  # FP16 holds sums and squares of such values
_MOST_ELEMENTS = 16_384
_MOST_OUTPUTS = 5
_SHARE_OF_OUTPUTS = 0.08  # of the values that nodes read


class RejectedNodeError(Exception):
    """The node cannot be evaluated, or its values are of no use."""


@dataclass(frozen=True)
class Value:
    """A value of a graph.

    Attributes:
        name: Its name.
        arrays: What it is for the two sets of inputs.
    """

    name: str
    arrays: Pair

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape for the first set."""
        return tuple(self.arrays[0].shape)

    @property
    def rank(self) -> int:
        """Its rank."""
        return self.arrays[0].ndim

    @property
    def dtype(self) -> Any:
        """Its element type."""
        return self.arrays[0].dtype

    def is_static(self, axis: int) -> bool:
        """Whether the extent is the same for both sets."""
        return bool(self.arrays[0].shape[axis] == self.arrays[1].shape[axis])

    def extent(self, axis: int) -> int:
        """The extent of a static axis.

        Raises:
            RejectedNodeError: the axis is dynamic.
        """
        if not self.is_static(axis):
            raise RejectedNodeError
        return int(self.arrays[0].shape[axis])


@dataclass(frozen=True)
class RandomModel:
    """A random model.

    Attributes:
        model: The model.
        inputs: Two sets of inputs.
        expected: The outputs for each, by ``onnx.reference``.
        dims: For each dynamic dimension its extents in the two sets.
    """

    model: onnx.ModelProto
    inputs: tuple[dict[str, Array], dict[str, Array]]
    expected: tuple[dict[str, Array], dict[str, Array]]
    dims: dict[str, tuple[int, int]]


@dataclass
class Graph:
    """A graph under construction.

    Attributes:
        rng: Source of choices.
        generator: Source of values.
        opset: Version of the default operator set.
        quantized: Whether Q/DQ pairs go in front of products.
        nodes: The nodes.
        constants: The initializers.
        inputs: The inputs.
        values: Inputs and outputs of nodes, oldest first.
        dims: For each dynamic dimension its extents for the two sets of inputs.
    """

    rng: random.Random
    generator: np.random.Generator
    opset: int
    quantized: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    dims: dict[str, tuple[int, int]] = field(default_factory=dict)
    axes: dict[str, list[str | int]] = field(default_factory=dict)

    # ------------------------------------------------------------ choices

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.rng.random() < probability

    def choose(self, *items: Any) -> Any:
        """One of the items."""
        return self.rng.choice(items)

    def pick(self, kind: str = "f", wanted: Callable[[Value], bool] | None = None) -> Value:
        """A value of one of the kinds of NumPy types, later ones more often.

        Raises:
            RejectedNodeError: there is none.
        """
        found = [v for v in self.values if v.dtype.kind in kind and (wanted is None or wanted(v))]
        if not found:
            raise RejectedNodeError
        return found[-1] if self.chance(0.45) else self.rng.choice(found)

    def of_rank(self, *ranks: int, kind: str = "f") -> Value:
        """A value of one of these ranks; where there is none, another one reshaped."""
        wanted = self.rng.choice(ranks)
        having = [v for v in self.values if v.dtype.kind in kind and v.rank in ranks]
        if having and self.chance(0.8):
            return having[-1] if self.chance(0.45) else self.rng.choice(having)
        value = self.pick(kind)
        while value.rank < wanted:
            axis = self.rng.randrange(value.rank + 1)
            value = self.emit("Unsqueeze", [value, self.ints([axis])])
        if value.rank > wanted:
            kept = [int(value.shape[a]) if value.is_static(a) else 0 for a in range(wanted - 1)]
            value = self.emit("Reshape", [value, self.ints([*kept, -1])])
        return value

    def axis(self, value: Value, *, negative: bool = True) -> int:
        """An axis of a value.

        Raises:
            RejectedNodeError: it has none.
        """
        if not value.rank:
            raise RejectedNodeError
        axis = self.rng.randrange(value.rank)
        return axis - value.rank if negative and self.chance(0.3) else axis

    # ------------------------------------------------------------ growing

    def constant(self, array: Any) -> Value:
        """Add an initializer."""
        array = np.asarray(array)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return Value(name, (array, array))

    def ints(self, numbers: Any) -> Value:
        """Add an INT64 initializer."""
        return self.constant(np.array(numbers, np.int64))

    def floats(self, *shape: int, scale: float = 1.0) -> Value:
        """Add a random initializer."""
        return self.constant(self.generator.standard_normal(shape, np.float32) * np.float32(scale))

    def emit(self, operator: str, inputs: Sequence[Value | None], **attributes: Any) -> Value:
        """Add a node of one output."""
        return self.emit_all(operator, inputs, 1, **attributes)[0]

    def emit_all(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        count: int,
        *,
        captured: Sequence[Value] = (),
        **attributes: Any,
    ) -> list[Value]:
        """Add a node, whose bodies read the ``captured`` values besides its inputs.

        Raises:
            RejectedNodeError: it cannot be evaluated, or its values are of no use.
        """
        number = len(self.nodes)
        outputs = [f"v{number}" if index == 0 else f"v{number}_{index}" for index in range(count)]
        names = [value.name if value is not None else "" for value in inputs]
        node = helper.make_node(operator, names, outputs, name=f"{operator}_{number}", **attributes)
        sets: list[list[Array]] = []
        for index in range(2):
            given = {v.name: v.arrays[index] for v in (*inputs, *captured) if v is not None}
            sets.append(evaluated(node, given, self.opset))
        made = [Value(n, (a, b)) for n, a, b in zip(outputs, *sets, strict=True)]
        for value in made:
            _check(value)
        self.nodes.append(node)
        self.values.extend(made)
        return made

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Undo what a block added where it ends with an exception."""
        counts = len(self.nodes), len(self.constants), len(self.values)
        try:
            yield
        except BaseException:
            del self.nodes[counts[0] :], self.constants[counts[1] :], self.values[counts[2] :]
            raise

    def add_input(self, array: Array, axes: list[str | int]) -> Value:
        """Add an input whose axes are extents or names of dynamic dimensions.

        Args:
            array: Values for the first set; those for the second are drawn from them.
            axes: For each axis its extent or the name of the dimension.
        """
        shape = tuple(self.dims[a][1] if isinstance(a, str) else a for a in axes)
        second = self.generator.permutation(np.resize(array, int(np.prod(shape)) or 1))
        name = f"x{len(self.inputs)}"
        value = Value(name, (array, second[: int(np.prod(shape))].reshape(shape)))
        self.inputs.append(value)
        self.values.append(value)
        self.axes[name] = axes
        return value

    # ------------------------------------------------------------ what comes out

    def finished(self, share: float = _SHARE_OF_OUTPUTS, most: int = _MOST_OUTPUTS) -> RandomModel:
        """The model, with what nothing reads and some others as its outputs.

        Args:
            share: Of the values that nodes read, how many are outputs.
            most: The most outputs.

        Raises:
            RejectedNodeError: it is not a valid model.
        """
        read = self._read()
        made = [v for v in self.values if v not in self.inputs]
        outputs = [v for v in made if v.name not in read]
        outputs += [v for v in made if v.name in read and self.chance(share)]
        if not made:
            raise RejectedNodeError
        outputs = sorted(outputs[-most:] or made[-1:], key=lambda v: v.name)
        used = read | {v.name for v in outputs}
        inputs = [v for v in self.inputs if v.name in used]
        model = self._model(inputs, outputs)
        keep: tuple[dict[str, Array], ...] = tuple(
            {v.name: v.arrays[i] for v in inputs} for i in (0, 1)
        )
        expected = tuple({v.name: v.arrays[i] for v in outputs} for i in (0, 1))
        present = {a for v in inputs for a in self.axes[v.name] if isinstance(a, str)}
        dims = {name: extents for name, extents in self.dims.items() if name in present}
        return RandomModel(model, (keep[0], keep[1]), (expected[0], expected[1]), dims)

    def _read(self) -> set[str]:
        read = {name for node in self.nodes for name in node.input}
        return read | {n for node in self.nodes for a in node.attribute for n in _captured(a)}

    def _model(self, inputs: list[Value], outputs: list[Value]) -> onnx.ModelProto:
        read = self._read()
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info(v.name, _type(v), self.axes[v.name]) for v in inputs],
            [
                helper.make_tensor_value_info(
                    v.name,
                    _type(v),
                    [e if v.is_static(a) else f"{v.name}_{a}" for a, e in enumerate(v.shape)],
                )
                for v in outputs
            ],
            [tensor for tensor in self.constants if tensor.name in read],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10
        )
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # of several kinds
            raise RejectedNodeError from error
        return model


def _captured(attribute: onnx.AttributeProto) -> set[str]:
    """Names that the nodes of a subgraph read."""
    return {name for node in attribute.g.node for name in node.input}


def _type(value: Value) -> int:
    return int(helper.np_dtype_to_tensor_dtype(value.dtype))


def evaluated(node: onnx.NodeProto, given: dict[str, Array], opset: int) -> list[Array]:
    """The outputs of a node by ``onnx.reference``.

    Raises:
        RejectedNodeError: it has none.
    """
    graph = helper.make_graph(
        [node],
        "node",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in given.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = ReferenceEvaluator(model).run(None, given)
    except Exception as error:  # whatever the operator of onnx.reference raises
        raise RejectedNodeError from error
    return [np.asarray(array) for array in found]


def _check(value: Value) -> None:
    for array in value.arrays:
        if not 0 < array.size <= _MOST_ELEMENTS or array.dtype == object or array.ndim > 5:
            raise RejectedNodeError
        if array.dtype.kind in "fiu":
            largest = np.abs(array.astype(np.float64)).max()
            if not np.isfinite(largest) or largest > _LARGEST:
                raise RejectedNodeError


def _start(graph: Graph) -> None:
    """Add the inputs."""
    rank = graph.choose(2, 3, 3, 4, 4, 4, 4, 5)
    shape = [graph.rng.choice(_EXTENTS) for _ in range(rank)]
    if graph.chance(0.1):
        shape[-2:] = [graph.choose(16, 32, 56)] * 2
    while np.prod(shape) > 8192:
        shape[shape.index(max(shape))] //= 2
    axes: list[str | int] = list(shape)
    if graph.chance(0.5):
        first = graph.rng.choice((1, 2, 3, 4))
        graph.dims["n"] = first, graph.choose(*[e for e in (1, 2, 3, 5) if e != first])
        axes[0], shape[0] = "n", first
    if graph.chance(0.15):
        last = graph.rng.choice((4, 6, 8))
        graph.dims["l"] = last, last + graph.choose(1, 2, 4)
        axes[-1], shape[-1] = "l", last
    graph.add_input(graph.generator.standard_normal(shape, np.float32), axes)
    for _ in range(graph.choose(0, 0, 1, 1, 2)):
        more, extents = list(axes), list(shape)
        for axis in range(rank):
            if graph.chance(0.25):
                more[axis], extents[axis] = 1, 1
        if graph.chance(0.25) and rank > 1:
            del more[0], extents[0]
        graph.add_input(graph.generator.standard_normal(extents, np.float32), more)
    if graph.chance(0.2):
        numbers = graph.generator.integers(-4, 5, shape)
        graph.add_input(numbers.astype(graph.choose(np.int64, np.int32)), axes)


def random_model(
    seed: int,
    templates: dict[str, tuple[Template, float]],
    nodes: int,
    *,
    quantized: bool = False,
    dense: bool = False,
) -> RandomModel | None:
    """The random model of a seed; None where none came about.

    Args:
        seed: The same seed gives the same model.
        templates: What adds nodes to a graph, with its weight, by name.
        nodes: The most calls of templates.
        quantized: Whether Q/DQ pairs go in front of products.
        dense: Whether it has a few operators, each several times, and many outputs.
    """
    rng = random.Random(seed)  # noqa: S311  # the same in every run
    graph = Graph(
        rng,
        np.random.default_rng(seed),
        rng.choice((13, 16, 17, 18, 18, 19, 20, 20, 21, 21, 22, 23)),
        quantized,
    )
    _start(graph)
    if dense:
        chances = [weight for _, weight in templates.values()]
        templates = {name: templates[name] for name in rng.choices([*templates], chances, k=6)}
    weights = [weight for _, weight in templates.values()]
    wanted = rng.randint(2, nodes)
    done = 0
    for _ in range(6 * nodes):
        template = rng.choices([one for one, _ in templates.values()], weights)[0]
        try:
            with graph.attempt():
                template(graph)
        except (RejectedNodeError, ArithmeticError, LookupError, ValueError):
            continue  # no value here has what the operator needs
        done += 1
        if done == wanted:
            break
    try:
        return graph.finished(rng.choice((0.3, 0.6, 1.0)), nodes) if dense else graph.finished()
    except RejectedNodeError:
        return None
