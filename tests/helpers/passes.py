"""Graphs as passes read them, and what passes did to a plan's graph."""

from __future__ import annotations

import onnx_ir as ir

from trt_native.passes.normalize import normalize

__all__ = ["normalized", "pass_records"]


def normalized(proto):
    model = ir.from_proto(proto)
    normalize(model)
    return model


def pass_records(manifest):
    """What each pass did, by its name."""
    return {record["name"]: record for record in manifest.passes}
