"""The schemas of ONNX operators."""

from __future__ import annotations

import functools

import onnx

__all__ = ["schema_of"]


@functools.lru_cache(maxsize=1024)
def schema_of(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """The ONNX schema of an operator, or None where the opset has no such operator."""
    try:
        return onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None
