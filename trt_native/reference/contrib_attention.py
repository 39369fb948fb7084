"""Attention and rotary embeddings of the domain ``com.microsoft``, for ``onnx.reference``.

They are computed in FP32, sequence by sequence, and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from trt_native.arrays import Array
from trt_native.reference.contrib import ContribOperator, padded
from trt_native.reference.kernels import widened

__all__ = ["OPERATORS"]

_MASKED = -10000.0
_LOWEST = np.finfo(np.float32).min


def _split(x: Array, heads: int) -> Array:
    """[batch, length, heads * size] as [batch, heads, length, size]."""
    batch, length, _ = x.shape
    found: Array = widened(x).reshape(batch, length, heads, -1).swapaxes(1, 2)
    return found


def _attended(
    q: Array, k: Array, v: Array, options: dict[str, Any], added: Array, sink: Array | None = None
) -> Array:
    """[batch, length, heads * size]; ``added`` broadcasts to the scores."""
    scores = np.einsum("bhsd,bhtd->bhst", q, k) * (options["scale"] or q.shape[-1] ** -0.5)
    if softcap := options.get("softcap"):
        scores = softcap * np.tanh(scores / softcap)
    scores = (scores + added).astype(np.float32)
    top = scores.max(axis=-1, keepdims=True)
    if sink is not None:
        top = np.maximum(top, sink)
    shares = np.exp(scores - top)
    total = shares.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - top)
    return _flat(np.einsum("bhst,bhtd->bshd", shares / total, v))


def _added_mask(
    mask: Array | None, options: dict[str, Any], batch: int, length: int, total: int
) -> Array:
    """[batch, 1, length, total]: what padding and causality add to scores."""
    found = np.zeros((batch, 1, length, total), np.float32)
    keys = np.arange(total)
    if mask is not None and mask.ndim == 1:
        absent = keys >= mask[:batch, None]
        if mask.size == 2 * batch:
            absent |= keys < mask[batch:, None]
        found[absent[:, None, None].repeat(length, 2)] = options["mask_filter_value"]
    elif mask is not None:
        if mask.ndim not in (2, 3):
            raise NotImplementedError(f"a mask of {mask.ndim} axes")
        by_query = mask[:, None] if mask.ndim == 2 else mask
        found += np.where(by_query > 0, 0, np.float32(options["mask_filter_value"]))[:, None]
    if options["unidirectional"]:
        queries = np.arange(length)[:, None] + total - length
        found = np.where(keys > queries, _LOWEST, found)
    return found


def _behind(past: Array | None, new: Array) -> Array:
    return new if past is None else np.concatenate([widened(past), new], axis=2)


_ATTENTION = {"scale": 0.0, "mask_filter_value": _MASKED, "unidirectional": 0}


class MultiHeadAttention(ContribOperator):
    """Query, key and value may be packed, and key and value split into heads."""

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        query, key, value, bias, mask, added, past_key, past_value, *rest = padded(inputs, 10)
        self.lacks(past_sequence_length=rest[0], cache_indirection=rest[1])
        options = self.options(**_ATTENTION)
        heads = options["num_heads"]
        if query.ndim == 5:
            query, key, value = (_flat(query[:, :, :, index]) for index in range(3))
        elif key.ndim == 5:
            key, value = (_flat(key[:, :, :, index]) for index in range(2))
        parts = [query, key, value]
        if bias is not None:
            width = query.shape[2]
            ends = [width, 2 * width]
            shares = np.split(widened(bias), ends)
            parts = [widened(x) + share for x, share in zip(parts, shares, strict=True)]
        q, k, v = (x if x.ndim == 4 else _split(x, heads) for x in parts)
        k, v = _behind(past_key, widened(k)), _behind(past_value, widened(v))
        if options["unidirectional"] and past_key is None and q.shape[2] != k.shape[2]:
            raise NotImplementedError("unidirectional with other keys")
        total = _added_mask(mask, options, q.shape[0], q.shape[2], k.shape[2])
        if added is not None:
            total = total + widened(added)
        kind = query.dtype
        found = _attended(q, k, v, options, total)
        return self.several(found.astype(kind), k.astype(kind), v.astype(kind))


def _flat(x: Array) -> Array:
    found: Array = x.reshape(*x.shape[:2], -1)
    return found


class Attention(ContribOperator):
    """The weights of queries, keys and values are one matrix."""

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        x, weights, bias, mask, past, added, past_length = padded(inputs, 7)
        options = self.options(**_ATTENTION)
        self.lacks(past_sequence_length=past_length, do_rotary=options.get("do_rotary"))
        sizes = options.get("qkv_hidden_sizes") or [weights.shape[1] // 3] * 3
        product = widened(x) @ widened(weights)
        if bias is not None:
            product = product + widened(bias)
        parts = np.split(product, np.cumsum(sizes)[:2], axis=2)
        q, k, v = (_split(part, options["num_heads"]) for part in parts)
        if past is not None:
            k, v = _behind(past[0], k), _behind(past[1], v)
        if mask is not None and mask.ndim == 2 and mask.shape[1] == 1:
            mask = None  # one number for all keys
        total = _added_mask(mask, options, q.shape[0], q.shape[2], k.shape[2])
        if added is not None:
            total = total + widened(added)
        found = _attended(q, k, v, options, total).astype(x.dtype)
        if len(self.onnx_node.output) < 2:
            return (found,)
        return self.several(found, np.stack([k, v]).astype(x.dtype))


class RotaryEmbedding(ContribOperator):
    """Of [batch, length, heads * size] or [batch, heads, length, size]."""

    def compute(self, *inputs: Any) -> Array:
        """Rotate."""
        x, places, cos, sin = inputs
        options = self.options(num_heads=0, rotary_embedding_dim=0, interleaved=0)
        self.lacks(is_packed_batching=options.get("is_packed_batching"))
        size = 2 * cos.shape[1]
        if x.ndim == 4:
            heads = x.swapaxes(1, 2)
        else:
            if options["rotary_embedding_dim"]:
                size = x.shape[2] // max(options["num_heads"], 1)
            heads = x.reshape(*x.shape[:2], -1, size)
        if places.ndim == 1:
            places = (places + np.arange(heads.shape[1]))[None]
        found = _rotated(heads, cos[places], sin[places], options["interleaved"])
        found = found.swapaxes(1, 2) if x.ndim == 4 else found.reshape(x.shape)
        return np.asarray(found, x.dtype)


def _rotated(x: Array, cos: Array, sin: Array, interleaved: int) -> Array:
    """Pairs of x[batch, length, heads, size] as complex numbers, turned."""
    found: Array = widened(x).copy()
    halves = cos.shape[-1]
    if interleaved:
        one, other = slice(0, 2 * halves, 2), slice(1, 2 * halves, 2)
    else:
        one, other = slice(0, halves), slice(halves, 2 * halves)
    turn = widened(cos) + 1j * widened(sin)
    turned = (found[..., one] + 1j * found[..., other]) * turn[:, :, None]
    found[..., one], found[..., other] = turned.real, turned.imag
    return found


class GroupQueryAttention(ContribOperator):
    """Groups of queries share keys; new keys follow those of each sequence."""

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        query, key, value, past_key, past_value, last, every, cos, sin, places, *rest = padded(
            inputs, 17
        )
        added, sink, *others = rest
        options = self.options(
            scale=0.0, softcap=0.0, local_window_size=-1, do_rotary=0, rotary_interleaved=0,
            causal=1, smooth_softmax=0,
        )  # fmt: skip
        self.lacks(
            bidirectional=1 - options["causal"], qk_output=options.get("qk_output"),
            sliding_window_cache=options.get("sliding_window_cache"),
            **{f"input_{index + 12}": other for index, other in enumerate(others)},
        )  # fmt: skip
        heads, groups = options["num_heads"], options["kv_num_heads"]
        if key is None:
            size = query.shape[2] // (heads + 2 * groups)
            query, key, value = np.split(query, [heads * size, (heads + groups) * size], axis=2)
        q, k, v = _split(query, heads), _split(key, groups), _split(value, groups)
        batch, length = query.shape[:2]
        kept = 0 if past_key is None else past_key.shape[2]
        prompt = int(np.squeeze(every)) == length
        first = np.zeros(batch, np.int64) if prompt else last.astype(np.int64) + 1 - length
        if options["do_rotary"]:
            mine = first[:, None] + np.arange(length)
            if places is not None:
                mine = places if not prompt else places[:1, :1] + np.arange(length)
            q, k = (
                _rotated(
                    x.swapaxes(1, 2), cos[mine], sin[mine], options["rotary_interleaved"]
                ).swapaxes(1, 2)
                for x in (q, k)
            )
        total = max(kept, int(np.squeeze(every)))
        keys, values = (
            _placed(past, new, first, total) for past, new in ((past_key, k), (past_value, v))
        )
        hidden = _hidden(first, length, total, options["local_window_size"])
        masks = np.where(hidden, _LOWEST, np.float32(0))[:, None]
        if added is not None:
            masks = masks + widened(added)
        sinks = None if sink is None else widened(sink).reshape(1, heads, 1, 1)
        if sinks is None and options["smooth_softmax"] > 0:
            sinks = np.zeros((1, 1, 1, 1), np.float32)
        kind, times = query.dtype, heads // groups
        shared = keys.repeat(times, axis=1), values.repeat(times, axis=1)
        found = _attended(q, shared[0], shared[1], options, masks, sinks)
        return self.several(found.astype(kind), keys.astype(kind), values.astype(kind))


def _placed(past: Array | None, new: Array, first: Array, total: int) -> Array:
    """Each sequence's past up to its end, the new keys, and zeros."""
    found = np.zeros((*new.shape[:2], total, new.shape[3]), np.float32)
    for index, start in enumerate(first):
        if past is not None:
            found[index, :, :start] = past[index, :, :start]
        found[index, :, start : start + new.shape[2]] = new[index]
    return found


def _hidden(first: Array, length: int, total: int, window: int) -> Array:
    """Which keys each query does not see: later ones, and those before its window."""
    queries = first[:, None, None] + np.arange(length)[:, None]
    keys = np.arange(total)
    hidden: Array = keys > queries
    return hidden | (keys <= queries - window) if window > 0 else hidden


OPERATORS: tuple[type[OpRun], ...] = (
    Attention,
    GroupQueryAttention,
    MultiHeadAttention,
    RotaryEmbedding,
)
"""Operators that an evaluator of ``onnx.reference`` takes as new ones."""
