#!/usr/bin/env python3
"""Write tests/data/onnxruntime_contrib.json: outputs of ONNX Runtime for operators of its own.

Needs onnxruntime, which nothing else does without a GPU; its version is in the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper

RNG = np.random.default_rng(7)
Case = tuple[str, list[Any], int, dict[str, Any]]


def real(*shape: int) -> Any:
    """Random FP32 numbers of one digit behind the point."""
    return RNG.standard_normal(shape).round(1).astype(np.float32)


def whole(*numbers: Any) -> Any:
    """INT32 numbers."""
    return np.array(numbers, np.int32)


def packed(*shape: int) -> Any:
    """Random bytes."""
    return RNG.integers(0, 256, shape, np.uint8)


def multi_head() -> dict[str, Case]:
    """MultiHeadAttention of two sequences of three queries, five keys and two heads of four."""
    name, heads = "MultiHeadAttention", {"num_heads": 2}
    separate = [real(2, 3, 8), real(2, 5, 8), real(2, 5, 12)]
    same = [real(2, 3, 8), real(2, 3, 8), real(2, 3, 8)]
    past = [real(2, 2, 2, 4), real(2, 2, 2, 4)]
    keys = whole([1, 1, 0, 1, 1], [0, 1, 1, 1, 0])
    each = RNG.integers(0, 2, (2, 3, 5)).astype(np.int32)
    scaled = {**heads, "scale": 0.3, "mask_filter_value": -3.0}
    return {
        "multi_head_bias": (name, [*separate, real(28)], 1, heads),
        "multi_head_lengths": (name, [*separate, None, whole(3, 5)], 1, heads),
        "multi_head_sums": (name, [*separate, None, whole(3, 5, 0, 3, 6, 0, 3, 8)], 1, heads),
        "multi_head_mask": (name, [*separate, real(28), keys], 1, scaled),
        "multi_head_mask_of_queries": (name, [*separate, None, each], 1, heads),
        "multi_head_added": (name, [*separate, None, keys, real(1, 2, 3, 5)], 1, heads),
        "multi_head_causal": (
            name, [*same, None, None, real(2, 1, 3, 3)], 3, {**heads, "unidirectional": 1},
        ),
        "multi_head_past": (
            name, [*same, None, keys, None, *past], 3, {**heads, "unidirectional": 1},
        ),
        "multi_head_split": (name, [separate[0], real(2, 2, 5, 4), real(2, 2, 5, 4)], 1, heads),
    }  # fmt: skip


def attention() -> dict[str, Case]:
    """Attention of two sequences of four tokens, and two heads of four."""
    name, heads = "Attention", {"num_heads": 2}
    causal = {**heads, "unidirectional": 1}
    plain = [real(2, 4, 6), real(6, 24), real(24)]
    keys, each = whole([0, 0, 1, 1], [1, 1, 1, 0]), whole(*RNG.integers(0, 2, (2, 4, 4)).tolist())
    longer = whole([1, 1, 1, 1, 0, 1], [0, 1, 1, 1, 1, 1])
    sizes = {**heads, "qkv_hidden_sizes": [4, 4, 8], "scale": 0.4}
    return {
        "attention": (name, [*plain[:2]], 1, heads),
        "attention_sizes": (name, [plain[0], real(6, 16), real(16)], 1, sizes),
        "attention_lengths": (name, [*plain, whole(4, 2)], 1, heads),
        "attention_ends_and_starts": (name, [*plain, whole(4, 3, 1, 0)], 1, heads),
        "attention_mask": (name, [*plain, keys], 1, causal),
        "attention_lowest": (name, [*plain, keys], 1, {**causal, "mask_filter_value": -3.4e38}),
        "attention_mask_of_queries": (name, [*plain, each], 1, heads),
        "attention_added": (name, [*plain, None, None, real(1, 2, 4, 4)], 1, heads),
        "attention_past": (name, [*plain, longer, real(2, 2, 2, 2, 4)], 2, causal),
    }


def grouped() -> dict[str, Case]:
    """GroupQueryAttention of four heads, and two of keys, of sixteen."""
    name, heads = "GroupQueryAttention", {"num_heads": 4, "kv_num_heads": 2}
    tables = [real(9, 8), real(9, 8)]

    def tokens(batch: int, length: int) -> list[Any]:
        return [real(batch, length, 64), real(batch, length, 32), real(batch, length, 32)]

    def past(batch: int, length: int) -> list[Any]:
        return [real(batch, 2, length, 16), real(batch, 2, length, 16)]

    def cases(**found: tuple[list[Any], int, dict[str, Any]]) -> dict[str, Case]:
        return {key: (name, case[0], case[1], {**heads, **case[2]}) for key, case in found.items()}

    prompt = [None, None, whole(2, 2), np.array(3, np.int32)]
    turned = {"do_rotary": 1}
    return cases(
        grouped=([*tokens(2, 3), *prompt], 3, {}),
        grouped_packed=([real(2, 3, 128), None, None, *prompt, *tables], 3, turned),
        grouped_window=(
            [*tokens(2, 3), *prompt, None, None, None, real(2, 4, 3, 3)], 1,
            {"local_window_size": 2, "softcap": 0.7, "scale": 0.2},
        ),
        grouped_sink=([*tokens(2, 3), *prompt, *[None] * 4, real(4)], 1, {}),
        grouped_smooth=([*tokens(2, 3), *prompt], 1, {"smooth_softmax": 1}),
        grouped_more=(
            [*tokens(1, 2), *past(1, 4), whole(5), np.array(6, np.int32), *tables], 3,
            {**turned, "rotary_interleaved": 1},
        ),
        grouped_next=(
            [*tokens(2, 1), *past(2, 4), whole(4, 2), np.array(5, np.int32), *tables], 3, turned,
        ),
        grouped_room=(
            [*tokens(2, 1), *past(2, 4), whole(3, 1), np.array(4, np.int32), *tables], 3, turned,
        ),
        grouped_places=(
            [*tokens(2, 3), *prompt, *tables, np.array([[3, 1, 1], [2, 2, 2]])], 3, turned,
        ),
    )  # fmt: skip


def others() -> dict[str, Case]:
    """Rotary embeddings, embeddings with norms, weights of a few bits, pools."""
    tables, places = [real(6, 2), real(6, 2)], np.array([[0, 3, 1], [2, 2, 5]])
    ids, segments = whole([1, 2, 3], [3, 0, 1]), whole([0, 1, 1], [0, 0, 1])
    words, rows, table = real(5, 4), real(6, 4), real(2, 4)
    norm = [real(4), real(4)]
    embedding = "EmbedLayerNormalization"
    bits = {"K": 40, "N": 6, "block_size": 16, "bits": 4}
    eight, whole_bits = {**bits, "bits": 8}, {"K": 64, "N": 16, "block_size": 32, "bits": 4}
    return {
        "rotary": ("RotaryEmbedding", [real(2, 3, 8), places, *tables], 1, {}),
        "rotary_interleaved": (
            "RotaryEmbedding", [real(2, 3, 8), np.array([2]), *tables], 1, {"interleaved": 1},
        ),
        "rotary_split": ("RotaryEmbedding", [real(2, 2, 3, 4), places, *tables], 1, {}),
        "rotary_part": (
            "RotaryEmbedding", [real(2, 3, 16), places, *tables], 1,
            {"num_heads": 2, "rotary_embedding_dim": 4},
        ),
        "embedding": (
            embedding, [ids, segments, words, rows, table, *norm, whole([1, 1, 0], [1, 2, 1])], 3,
            {"epsilon": 1e-3},
        ),
        "embedding_places": (
            embedding, [ids, None, words, rows, None, *norm, None, whole([2, 1, 0])], 3, {},
        ),
        "product_of_batches": (
            "FusedMatMul", [real(4, 2, 3, 5), real(6, 2, 3, 5)], 1,
            {"transBatchA": 1, "transBatchB": 1, "transB": 1, "alpha": 0.5},
        ),
        "product_of_one_batch": (
            "FusedMatMul", [real(5, 2, 4), real(2, 5, 3)], 1, {"transBatchA": 1, "transA": 1},
        ),
        "bits_4": ("MatMulNBits", [real(2, 40), packed(6, 3, 8), real(6, 3)], 1, bits),
        "bits_4_zero_points": (
            "MatMulNBits", [real(2, 3, 40), packed(6, 3, 8), real(6, 3), packed(6, 2)], 1, bits,
        ),
        "bits_8": (
            "MatMulNBits",
            [real(2, 40), packed(6, 3, 16), real(6, 3), packed(6, 3), None, real(6)], 1, eight,
        ),
        "bits_4_blocks": (
            "MatMulNBits", [real(2, 64), packed(16, 2, 16), real(16, 2)], 1, whole_bits,
        ),
        "bits_2_blocks": (
            "MatMulNBits", [real(2, 64), packed(16, 2, 8), real(16, 2), packed(16, 1)], 1,
            {**whole_bits, "bits": 2},
        ),
        "bits_4_blocks_zero_points": (
            "MatMulNBits", [real(2, 64), packed(16, 2, 16), real(16, 2), packed(16, 1)], 1,
            whole_bits,
        ),
        "channels_last_conv": (
            "QLinearConv",
            [packed(1, 5, 4, 16), np.float32(0.1), np.uint8(120),
             RNG.integers(-128, 128, (16, 16, 3, 3)).astype(np.int8),
             RNG.uniform(0.01, 0.02, 16).round(3).astype(np.float32), np.zeros(16, np.int8),
             np.float32(0.5), np.uint8(110), RNG.integers(-999, 999, 16).astype(np.int32)],
            1, {"channels_last": 1, "pads": [1, 0, 1, 2]},
        ),
        "channels_last_pool": (
            "NhwcMaxPool", [packed(1, 4, 4, 2)], 1, {"kernel_shape": [2, 2], "strides": [2, 1]},
        ),
    }  # fmt: skip


def run(case: Case) -> dict[str, Any]:
    """A case with ONNX Runtime's outputs."""
    operator, inputs, count, attributes = case
    names = ["" if array is None else f"i{index}" for index, array in enumerate(inputs)]
    given = {name: array for name, array in zip(names, inputs, strict=True) if name}
    outputs = [f"o{index}" for index in range(count)]
    constant = inputs[1:] if operator in ("MatMulNBits", "QLinearConv") else []
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, domain="com.microsoft", **attributes)],
        "golden",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in given.items()
            if not any(array is one for one in constant)
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [
            helper.make_tensor(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.flatten()
            )
            for name, array in given.items()
            if any(array is one for one in constant)
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    wanted = {value.name for value in graph.input}
    found = session.run(None, {n: a for n, a in given.items() if n in wanted})
    return {
        "operator": operator,
        "attributes": attributes,
        "inputs": [None if array is None else _as_json(array) for array in inputs],
        "outputs": [_as_json(np.asarray(array)) for array in found],
    }


def _as_json(array: Any) -> Any:
    numbers = array.round(4) if array.dtype.kind == "f" else array
    return {"dtype": str(array.dtype), "shape": array.shape, "data": numbers.flatten().tolist()}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parents[1] / "tests" / "data" / "onnxruntime_contrib.json"
    parser.add_argument("--output", type=Path, default=default)
    output = parser.parse_args().output
    cases = {**multi_head(), **attention(), **grouped(), **others()}
    lines = [f'"onnxruntime": {json.dumps(onnxruntime.__version__)}']
    for name, case in cases.items():
        found = json.loads(json.dumps(run(case)), parse_float=lambda text: round(float(text), 4))
        lines.append(f"{json.dumps(name)}: {json.dumps(found, separators=(',', ':'))}")
    output.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    print(f"{output}: {len(cases)} cases, {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
