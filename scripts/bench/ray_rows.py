#!/usr/bin/env python3
"""Compare the throughput of trt_native.ray.predict with that of Session.map alone.

Needs a GPU and the extra ``ray``. Rows are random, of the shape of the plan's inputs without their
first axis, and in Ray's memory before the time starts, as they are in that of Session.map. The
results of both are compared. predict's time begins with the first rows that come back, so that the
start of its actor does not count. The exit code is 1 if a bound is given and missed.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read by Ray: listen on loopback alone
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"

import numpy as np
import ray
import ray.data
import typer

from trt_native import Session
from trt_native.cli.console import report_errors, stdout, table
from trt_native.errors import SpecError
from trt_native.plans.manifest import read_manifest
from trt_native.ray import predict
from trt_native.ray.rows import RowBatcher

Columns = dict[str, Any]


def make_rows(plan: Path, rows: int) -> Columns:
    """Random rows for a plan, and their numbers in the column ``id``."""
    generator = np.random.default_rng(0)
    manifest = read_manifest(plan)
    if manifest is None:
        raise SpecError(f"{plan}: has no manifest, which names its inputs")
    columns: Columns = {"id": np.arange(rows)}
    for tensor in manifest.tensors:
        if tensor.mode != "input":
            continue
        shape = tensor.profiles[0].opt if tensor.profiles else tensor.shape
        columns[tensor.name] = _random(generator, (rows, *shape[1:]), np.dtype(tensor.dtype))
    return columns


def _random(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Any:
    if np.issubdtype(dtype, np.integer):
        return generator.integers(0, 127, shape, dtype)
    return generator.standard_normal(shape, np.float32).astype(dtype)


def alone(session: Session, columns: Columns) -> Columns:
    """The outputs of Session.map, in the batches that a Predictor makes."""
    batcher = RowBatcher(session.inputs, session.outputs)
    inputs = {tensor.name: columns[tensor.name] for tensor in session.inputs}
    batches = list(batcher.batches(inputs))
    results = list(session.map(batch.inputs for batch in batches))
    return batcher.joined(list(zip(batches, results, strict=True)))


def on_ray(dataset: Any, plan: Path, batch_size: int) -> tuple[list[Columns], float]:
    """The results of predict in blocks, and rows per second from the first block to the last."""
    done = predict(dataset, plan, batch_size=batch_size, keep=["id"])
    blocks, times = [], []
    for block in done.iter_batches(batch_size=None, batch_format="numpy"):
        blocks.append(block)
        times.append(time.perf_counter())
    later = sum(len(block["id"]) for block in blocks[1:])
    return blocks, later / (times[-1] - times[0])


def check(blocks: list[Columns], expected: Columns, repeats: int) -> None:
    """Check that every row came back as often as it was given, with the outputs of the session.

    Raises:
        SpecError: rows are missing, or some came too often.
        AssertionError: outputs differ.
    """
    counts = np.bincount(np.concatenate([block["id"] for block in blocks]))
    rows = len(next(iter(expected.values())))
    if counts.shape != (rows,) or (counts != repeats).any():
        raise SpecError(f"{counts.sum()} rows came back instead of {repeats * rows}, or some twice")
    for block in blocks:
        for name, array in expected.items():
            np.testing.assert_allclose(block[name], array[block["id"]], rtol=1e-3, atol=1e-3)


@report_errors
def main(
    plan: Annotated[Path, typer.Argument(help="The plan to run.")],
    rows: Annotated[int, typer.Option(help="Number of rows.")] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Rows that the actor gets at a time.")] = 256,
    repeats: Annotated[int, typer.Option(help="How often the rows are measured.")] = 20,
    rounds: Annotated[int, typer.Option(help="Measurements of each way, in turn.")] = 3,
    bound: Annotated[float | None, typer.Option(help="Least ratio to exit with 0.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Compare predict with Session.map alone."""
    columns = make_rows(plan, rows)
    ray.init(address="local", num_gpus=1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    parts = range(0, rows, 4 * batch_size)
    to_arrow = ray.data.block.BlockAccessor.batch_to_arrow_block
    blocks_in: list[Any] = [
        ray.put(to_arrow({name: array[i : i + 4 * batch_size] for name, array in columns.items()}))
        for i in parts
    ]
    often = ray.data.from_arrow_refs(blocks_in * repeats)
    rates: dict[str, list[float]] = {"Session.map": [], "predict": []}
    for _ in range(rounds):
        with Session(plan) as session:
            expected = alone(session, columns)  # kernels and CUDA graphs are there from here on
            started = time.perf_counter()
            for _ in range(repeats):
                alone(session, columns)
            rates["Session.map"].append(repeats * rows / (time.perf_counter() - started))
        blocks, rate = on_ray(often, plan, batch_size)
        rates["predict"].append(rate)
        check(blocks, expected, repeats)
    ray.shutdown()
    medians = {way: statistics.median(each) for way, each in rates.items()}
    ratio = medians["predict"] / medians["Session.map"]
    table(
        f"{rows} rows, {repeats} times, through {plan.name}",
        ("", "median rows/s", "least", "most"),
        ((w, f"{medians[w]:.0f}", f"{min(r):.0f}", f"{max(r):.0f}") for w, r in rates.items()),
    )
    stdout.print(f"predict: {ratio:.3f} times the throughput of Session.map", highlight=False)
    if output is not None:
        figures = {"rows": rows, "batch_size": batch_size, "rows_per_s": rates, "ratio": ratio}
        output.write_text(json.dumps(figures, indent=2) + "\n")
    if bound is not None and ratio < bound:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
