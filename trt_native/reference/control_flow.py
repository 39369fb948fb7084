"""Loop and Scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.reference.kernels import Kernel

__all__ = ["KERNELS"]


def _loop(
    node: Any,
    trips: Array | None,
    condition: Array | None,
    *carried: Any,
    context: Mapping[str, Any],
    body: Any,
    attributes: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    iteration_name, condition_name, *names = body.input_names
    state, scanned = list(carried), len(body.output_names) - 1 - len(names)
    rows: list[list[Array]] = [[] for _ in range(scanned)]
    going, iteration = condition is None or bool(condition), 0
    while going and (trips is None or iteration < int(np.ravel(trips)[0])):
        inputs = {
            **context,
            iteration_name: np.array(iteration, np.int64),
            condition_name: np.array(going),
            **dict(zip(names, state, strict=True)),
        }
        outputs = node._run_body(inputs, attributes=attributes)
        going, state = bool(outputs[0]), list(outputs[1 : 1 + len(names)])
        for row, value in zip(rows, outputs[1 + len(names) :], strict=True):
            row.append(value)
        iteration += 1
    return (*state, *(_stacked(row, body, i - scanned) for i, row in enumerate(rows)))


def _stacked(row: Sequence[Array], body: Any, output: int, axis: int = 0) -> Array:
    if not row:
        raise NotImplementedError(
            f"no iteration, so that the shape of {body.output_names[output]!r} is unknown"
        )
    return np.stack(row, axis=axis)


def _scan(
    node: Any,
    *inputs: Array,
    context: Mapping[str, Any],
    body: Any,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    count = len(inputs) - num_scan_inputs
    state, scanned = list(inputs[:count]), len(body.output_names) - count
    in_axes = scan_input_axes or [0] * num_scan_inputs
    in_backwards = scan_input_directions or [0] * num_scan_inputs
    sequences = [
        np.flip(moved, 0) if backwards else moved
        for moved, backwards in zip(
            map(np.moveaxis, inputs[count:], in_axes, [0] * num_scan_inputs),
            in_backwards,
            strict=True,
        )
    ]
    rows: list[list[Array]] = [[] for _ in range(scanned)]
    for step in range(len(sequences[0])):
        slices = [np.asarray(sequence[step]) for sequence in sequences]
        own = dict(zip(body.input_names, (*state, *slices), strict=True))
        outputs = node._run_body({**context, **own}, attributes=attributes)
        state = list(outputs[:count])
        for row, value in zip(rows, outputs[count:], strict=True):
            row.append(value)
    out_axes = scan_output_axes or [0] * scanned
    out_backwards = scan_output_directions or [0] * scanned
    results = [
        _stacked(row[::-1] if backwards else row, body, i - scanned, axis)
        for i, (row, axis, backwards) in enumerate(zip(rows, out_axes, out_backwards, strict=True))
    ]
    return (*state, *results)


def _scan_8(*_inputs: Any, **_attributes: Any) -> tuple[Any, ...]:
    raise NotImplementedError("its first version, which has batches")


KERNELS = (
    Kernel("Loop", _loop, has_body=True),
    Kernel("Scan", _scan_8, since=8, below=9, has_body=True),
    Kernel("Scan", _scan, since=9, has_body=True),
)
