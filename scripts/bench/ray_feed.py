#!/usr/bin/env python3
"""Measure how fast Ray Data gives rows to Predictors, and takes results, without any inference.

Needs the extra ``ray``, no GPU. The actors have a session that only copies its inputs, so that the
figures are an upper bound of what the same machine can give to GPUs; or one that waits as long as a
GPU would take. Rows are read from Ray's memory.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read by Ray: listen on loopback alone
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"

import numpy as np
import ray
import ray.data
import typer

from trt_native import Session
from trt_native.cli.console import report_errors, table
from trt_native.plans.manifest import PlanTensor
from trt_native.ray import Predictor
from trt_native.shapes import ShapeRange


class Ways(NamedTuple):
    """How rows, which are FP32, are given to an actor.

    Attributes:
        shape: Shape of a row.
        batch: Rows of a run.
        run_s: Time in seconds of a run.
        batch_size: Rows of a call.
        calls: Calls at a time.
    """

    shape: tuple[int, ...]
    batch: int
    run_s: float
    batch_size: int
    calls: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return 4 * int(np.prod(self.shape))


class Idle:
    """A session that returns a number for each row, when a GPU would have been done."""

    def __init__(self, ways: Ways) -> None:
        one, most = (1, *ways.shape), (ways.batch, *ways.shape)
        profile = ShapeRange(one, most, most)
        self.inputs = (PlanTensor("x", "input", "float32", (-1, *one[1:]), profiles=(profile,)),)
        self.outputs = (PlanTensor("y", "output", "float32", (-1, 1)),)
        self._staging = np.zeros(most, np.float32)
        self._run_s, self._end = ways.run_s, 0.0

    def submit(self, inputs: Mapping[str, Any]) -> IdleRun:
        """Copy the inputs, as to page-locked memory, and return the first value of each row."""
        x = inputs["x"]
        np.copyto(self._staging[: len(x)], x)
        self._end = max(self._end, time.perf_counter()) + self._run_s
        return IdleRun(x.reshape(len(x), -1)[:, :1].copy(), self._end)


class IdleRun:
    """A run that ends at a time."""

    def __init__(self, y: Any, end: float) -> None:
        self._y, self._end = y, end

    def result(self) -> dict[str, Any]:
        """Wait for the end."""
        time.sleep(max(self._end - time.perf_counter(), 0.0))
        return {"y": self._y}


class IdlePredictor(Predictor):
    """A Predictor that does everything but inference; its plan is the ways."""

    def _opened(self, plan: Any, options: Any) -> Session:
        del options
        return cast(Session, Idle(plan))


def seconds_of(actors: int, dataset: Any, ways: Ways) -> float:
    """Time that all rows take, with the start of the actors."""
    started = time.perf_counter()
    found = dataset.map_batches(
        IdlePredictor,
        fn_constructor_args=(ways,),
        fn_constructor_kwargs={"keep": ["id"]},
        compute=ray.data.ActorPoolStrategy(size=actors, max_concurrent_calls_per_actor=ways.calls),
        batch_size=ways.batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=1,
    ).materialize()
    if found.count() != dataset.count():
        raise RuntimeError(f"{found.count()} rows came back")
    return time.perf_counter() - started


def measure(actors: int, rows: int, repeats: int, ways: Ways) -> float:
    """Rows per second: of more rows than others, so that starting the actors does not count."""
    block = 4 * ways.batch_size
    x = np.random.default_rng(0).random((block, *ways.shape), np.float32)
    to_arrow = ray.data.block.BlockAccessor.batch_to_arrow_block
    blocks: list[Any] = [
        ray.put(to_arrow({"id": np.arange(start, start + block), "x": x}))
        for start in range(0, rows, block)
    ]
    once = ray.data.from_arrow_refs(blocks)
    often = ray.data.from_arrow_refs(blocks * (repeats + 1))
    least = min(seconds_of(actors, once, ways) for _ in range(2))
    more: int = often.count() - once.count()
    return more / (seconds_of(actors, often, ways) - least)


@report_errors
def main(
    actors: Annotated[str, typer.Option(help="Numbers of actors.")] = "1,2",
    rows: Annotated[int, typer.Option(help="Number of different rows.")] = 2048,
    repeats: Annotated[int, typer.Option(help="How often they are measured.")] = 40,
    row: Annotated[str, typer.Option(help="Shape of a row, in FP32.")] = "3x128x128",
    batch: Annotated[int, typer.Option(help="Rows of a run.")] = 32,
    run_ms: Annotated[float, typer.Option(help="Time of a run.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Rows of a call.")] = 256,
    calls: Annotated[int, typer.Option(help="Calls of an actor at a time.")] = 4,
    output: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Measure Ray Data without inference."""
    counts = [int(count) for count in actors.split(",")]
    shape = tuple(map(int, row.split("x")))
    ways = Ways(shape, batch, run_ms / 1e3, batch_size, calls)
    size = ways.row_bytes
    ray.init(
        address="local",
        num_cpus=max(counts) + 1,
        object_store_memory=max(1 << 30, 3 * rows * size),
        include_dashboard=False,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    rates = {count: measure(count, rows, repeats, ways) for count in counts}
    ray.shutdown()
    table(
        f"{rows * repeats} rows of {size} bytes",
        ("actors", "rows/s", "MB/s"),
        ((n, f"{rate:.0f}", f"{rate * size / 1e6:.0f}") for n, rate in rates.items()),
    )
    if output is not None:
        output.write_text(json.dumps({"bytes": size, "rows_per_s": rates}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
