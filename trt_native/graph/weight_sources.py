"""Which weights of an ONNX file the weights of the rewritten graph are made of, and how."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (makes bfloat16 known to NumPy by name)
import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import all_nodes
from trt_native.graph.onnx_file import dtype_name
from trt_native.graph.refit_signature import (
    STRUCTURAL,
    RefitSignature,
    constant_tensor,
    describe_tensor,
    unmapped,
)
from trt_native.graph.validity import wraps_graph_errors

__all__ = [
    "CONVERTED_TYPES",
    "SplitLayout",
    "WeightSource",
    "WeightSources",
    "convert_weight",
    "gives",
    "made_weights",
    "note_source",
    "weight_sources",
]

CONVERTED_TYPES = ("float16", "bfloat16", "float32", "float64")
"""Types that the passes of a build convert weights to and from."""

_KEY = "trt_native.weight_source"  # in the metadata of an initializer that a pass made
_NUMBER = re.compile(r".*__value_*", re.DOTALL)  # of attributes and of limits, never of weights


class SplitLayout(NamedTuple):
    """Parts of a weight behind one another, ``hi`` being its BF16 digits and ``lo`` the rest.

    Attributes:
        parts: ``hi``, ``lo`` or ``whole``, in order.
        axis: The axis along which they are joined.
        groups: Number of groups of channels, each of which has its own parts.
    """

    parts: tuple[str, ...]
    axis: int
    groups: int = 1

    def join(self, whole: Any, high: Any, concatenate: Callable[[Sequence[Any], int], Any]) -> Any:
        """Join the parts.

        Args:
            whole: The weight, an array of any library.
            high: The same rounded to BF16, in the type of ``whole``.
            concatenate: That library's function.
        """
        made = {"whole": whole, "hi": high, "lo": whole - high}
        parts = [made[part] for part in self.parts]
        if self.groups == 1:
            return concatenate(parts, self.axis)
        before, after = whole.shape[: self.axis], whole.shape[self.axis + 1 :]
        rows = [part.reshape(*before, self.groups, -1, *after) for part in parts]
        return concatenate(rows, self.axis + 1).reshape(*before, -1, *after)

    def whole_shape(self, joined: Sequence[int]) -> tuple[int, ...]:
        """Shape of the weight whose joined parts have this one."""
        shape = list(joined)
        shape[self.axis] //= len(self.parts)
        return tuple(shape)


class WeightSource(NamedTuple):
    """The weight of the ONNX file that one of the rewritten graph is made of.

    Attributes:
        weight: Its name.
        split: How it was split; None where it was only converted to another type, if at all.
    """

    weight: str
    split: SplitLayout | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        if self.split is None:
            return {"weight": self.weight}
        return {"weight": self.weight, "split": self.split._asdict()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WeightSource:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError: the data is malformed.
        """
        split = data.get("split")
        if split is None:
            return cls(str(data["weight"]))
        parts, axis, groups = tuple(split["parts"]), int(split["axis"]), int(split["groups"])
        if not parts or set(parts) - {"hi", "lo", "whole"} or groups < 1:
            raise ValueError(f"split of a weight: {split!r}")
        return cls(str(data["weight"]), SplitLayout(parts, axis, groups))


class WeightSources(NamedTuple):
    """Where the weights of a rewritten graph come from.

    Attributes:
        sources: Name of a weight of the rewritten graph to its source, where that is all that its
            values depend on.
        rewritten: Name of each other weight of the ONNX file to the weights of the rewritten graph
            that may depend on it.
    """

    sources: Mapping[str, WeightSource]
    rewritten: Mapping[str, tuple[str, ...]]

    def made_of(self, name: str) -> frozenset[str]:
        """Names in the ONNX file of what a weight of the rewritten graph may depend on."""
        if name in self.sources:
            return frozenset({self.sources[name].weight})
        return frozenset(weight for weight, made in self.rewritten.items() if name in made)


def note_source(made: ir.Value, source: ir.Value, split: SplitLayout | None = None) -> None:
    """Note on a new initializer that it is another in another type, or its parts."""
    if _KEY not in source.meta:
        made.meta[_KEY] = WeightSource(source.name or "", split)


def made_weights(model: ir.Model) -> dict[str, WeightSource]:
    """What :func:`note_source` has noted in a model, by the name of the initializer."""
    return {
        name: value.meta[_KEY]
        for graph in model.graphs()
        for name, value in graph.initializers.items()
        if _KEY in value.meta
    }


def convert_weight(array: Array, dtype: str, split: SplitLayout | None) -> Array:
    """Convert a weight of an ONNX file as the passes of a build do; the result is contiguous.

    Args:
        array: Floating-point values.
        dtype: NumPy or ml_dtypes name of the result's type. What is beyond it becomes infinite.
        split: See :class:`WeightSource`.
    """
    with np.errstate(over="ignore", under="ignore"):
        array = array.astype(dtype, copy=False)
        if split is not None:
            high = array.astype("bfloat16").astype(dtype)
            array = split.join(array, high, np.concatenate)
    contiguous: Array = np.ascontiguousarray(array).reshape(array.shape)
    return contiguous


def gives(array: Array, split: SplitLayout | None, text: str) -> bool:
    """Whether a conversion gives the weight that a signature describes.

    Args:
        array: A weight of an ONNX file.
        split: See :class:`WeightSource`.
        text: As in :attr:`RefitSignature.weights`.
    """
    dtype = text.partition(" ")[0]
    if dtype not in CONVERTED_TYPES or array.dtype.name not in CONVERTED_TYPES:
        return array.dtype.name == dtype and describe_tensor(ir.Tensor(array)) == text
    return describe_tensor(ir.Tensor(convert_weight(array, dtype, split))) == text


@wraps_graph_errors
def weight_sources(
    original: ir.Model,
    signature: RefitSignature,
    lowered: ir.Model,
    made: Mapping[str, WeightSource],
) -> WeightSources:
    """Find and verify the sources of the weights of a rewritten graph.

    A source counts only if the conversion of its values gives those of the rewritten graph, bit for
    bit. Where another constant may have been computed from a weight, by its name or because fewer
    nodes read the weight than before, the weight is among the rewritten ones.

    Args:
        original: The model in the ONNX file; the same as ``lowered`` where nothing was rewritten.
        signature: That of the rewritten graph.
        lowered: The rewritten graph.
        made: From :func:`made_weights`.
    """
    if original is lowered:
        return WeightSources({name: WeightSource(name) for name in signature.weights}, {})
    return _Finder(original, signature, lowered, made).find()


class _Finder:
    def __init__(
        self,
        original: ir.Model,
        signature: RefitSignature,
        lowered: ir.Model,
        made: Mapping[str, WeightSource],
    ) -> None:
        self._values = dict(_named_values(original))
        self._nodes = {node.name: node for node in all_nodes(original.graph) if node.name}
        self._weights = {
            name: tensor
            for name, value in self._values.items()
            if (tensor := _weight_tensor(value)) is not None
        }
        self._signature = signature
        self._uses = Counter({name: _uses(value) for name, value in _named_values(lowered)})
        self._made = made

    def find(self) -> WeightSources:
        sources, unknown = {}, []
        for name, text in self._signature.weights.items():
            source = self._made.get(name) or WeightSource(name)
            if source.weight in self._weights and self._gives(source, text):
                sources[name] = source
            else:
                unknown.append(name)
        rewritten: dict[str, list[str]] = {}
        for name in unknown:
            for weight in self._ancestors(name):
                rewritten.setdefault(weight, []).append(name)
        for weight in self._changed(sources):
            rewritten.setdefault(weight, [])
        kept = {name: s for name, s in sources.items() if s.weight not in rewritten}
        for name, source in sources.items():
            if source.weight in rewritten:
                rewritten[source.weight].append(name)
        return WeightSources(kept, {name: tuple(made) for name, made in rewritten.items()})

    def _gives(self, source: WeightSource, text: str) -> bool:
        tensor = self._weights[source.weight]
        dtype = text.partition(" ")[0]
        if source.split is None and dtype_name(tensor.dtype) == dtype:
            return describe_tensor(tensor) == text
        return gives(unmapped(tensor).numpy(), source.split, text)

    def _changed(self, sources: Mapping[str, WeightSource]) -> Iterator[str]:
        """Weights that fewer nodes read than before, or none."""
        readers: Counter[str] = Counter()
        for name, source in sources.items():
            readers[source.weight] += self._uses[name]
        for name in self._weights:
            before = _uses(self._values[name])
            if before and readers[name] < before:
                yield name

    def _ancestors(self, made: str) -> Iterable[str]:
        """The weights that a constant which a pass made may have been computed from."""
        if _NUMBER.fullmatch(made) and self._is_number(made):
            return ()
        known = made
        while "__" in known and known not in self._values and known not in self._nodes:
            known = known.rpartition("__")[0]
        if known in self._weights:
            return (known,)
        value = self._values.get(known)
        node = (None if value is None else value.producer()) or self._nodes.get(known)
        if node is None:
            return tuple(self._weights)
        return dict.fromkeys(name for value in node.inputs for name in _constants(value) or ())

    def _is_number(self, made: str) -> bool:
        shape = self._signature.weights[made].split(" ")[1]
        return shape == "scalar" or set(shape.split("x")) == {"1"}


def _named_values(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    for graph in model.graphs():
        yield from graph.initializers.items()
    for node in all_nodes(model.graph):
        yield from ((value.name, value) for value in node.outputs if value.name)


def _weight_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The values of a weight; None for all that is not one."""
    producer = value.producer()
    tensor = value.const_value if producer is None else constant_tensor(producer)
    return None if tensor is None or tensor.dtype in STRUCTURAL else tensor


def _uses(value: ir.Value) -> int:
    return len(list(value.uses())) + value.is_graph_output()


def _constants(value: ir.Value | None) -> set[str] | None:
    """The weights that a constant follows from; None for what is not constant."""
    found: set[str] = set()
    ahead, seen = [value], set()
    while ahead:
        one = ahead.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        if _weight_tensor(one) is not None:
            found.add(one.name or "")
            continue
        producer = one.producer()
        if producer is None:
            if one.const_value is None:
                return None
            continue
        ahead += producer.inputs
    return found
