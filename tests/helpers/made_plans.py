"""Plans with a true header and manifest, and nothing that TensorRT could load."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from helpers import DATA
from trt_native.plans.manifest import Manifest, PlanTensor
from trt_native.plans.plan import Plan
from trt_native.shapes import ShapeRange

GOLDEN = json.loads((DATA / "plan_manifest_2.json").read_text())


def tensor(name, mode, dtype, *ranges, shape=None, dims=(), values=()):
    profiles = tuple(map(ShapeRange.parse, ranges))
    if shape is None:
        bounds = [bound for p in profiles for bound in (p.min, p.max)]
        extents = (set(axis) for axis in zip(*bounds, strict=True))
        shape = tuple(axis.pop() if len(axis) == 1 else -1 for axis in extents)
    return PlanTensor(
        name,
        mode,
        dtype,
        shape,
        dims or (None,) * len(shape),
        profiles,
        tuple(map(ShapeRange.parse, values)),
    )


X = tensor("x", "input", "float32", "1x3x8x8:4x3x16x8:8x3x32x8", dims=("n", None, "h", None))
Y = tensor("y", "output", "float16", shape=(-1, 5), dims=("n", None))
STATIC = (
    tensor("x", "input", "float32", shape=(2, 3)),
    tensor("y", "output", "int64", shape=(2, 3)),
)
TWO = tensor("x", "input", "float32", "1x3:2x3:4x3", "8x3:8x3:8x3")

# In the form that the developer guide of TensorRT shows for kDETAILED, and what plans of dynamic
# shapes and of lower verbosity give instead.
LAYERS = [
    {
        "Name": "conv1 + relu1",
        "LayerType": "CaskConvolution",
        "Inputs": [
            {
                "Name": "x",
                "Location": "Device",
                "Dimensions": [16, 512, 28, 28],
                "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
            }
        ],
        "Outputs": [
            {
                "Name": "a",
                "Location": "Device",
                "Dimensions": [16, 256, 28, 28],
                "Format/Datatype": "Row major linear FP16 format",
            }
        ],
        "TacticName": "sm80_xmma_fprop_implicit_gemm",
        "TacticValue": "0x11bde0e1d9f2f35d",
    },
    {
        "Name": "__myl_Cast",
        "LayerType": "kgen",
        "Inputs": [{"Name": "a", "Format/Datatype": "Half"}],
        "Outputs": [
            {"Name": "y", "Dimensions": [-1, 3], "Format/Datatype": "N/A due to dynamic shapes"}
        ],
        "TacticName": "",
    },
    {"Name": "only a name"},
]


def make_plan(path, tensors, *, tag=b"ftrt", version=(10, 16, 1, 11), **changes):
    data = tag + bytes(20) + bytes(version) + bytes(100)
    manifest = dataclasses.replace(
        Manifest.from_json(GOLDEN),
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=len(data),
        backend="trt10",
        backend_version=".".join(map(str, version)),
        tensors=tuple(tensors),
        **{"options": {}, **changes},
    )
    return Plan.load(Plan(data, manifest).save(path))
