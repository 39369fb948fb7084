"""What a search inside a model has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from trt_native.verify.metrics import OutputComparison

__all__ = ["HiddenFault", "LayerReport", "Observed", "TensorResult"]

Observed: TypeAlias = Literal["output", "only output", "debug tensor"]
"""How a tensor was seen: as one of several further outputs of a plan, as the only one, or as a
debug tensor, which does not change how TensorRT fuses layers."""


@dataclass(frozen=True, slots=True)
class TensorResult:
    """A tensor that was compared.

    Attributes:
        name: The tensor.
        node: Name of the node that makes it.
        operator: That node's operator.
        comparison: Its comparison; the floor is the tensor's own, see :func:`find_first_mismatch`.
        agrees: Whether it keeps to the thresholds.
        observed: How it was seen.
    """

    name: str
    node: str
    operator: str
    comparison: OutputComparison
    agrees: bool
    observed: Observed = "output"

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "name": self.name,
            "node": self.node,
            "operator": self.operator,
            "agrees": self.agrees,
            "observed": self.observed,
            **self.comparison.to_json(),
        }


@dataclass(frozen=True, slots=True)
class HiddenFault:
    """A mismatch that vanishes where many tensors are further outputs: a fusion is at fault.

    Attributes:
        last_match: The last tensor before it that matches; None for the inputs.
        mismatch: The first tensor behind it that does not.
        between: Names of tensors from the one to the other across which a fusion can be broken, the
            last first.
        hiding: Names of tensors with each of which as the only further output the outputs match.
        tried: Names of tensors without fusions across which the outputs do not match either.
    """

    last_match: TensorResult | None
    mismatch: TensorResult
    between: tuple[str, ...]
    hiding: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()

    @property
    def untried(self) -> str | None:
        """The likeliest tensor that was not tried."""
        names = (*self.hiding, *self.between)
        return next((name for name in names if name not in self.tried), None)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "last_match": self.last_match.to_json() if self.last_match else None,
            "mismatch": self.mismatch.to_json(),
            "between": list(self.between),
            "hiding": list(self.hiding),
            "tried": list(self.tried),
        }


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Result of the search for the first mismatch.

    Attributes:
        first: The first tensor in the model's order, among those compared, that mismatches; all
            floating-point tensors that its node reads agree, as far as they were seen: debug
            tensors are not all tensors. None if no tensor mismatches.
        worst: The tensors with the largest relative errors, largest first.
        tensors: Number of tensors that could be compared.
        compared: Number of tensors that were.
        plans: Number of plans built.
        too_large: Names of tensors that alone exceed the memory allowed; never compared.
        reference: What the tensors were compared with.
        break_fusion: A tensor with which the outputs match where TensorRT does not fuse nodes
            across it. None if there is none, or it was not looked for.
        hidden: Where a mismatch arises that no further output shows; None if there is no such, or
            it was not looked for.
        debug_tensors: Number of tensors that were compared as debug tensors.
    """

    first: TensorResult | None
    worst: tuple[TensorResult, ...]
    tensors: int
    compared: int
    plans: int
    too_large: tuple[str, ...]
    reference: str
    break_fusion: str | None = None
    hidden: HiddenFault | None = None
    debug_tensors: int = 0

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "break_fusion": self.break_fusion,
            "hidden": self.hidden.to_json() if self.hidden else None,
            "debug_tensors": self.debug_tensors,
            "first": self.first.to_json() if self.first else None,
            "worst": [result.to_json() for result in self.worst],
            "tensors": self.tensors,
            "compared": self.compared,
            "plans": self.plans,
            "too_large": list(self.too_large),
            "reference": self.reference,
        }
