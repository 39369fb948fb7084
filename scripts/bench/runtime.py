#!/usr/bin/env python3
"""Measure the overhead of a session against bare TensorRT calls.

Needs a GPU and PyTorch with CUDA. Takes less than a minute. Everything runs the same plan of four
FP32 convolutions, one plan for each shape: with static shapes both get the same kernels. Results
are checked against PyTorch first. All are measured in turns in one process, so that clocks drift
alike for all; figures are medians. The exit code is 1 if a bound is missed. Other runtimes have
processes of their own: peers.py.
"""

from __future__ import annotations

import gc
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from bare import Array, Bare
from convolutions import SHAPES, TOLERANCE, make_model, reference
from machine import clocks, versions

from trt_native import BuildConfig, Engine, Plan, Precision, Session, build_plan
from trt_native.bench import BenchOptions, bench_plan
from trt_native.cli.console import report_errors, stdout, table
from trt_native.cuda import require_gpu
from trt_native.errors import CudaError

ROUNDS = 15
ROUND_SECONDS = 0.02  # that each way gets in each round
MAP_CALLS = 100

BARE, BARE_GRAPH = "bare enqueue + sync", "bare graph replay + sync"
RUN, SUBMIT = "Session.run, CUDA tensors", "Session.submit alone, CUDA tensors"
RUN_NUMPY, MAP = "Session.run, NumPy", "Session.map depth 2, NumPy, per call"
COPY_IN, COPY_OUT = "host copy in, np.copyto", "host copy out, np.copyto"
STAGES = (COPY_IN, "H2D", "compute", "D2H", COPY_OUT)
# As map has them: it copies in by several threads, and its results stay where D2H puts them.
OWN_COPY_IN = "host copy in, as map copies"
OWN_STAGES = (OWN_COPY_IN, "H2D", "compute", "D2H")
BENCH_COMPUTE = "GPU compute by trt-native bench"


def host_times(action: Callable[[], object]) -> Iterator[float]:
    """Measure each call for one round, in seconds on the host's clock."""
    start = time.perf_counter()
    while time.perf_counter() - start < ROUND_SECONDS:
        before = time.perf_counter()
        action()
        yield time.perf_counter() - before


def submit_times(session: Any, inputs: dict[str, Any]) -> Iterator[float]:
    """Measure ``submit`` alone, in seconds, without the wait for its result."""
    start = time.perf_counter()
    while time.perf_counter() - start < ROUND_SECONDS:
        before = time.perf_counter()
        future = session.submit(inputs)
        yield time.perf_counter() - before
        future.result()


def map_times(session: Any, inputs: dict[str, Any]) -> Iterator[float]:
    """Measure one pass through ``map``, in seconds per call, with filling and draining."""
    before = time.perf_counter()
    count = sum(1 for _ in session.map([inputs] * MAP_CALLS, depth=2))
    yield (time.perf_counter() - before) / count


def equal(name: str, found: Any, expected: Array) -> None:
    """Check a result before it is timed."""
    array = found.cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    error = float(np.linalg.norm(array - expected) / np.linalg.norm(expected))
    if not error <= 1e-5:
        raise CudaError(f"{name}: relative L2 error {error:.2e} against bare TensorRT")


def measure(folder: Path, shape: tuple[int, ...]) -> dict[str, float]:
    """Measure median seconds of each way, for one shape."""
    model = folder / "model.onnx"
    weights = make_model(model, shape)
    plan = build_plan(model, BuildConfig(precision=Precision.TF32))
    x: Array = np.random.default_rng(1).standard_normal(shape, np.float32)
    with ExitStack() as stack:
        engine = stack.enter_context(Engine(plan))
        device = stack.enter_context(Session(engine))
        host = stack.enter_context(Session(engine))
        bare = Bare(engine.create_context(), x)
        stack.callback(bare.close)
        ways = checked_ways(bare, device, host, reference(weights, x))
        times: dict[str, list[float]] = {name: [] for name in ways}
        for name in ways:  # once for all, so that nothing is compiled or captured below
            list(ways[name]())
        gc.collect()
        for _ in range(ROUNDS):
            for name, way in ways.items():
                times[name] += way()
        medians = {name: statistics.median(values) for name, values in times.items()}
        medians |= bench_against_events(plan, x, bare)
    return medians


def checked_ways(bare: Bare, device: Any, host: Any, expected: Any) -> dict[str, Callable[[], Any]]:
    """Return everything to be timed, after a check of its result."""
    x = bare.x
    tensors = {"x": torch.from_numpy(x).cuda()}
    arrays = {"x": x}
    torch.cuda.synchronize()
    y = bare.result(bare.enqueue)
    error = float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
    if not error <= TOLERANCE:
        raise CudaError(f"bare TensorRT: relative L2 error {error:.2e} against PyTorch")
    equal(BARE_GRAPH, bare.result(bare.replay), y)
    equal(RUN, device.run(tensors)["y"], y)
    equal(SUBMIT, device.submit(tensors).result()["y"], y)
    equal(RUN_NUMPY, host.run(arrays)["y"], y)
    for result in host.map([arrays] * 4, depth=2):
        equal(MAP, result["y"], y)

    cuda: Any = importlib.import_module("trt_native.cuda")
    taken = np.empty_like(x)

    def bare_call(action: Callable[[], None]) -> None:
        action()
        bare.synchronize()

    return {
        BARE: lambda: host_times(lambda: bare_call(bare.enqueue)),
        BARE_GRAPH: lambda: host_times(lambda: bare_call(bare.replay)),
        RUN: lambda: host_times(lambda: device.run(tensors)),
        SUBMIT: lambda: submit_times(device, tensors),
        RUN_NUMPY: lambda: host_times(lambda: host.run(arrays)),
        MAP: lambda: map_times(host, arrays),
        "H2D": lambda: bare.event_times(bare.upload),
        "compute": lambda: bare.event_times(bare.replay),
        "D2H": lambda: bare.event_times(bare.download),
        COPY_IN: lambda: host_times(lambda: np.copyto(bare.host["x"], x)),
        COPY_OUT: lambda: host_times(lambda: np.copyto(taken, bare.host["y"])),
        OWN_COPY_IN: lambda: host_times(lambda: cuda.copy_host(bare.host["x"], x)),
    }


def bench_against_events(plan: Plan, x: Array, bare: Bare) -> dict[str, float]:
    """Measure GPU compute by ``trt-native bench``, and by a bare loop before and after it."""
    options = BenchOptions(duration_s=0.15, warmup_s=0.1)
    around, reported = [], []
    for _ in range(3):
        around += [t for _ in range(10) for t in bare.event_times(bare.replay)]
        report = bench_plan(plan, lambda _: {"x": x}, options)
        reported += list(report.samples["gpu_compute"] / 1e3)
        around += [t for _ in range(10) for t in bare.event_times(bare.replay)]
    return {BENCH_COMPUTE: statistics.median(reported), "bare events": statistics.median(around)}


@dataclass(frozen=True)
class Bound:
    """The most that one figure may be."""

    shape: str
    what: str
    found: float
    limit: float
    unit: str

    @property
    def reached(self) -> bool:
        """Whether the limit is met."""
        return self.found <= self.limit


def bounds(shape: tuple[int, ...], medians: dict[str, float]) -> list[Bound]:
    """Compare median seconds at a shape with their limits."""
    text = "x".join(map(str, shape))
    us = {name: seconds * 1e6 for name, seconds in medians.items()}
    slowest, own = (max(stages, key=lambda stage: us[stage]) for stages in (STAGES, OWN_STAGES))
    off = abs(us[BENCH_COMPUTE] / us["bare events"] - 1) * 100
    return [
        Bound(text, "Session.run above graph replay", us[RUN] - us[BARE_GRAPH], 12, "µs"),
        Bound(text, "submit alone", us[SUBMIT], 15, "µs"),
        Bound(
            text, f"map over the slowest stage ({slowest})", us[MAP] / us[slowest], 1.15, "times"
        ),
        Bound(text, f"map over its own slowest stage ({own})", us[MAP] / us[own], 1.15, "times"),
        Bound(text, "bench's GPU compute off a bare event loop", off, 2, "%"),
    ]


@report_errors
def main(
    output: Annotated[Path | None, typer.Option(help="Write all as JSON to this file.")] = None,
) -> None:
    """Measure at both shapes; print the times and which bounds are met."""
    gpu = require_gpu()
    medians, judged, seen = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            medians[shape] = measure(Path(folder), shape)
            judged += bounds(shape, medians[shape])
            seen.append(clocks())
    texts = ["x".join(map(str, shape)) for shape in SHAPES]
    rows = [
        (name, *(f"{medians[shape][name] * 1e6:.1f}" for shape in SHAPES))
        for name in medians[SHAPES[0]]
    ]
    table(f"{gpu.name}, CUDA {gpu.driver}, {seen[-1]}", ("median µs per call", *texts), rows)
    results = [
        (
            b.shape,
            b.what,
            f"{b.found:.2f} {b.unit}",
            f"at most {b.limit:g} {b.unit}",
            "reached" if b.reached else "MISSED",
        )
        for b in judged
    ]
    table("Bounds", ("shape", "what", "found", "bound", "result"), results)
    if output is not None:
        data = {
            "gpu": asdict(gpu),
            "nvidia_smi": seen,
            "versions": versions(),
            "median_us": {
                text: {name: seconds * 1e6 for name, seconds in medians[shape].items()}
                for text, shape in zip(texts, SHAPES, strict=True)
            },
            "bounds": [{**asdict(b), "reached": b.reached} for b in judged],
        }
        output.write_text(json.dumps(data, indent=1))
    missed = sum(not b.reached for b in judged)
    stdout.print(f"{len(judged) - missed} of {len(judged)} bounds reached", highlight=False)
    if missed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
