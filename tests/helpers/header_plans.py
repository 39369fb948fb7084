"""Plans whose first bytes alone are true, and the machine that they are for."""

from __future__ import annotations

import hashlib
import struct

from trt_native.plans.compatibility import Environment
from trt_native.plans.manifest import Manifest, PlanTensor
from trt_native.plans.plan import Plan
from trt_native.shapes import ShapeRange

__all__ = [
    "ADA",
    "ENGINE",
    "LEAN",
    "LIBRARY",
    "WEIGHTS",
    "header_plan",
    "plan_bytes",
    "section_plan",
]

ADA = Environment(
    libraries={"TensorRT-RTX": "1.6.1.120"},
    targets={"TensorRT-RTX": ("8.6", "8.9")},
    gpu="NVIDIA L4",
    compute_capability="8.9",
    driver="13.0",
    total_bytes=24 << 30,
    free_bytes=20 << 30,
)


ENGINE, WEIGHTS = (b"NGNE", b"e" * 50), (b"THGW", b"w" * 9)
LEAN, LIBRARY = (b"NAEL", b"\x7fELF" + bytes(30)), (b"NGLP", b"\x7fELF" + bytes(30))


def plan_bytes(tag=b"vtrt", version=(1, 6, 1, 120), payload=b"payload " * 8):
    """The layout of a plan's first bytes; the rest is anything."""
    length = 32 + len(payload)
    return struct.pack("<4s12xQ4B4x", tag, length, *version) + payload


def section_plan(*sections, tag=b"ftrt", version=(10, 3, 0, 26)):
    """A plan of sections, each a tag and a content, as TensorRT-RTX 1.4 to 1.7 lay them out."""
    start = 64 + 24 * len(sections)
    table, body = b"", b""
    for name, content in sections:
        table += struct.pack("<4s4xQQ", name, start + len(body), len(content))
        body += content
    size = start + len(body)
    head = struct.pack("<4s4xQQ4B4s", tag, len(sections), size, *version, tag)
    return head.ljust(64, b"\0") + table + body


def header_plan():
    """A plan of one input and one output for compute capability 8.9, by TensorRT-RTX 1.6."""
    data = plan_bytes()
    manifest = Manifest(
        producer="trt-native 0.1.0",
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=len(data),
        backend="rtx",
        backend_version="1.6.1.120",
        gpu=None,
        compute_capabilities=("8.9",),
        driver=None,
        model={"file": "m.onnx", "sha256": "0" * 64, "bytes": 9, "external": []},
        tensors=(
            PlanTensor(
                "x",
                "input",
                "float16",
                (-1, 3),
                ("batch", None),
                (ShapeRange.parse("1x3:2x3:4x3"),),
            ),
            PlanTensor("y", "output", "float32", (), ()),
        ),
        precision={"requested": "auto", "applied": "fp16"},
        passes=({"name": "autocast", "summary": "fp16: 2 nodes", "nodes": {"Conv": 2}},),
        options={"refit": True},
        seconds={"build": 1.5},
        created="2026-01-01T00:00:00+00:00",
    )
    return Plan(data, manifest)
