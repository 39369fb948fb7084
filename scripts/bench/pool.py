#!/usr/bin/env python3
"""Compare the throughput of Session.map on one GPU with that of SessionPool.map on several.

Needs the GPUs that it is given. Inputs are random, of the optimum shapes, in host memory. Each way
has a process of its own, and they take turns; the figures are medians over the rounds. The results
of a pool are compared with those of Session.run first, bit for bit, so the GPUs must be of one
model. The exit code is 1 if a bound is given and missed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from processes import Row, read_lines

from trt_native import Engine, Session, SessionPool
from trt_native.cli.console import report_errors, stderr, stdout, table
from trt_native.cuda import device_ordinal, require_gpu
from trt_native.errors import SpecError
from trt_native.runtime.input_checks import zeros_for

DISTINCT_INPUTS = 8
PROCESS_SECONDS = 900.0

Inputs = dict[str, Any]


def random_inputs(session: Session | SessionPool, seed: int) -> Inputs:
    """Inputs of the first profile's optimum shapes, with normal values where they are floats."""
    generator = np.random.default_rng(seed)
    zeros = zeros_for(session.inputs, {})
    return {
        name: generator.standard_normal(zero.shape, np.float32).astype(zero.dtype)
        if zero.dtype.kind not in "iub"
        else zero
        for name, zero in zeros.items()
    }


def repeated(inputs: list[Inputs], count: int) -> Iterator[Inputs]:
    """Yield a number of inputs, over and over the same ones."""
    for i in range(count):
        yield inputs[i % len(inputs)]


def drain(results: Iterable[Any]) -> int:
    """Receive all results and return how many there were."""
    return sum(1 for _ in results)


def check_equal(plan: Path, pool: SessionPool, inputs: list[Inputs]) -> None:
    """Compare the pool's results with those of a session on its first GPU.

    Raises:
        SpecError: one differs.
    """
    ordinal = device_ordinal(pool.devices[0])
    found = list(pool.map(repeated(inputs, 4 * len(inputs))))
    with Engine(plan, ordinal=ordinal) as engine, Session(engine) as session:
        expected = [session.run(one) for one in inputs]
    for i, outputs in enumerate(found):
        for name, array in outputs.items():
            if array.tobytes() != expected[i % len(inputs)][name].tobytes():
                raise SpecError(f"result {i} of {pool!r}: {name!r} differs from Session.run's")


def measure(plan: Path, devices: list[str], depth: int, seconds: float) -> dict[str, Any]:
    """Measure one way in this process: a session for one device, else a pool."""
    runner: Session | SessionPool
    with ExitStack() as resources:
        if len(devices) == 1:
            engine = resources.enter_context(Engine(plan, ordinal=device_ordinal(devices[0])))
            runner = session = resources.enter_context(Session(engine))
            inputs = [random_inputs(runner, seed) for seed in range(DISTINCT_INPUTS)]

            def run(count: int) -> int:
                return drain(session.map(repeated(inputs, count), depth=depth))

        else:
            runner = pool = resources.enter_context(SessionPool(devices, plan, depth=depth))
            inputs = [random_inputs(runner, seed) for seed in range(DISTINCT_INPUTS)]
            check_equal(plan, pool, inputs)

            def run(count: int) -> int:
                return drain(pool.map(repeated(inputs, count)))

        count = 16 * len(devices)
        run(count)
        while True:  # a run that is too short for the clock makes the next one longer
            start = time.perf_counter()
            done = run(count)
            taken = time.perf_counter() - start
            if taken >= seconds:
                return {"devices": devices, "inputs": done, "seconds": taken}
            count = int(count * min(10.0, max(1.5, 1.2 * seconds / taken)))


@report_errors
def main(
    plan: Annotated[Path, typer.Argument(help="The plan to run.")],
    devices: Annotated[str, typer.Option(help="The GPUs of the pool.")] = "cuda:0,cuda:1",
    depth: Annotated[int, typer.Option(help="Runs in flight ahead, on each GPU.")] = 2,
    rounds: Annotated[int, typer.Option(help="Processes of each way.")] = 3,
    seconds: Annotated[float, typer.Option(help="Least time of a measurement.")] = 5.0,
    bound: Annotated[float | None, typer.Option(help="Least speedup to exit with 0.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    process: Annotated[bool, typer.Option("--process", hidden=True)] = False,
) -> None:
    """Compare Session.map on one GPU with SessionPool.map on several."""
    names = devices.split(",")
    if process:
        print(json.dumps(measure(plan, names, depth, seconds)), flush=True)
        return
    ways: dict[str, list[float]] = {names[0]: [], devices: []}
    for turn in range(rounds):
        for way, rates in ways.items():
            words = [sys.executable, __file__, str(plan), "--process", "--devices", way]
            words += ["--depth", str(depth), "--seconds", str(seconds)]
            rows: list[Row] = []
            read_lines(words, rows.append, PROCESS_SECONDS)
            rates.append(rows[0]["inputs"] / rows[0]["seconds"])
            stderr.print(f"round {turn + 1}, {way}: {rates[-1]:.1f} inputs/s", highlight=False)
    medians = {way: statistics.median(rates) for way, rates in ways.items()}
    speedup = medians[devices] / medians[names[0]]
    gpus = [require_gpu(device_ordinal(name)).name for name in names]
    table(
        f"{plan.name} on {', '.join(gpus)}",
        ("devices", "median inputs/s", "least", "most"),
        (
            (way, f"{medians[way]:.1f}", f"{min(rates):.1f}", f"{max(rates):.1f}")
            for way, rates in ways.items()
        ),
    )
    stdout.print(f"SessionPool: {speedup:.3f} times the throughput of Session.map", highlight=False)
    if output is not None:
        figures = {"gpus": gpus, "depth": depth, "inputs_per_s": ways, "speedup": speedup}
        output.write_text(json.dumps(figures, indent=2) + "\n")
    if bound is not None and speedup < bound:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
