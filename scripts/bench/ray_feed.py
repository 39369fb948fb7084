#!/usr/bin/env python3
"""Measure how fast Ray Data gives rows to Predictors, and takes results, without any inference.

Needs the extra ``ray``, no GPU. The actors have a session that returns at once, so that the figures
are an upper bound of what the same machine can give to GPUs. Rows are read from Ray's memory.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

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

SHAPE = (3, 128, 128)  # of a row, float32: 192 KiB
BATCH = 32


class Idle:
    """A session that returns a number for each row, at once."""

    def __init__(self) -> None:
        text = "x".join(map(str, SHAPE))
        profile = ShapeRange.parse(f"1x{text}:{BATCH}x{text}:{BATCH}x{text}")
        self.inputs = (PlanTensor("x", "input", "float32", (-1, *SHAPE), profiles=(profile,)),)
        self.outputs = (PlanTensor("y", "output", "float32", (-1, 1)),)

    def map(self, batches: Iterable[Mapping[str, Any]], *, depth: int) -> Iterator[dict[str, Any]]:
        """The first value of each row."""
        del depth
        for inputs in batches:
            yield {"y": inputs["x"][:, 0, 0, :1].copy()}


class IdlePredictor(Predictor):
    """A Predictor that does everything but inference."""

    def _opened(self, plan: Any, options: Any) -> Session:
        del plan, options
        return cast(Session, Idle())


def seconds_of(actors: int, dataset: Any) -> float:
    """Time that all rows take, with the start of the actors."""
    started = time.perf_counter()
    found = dataset.map_batches(
        IdlePredictor,
        fn_constructor_args=("",),
        fn_constructor_kwargs={"keep": ["id"]},
        compute=ray.data.ActorPoolStrategy(size=actors, max_concurrent_calls_per_actor=2),
        batch_size=8 * BATCH,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=1,
    ).materialize()
    if found.count() != dataset.count():
        raise RuntimeError(f"{found.count()} rows came back")
    return time.perf_counter() - started


def measure(actors: int, rows: int, repeats: int) -> float:
    """Rows per second: of more rows than others, so that starting the actors does not count."""
    x = np.random.default_rng(0).random((8 * BATCH, *SHAPE), np.float32)
    blocks = [
        ray.data.block.BlockAccessor.batch_to_arrow_block(
            {"id": np.arange(start, start + len(x)), "x": x}
        )
        for start in range(0, rows, len(x))
    ]
    once = ray.data.from_blocks(blocks)
    often = once.union(*[once] * repeats)
    least = min(seconds_of(actors, once) for _ in range(2))
    more: int = often.count() - once.count()
    return more / (seconds_of(actors, often) - least)


@report_errors
def main(
    actors: Annotated[str, typer.Option(help="Numbers of actors.")] = "1,2",
    rows: Annotated[int, typer.Option(help="Number of different rows.")] = 2048,
    repeats: Annotated[int, typer.Option(help="How often they are measured.")] = 40,
    output: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Measure Ray Data without inference."""
    counts = [int(count) for count in actors.split(",")]
    size = 4 * int(np.prod(SHAPE))
    ray.init(
        address="local",
        num_cpus=max(counts) + 1,
        object_store_memory=max(1 << 30, 3 * rows * size),
        include_dashboard=False,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    rates = {count: measure(count, rows, repeats) for count in counts}
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
