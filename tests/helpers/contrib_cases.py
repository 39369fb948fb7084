"""Nodes of the domain com.microsoft, with outputs of ONNX Runtime on the CPU, and of PyTorch.

``scripts/onnxruntime_goldens.py`` wrote the first; PyTorch's functions compute what ONNX Runtime
has no kernel of for the CPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

_FILE = Path(__file__).parents[1] / "data" / "onnxruntime_contrib.json"
_CONSTANT = {"MatMulNBits": range(1, 6), "QLinearConv": range(1, 9)}


@dataclass(frozen=True)
class Case:
    """A node: inputs are None where they are left out."""

    operator: str
    attributes: dict[str, Any]
    inputs: list[np.ndarray | None]
    outputs: list[np.ndarray]
    domain: str = "com.microsoft"

    @property
    def batch(self):
        """The inputs that are no constants, by name."""
        held = _CONSTANT.get(self.operator, ())
        return {f"i{n}": a for n, a in enumerate(self.inputs) if a is not None and n not in held}

    def model(self, opset: int = 17, *, axes: dict[str, list[Any]] | None = None):
        """A model of the node; ``axes`` are shapes of inputs and outputs with names for extents."""
        axes = axes or {}
        named = {f"i{n}": a for n, a in enumerate(self.inputs)}
        outputs = [f"o{n}" for n in range(len(self.outputs))]
        names = [name if array is not None else "" for name, array in named.items()]
        node = helper.make_node(
            self.operator, names, outputs, "node", domain=self.domain, **self.attributes
        )
        graph = helper.make_graph(
            [node],
            "case",
            [_info(name, array, axes) for name, array in self.batch.items()],
            [_info(n, a, axes) for n, a in zip(outputs, self.outputs, strict=True)],
            [
                onnx.numpy_helper.from_array(array, name)
                for name, array in named.items()
                if array is not None and name not in self.batch
            ],
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def check(self, found, tolerance=2e-4):
        """Whether outputs are those of the case, in type and shape too."""
        for array, expected in zip(found, self.outputs, strict=True):
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
            if self.operator.startswith("QLinear"):  # a sum may be rounded either way
                assert np.abs(array.astype(int) - expected).max() <= 1
                assert (array == expected).mean() > 0.95
                continue
            np.testing.assert_allclose(array, expected, rtol=tolerance, atol=tolerance)


def _info(name, array, axes):
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, axes.get(name, array.shape))


def _array(entry):
    return np.array(entry["data"], entry["dtype"]).reshape(entry["shape"])


def _read():
    found = json.loads(_FILE.read_text())
    found.pop("onnxruntime")
    return {
        name: Case(
            case["operator"],
            case["attributes"],
            [entry and _array(entry) for entry in case["inputs"]],
            [_array(entry) for entry in case["outputs"]],
        )
        for name, case in found.items()
    }


ONNXRUNTIME = _read()


def torch_cases():
    """Cases with outputs of PyTorch's functions."""
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(3)

    def real(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def tensors(*arrays):
        return [torch.tensor(array) for array in arrays]

    def attended(q, k, v):  # of [batch, length, heads, size]
        parts = (x.transpose(1, 2) for x in tensors(q, k, v))
        found = functional.scaled_dot_product_attention(*parts).transpose(1, 2)
        return [found.flatten(2).numpy()]

    def grouped(x, scale, bias, silu, last=True):
        first = x.movedim(-1, 1) if last else x
        found = functional.group_norm(first, 2, scale, bias, 1e-3)
        found = functional.silu(found) if silu else found
        return (found.movedim(1, -1) if last else found).numpy()

    qkv, kv, q, bias = real(2, 3, 2, 3, 4), real(2, 5, 2, 2, 4), real(2, 3, 8), real(24)
    biases = bias.reshape(3, 2, 4)
    x, skip, row, scale, shift, added = (
        real(*s) for s in ((2, 3, 5, 4), (2, 3, 5, 4), (2, 4), (4,), (4,), (4,))
    )
    at = {"groups": 2, "epsilon": 1e-3}
    image, filters, strides = real(1, 6, 5, 4), real(2, 2, 3, 3), {"strides": [2, 1], "group": 2}
    first = np.moveaxis(image, -1, 1)
    convolved = functional.conv2d(*tensors(first, filters, shift[:2]), stride=(2, 1), groups=2)
    convolved = convolved.movedim(1, -1)
    total = torch.tensor(x + skip + added)
    halves = torch.tensor(q + bias[:8]).chunk(2, -1)
    return {
        "multi_head_packed": Case(
            "MultiHeadAttention", {"num_heads": 2}, [qkv, None, None, bias],
            attended(*(qkv[:, :, :, n] + biases[n] for n in range(3))),
        ),
        "multi_head_packed_keys": Case(
            "MultiHeadAttention", {"num_heads": 2}, [q, kv],
            attended(q.reshape(2, 3, 2, 4), kv[:, :, :, 0], kv[:, :, :, 1]),
        ),
        "group_norm": Case(
            "GroupNorm", {**at, "activation": 1}, [x, scale, shift],
            [grouped(*tensors(x, scale, shift), True)],
        ),
        "group_norm_first": Case(
            "GroupNorm", {**at, "channels_last": 0, "activation": 0}, [first, scale, shift],
            [grouped(*tensors(first, scale, shift), False, last=False)],
        ),
        "skip_group_norm": Case(
            "SkipGroupNorm", {**at, "activation": 1}, [x, scale, shift, skip, added],
            [grouped(total, *tensors(scale, shift), True), total.numpy()],
        ),
        "skip_group_norm_row": Case(
            "SkipGroupNorm", {**at, "activation": 0, "channels_last": 0},
            [first, scale, shift, row[:1], added],
            [grouped(*tensors(first + (row[:1] + added)[..., None, None], scale, shift), False,
                     last=False)],
        ),
        "conv": Case("NhwcConv", strides, [image, filters, shift[:2]], [convolved.numpy()]),
        "conv_of_tools": Case(
            "NhwcConv", strides, [image, np.moveaxis(filters, 1, -1), shift[:2]],
            [convolved.numpy()],
        ),
        "conv_fused": Case(
            "NhwcFusedConv", {**strides, "activation": "Relu"}, [image, filters, shift[:2]],
            [convolved.relu().numpy()],
        ),
        "split_gelu": Case(
            "BiasSplitGelu", {}, [q, bias[:8]],
            [(halves[0] * functional.gelu(halves[1])).numpy()],
        ),
    }  # fmt: skip
