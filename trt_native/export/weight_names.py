"""The weights of an exported model that are tensors of a module's state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["TRANSPOSED", "WeightNames", "count_uses", "weight_names"]

TRANSPOSED = ".T"
"""Ending of the name of a weight that is a matrix of the module, transposed."""

WeightNames = Mapping[str, "tuple[str, ...] | None"]
"""For each entry of a state dict the names of the weights that it is, some of them transposed; none
where the model does not use it; None where other constants are, or may be, computed from it."""

_Memory = tuple[int, int]


def count_uses(model: ir.Model) -> Counter[_Memory]:
    """Count how often nodes read the memory of each tensor, before constants are folded."""
    uses: Counter[_Memory] = Counter()
    for value in model.graph.initializers.values():
        memory = _memory_of(value)
        if memory is not None:
            uses[memory] += _count(value)
    return uses


def weight_names(model: ir.Model, module: nn.Module, before: Counter[_Memory]) -> WeightNames:
    """Find the weights that are tensors of a module's state, by the memory that they share.

    Args:
        model: The model after its constants were folded, its weights not copied yet.
        module: The module.
        before: From :func:`count_uses`.
    """
    names: dict[_Memory, list[str]] = {}
    after: Counter[_Memory] = Counter()
    for name, value in model.graph.initializers.items():
        memory = _memory_of(value)
        if memory is not None and memory in before:
            names.setdefault(memory, []).append(name)
            after[memory] += _count(value)
    found: dict[str, tuple[str, ...] | None] = {}
    for key, tensor in module.state_dict().items():
        memory = _memory(tensor)
        made = names.get(memory, [])
        whole = after[memory] == before[memory] and all(
            _is_plain(model.graph.initializers[name], tensor) for name in made
        )
        found[key] = tuple(made) if whole else None
    return found


def _count(value: ir.Value) -> int:
    """Count the readers of a value that need more than its shape."""
    readers = [use.node for use in value.uses() if use.node.op_type not in ("Shape", "Size")]
    return len(readers) + value.is_graph_output()


def _memory_of(value: ir.Value) -> _Memory | None:
    raw: Any = getattr(value.const_value, "raw", None)
    return _memory(raw) if hasattr(raw, "data_ptr") else None


def _memory(tensor: Tensor) -> _Memory:
    return tensor.data_ptr(), tensor.numel()


def _is_plain(value: ir.Value, tensor: Tensor) -> bool:
    """Whether a weight is a tensor as it is, or a matrix transposed, by its name."""
    raw: Any = value.const_value.raw  # type: ignore[union-attr]
    is_transposed = (value.name or "").endswith(TRANSPOSED) and tensor.dim() == 2
    expected = tensor.T if is_transposed else tensor
    return bool(raw.shape == expected.shape and raw.stride() == expected.stride())
