#!/usr/bin/env python3
"""Measure the overhead of a session against bare TensorRT calls and Polygraphy.

Needs a GPU, PyTorch with CUDA, and Polygraphy (``pip install polygraphy==0.53.6``, or its wheel on
PYTHONPATH). Takes less than a minute. Everything runs the same plan of four FP32 convolutions, one
plan for each shape: with static shapes all runtimes get the same kernels. Results are
checked against PyTorch first. All are measured in turns, so that clocks drift alike for all;
figures are medians. The exit code is 1 if a bound is missed.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from cuda.bindings import driver
from onnx import TensorProto, helper, numpy_helper

from trt_native import BuildConfig, Engine, Plan, Precision, Session, build_plan
from trt_native.bench import BenchOptions, bench_plan
from trt_native.cli.console import report_errors, stdout, table
from trt_native.cuda import require_gpu
from trt_native.errors import CudaError, UnsupportedError

SHAPES = ((2, 64, 64, 64), (4, 64, 128, 128))
ROUNDS = 15
ROUND_SECONDS = 0.02  # that each way gets in each round
MAP_CALLS = 100
QUEUED = 64  # executions between two synchronisations of the loops timed by events
TOLERANCE = 2e-3  # relative L2 error against PyTorch in float64: room for TF32

BARE, BARE_GRAPH = "bare enqueue + sync", "bare graph replay + sync"
RUN, SUBMIT = "Session.run, CUDA tensors", "Session.submit alone, CUDA tensors"
POLYGRAPHY, POLYGRAPHY_NUMPY = "Polygraphy, CUDA tensors", "Polygraphy, NumPy"
RUN_NUMPY, MAP = "Session.run, NumPy", "Session.map depth 2, NumPy, per call"
COPY_IN, COPY_OUT = "host copy in, np.copyto", "host copy out, np.copyto"
STAGES = (COPY_IN, "H2D", "compute", "D2H", COPY_OUT)
# As map has them: it copies in by several threads, and its results stay where D2H puts them.
OWN_COPY_IN = "host copy in, as map copies"
OWN_STAGES = (OWN_COPY_IN, "H2D", "compute", "D2H")
BENCH_COMPUTE = "GPU compute by trt-native bench"

Array = np.ndarray[Any, np.dtype[np.float32]]


def call(result: tuple[Any, ...]) -> Any:
    """Return the value of a driver call, if it succeeded."""
    code, *values = result
    if int(code) != 0:
        raise CudaError(f"the CUDA driver returned {code.name} (code {int(code)})")
    return values[0] if values else None


def make_model(path: Path, shape: tuple[int, ...]) -> list[Array]:
    """Write four 3x3 convolutions with ReLU between them; returns their weights."""
    random = np.random.default_rng(0)
    channels = shape[1]
    scale = (2 / (9 * channels)) ** 0.5
    weights = [
        (random.standard_normal((channels, channels, 3, 3), np.float32) * scale) for _ in range(4)
    ]
    nodes = []
    for index in range(4):
        names = [f"a{index}" if index else "x", f"w{index}"]
        after = f"c{index}" if index < 3 else "y"
        nodes.append(helper.make_node("Conv", names, [after], pads=[1, 1, 1, 1]))
        if index < 3:
            nodes.append(helper.make_node("Relu", [after], [f"a{index + 1}"]))
    graph = helper.make_graph(
        nodes,
        "four_convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, path)
    return weights


def reference(weights: list[Array], x: Array) -> Any:
    """The same in PyTorch, in float64."""
    value = torch.from_numpy(x).cuda().double()
    for index, weight in enumerate(weights):
        kernel = torch.from_numpy(weight).cuda().double()
        value = torch.nn.functional.conv2d(value, kernel, padding=1)
        value = torch.relu(value) if index < 3 else value
    return value.cpu().numpy()


class Bare:
    """The engine run with nothing but TensorRT and the driver."""

    def __init__(self, engine: Engine, x: Array) -> None:
        self.x, self.nbytes = x, x.nbytes
        self.context = engine.create_context()
        self.stream = call(driver.cuStreamCreate(1))  # not ordered with the default stream
        self.device = {name: call(driver.cuMemAlloc(x.nbytes)) for name in "xy"}
        self.host = {name: self._pinned(x) for name in "xy"}
        self.host["x"][...] = x
        for name, address in self.device.items():
            if not self.context.set_tensor_address(name, int(address)):
                raise CudaError(f"TensorRT refused the address of {name!r}")
        self.upload()
        self.enqueue()
        self.synchronize()
        self.graph = self._capture()

    def _pinned(self, like: Array) -> Array:
        address = int(call(driver.cuMemHostAlloc(like.nbytes, 0)))
        memory: Any = (ctypes.c_byte * like.nbytes).from_address(address)
        pinned: Array = np.ndarray(like.shape, like.dtype, buffer=memory)
        return pinned

    def _capture(self) -> Any:
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(driver.cuStreamBeginCapture(self.stream, mode))
        self.enqueue()
        return call(driver.cuGraphInstantiate(call(driver.cuStreamEndCapture(self.stream)), 0))

    def enqueue(self) -> None:
        """Enqueue the kernels."""
        if not self.context.execute_async_v3(int(self.stream)):
            raise CudaError("TensorRT failed to run the engine")

    def replay(self) -> None:
        """Launch the graph."""
        call(driver.cuGraphLaunch(self.graph, self.stream))

    def upload(self) -> None:
        """Copy the input to the GPU."""
        source = self.host["x"].ctypes.data
        call(driver.cuMemcpyHtoDAsync(self.device["x"], source, self.nbytes, self.stream))

    def download(self) -> None:
        """Copy the output from the GPU."""
        target = self.host["y"].ctypes.data
        call(driver.cuMemcpyDtoHAsync(target, self.device["y"], self.nbytes, self.stream))

    def synchronize(self) -> None:
        """Wait for all work of the stream."""
        call(driver.cuStreamSynchronize(self.stream))

    def result(self, action: Callable[[], None]) -> Array:
        """Return the output of a run by ``action``."""
        self.host["y"].fill(np.nan)
        self.upload()
        call(driver.cuMemsetD8Async(self.device["y"], 0xFF, self.nbytes, self.stream))
        action()
        self.download()
        self.synchronize()
        found: Array = self.host["y"].copy()
        return found

    def close(self) -> None:
        """Free the memory, the graph and the stream."""
        self.synchronize()
        self.context = None
        call(driver.cuGraphExecDestroy(self.graph))
        for name in "xy":
            call(driver.cuMemFree(self.device[name]))
            call(driver.cuMemFreeHost(self.host[name].ctypes.data))
        call(driver.cuStreamDestroy(self.stream))

    def event_times(self, action: Callable[[], None]) -> list[float]:
        """Measure each of many runs, in seconds between two events, with the queue never empty."""
        events = [call(driver.cuEventCreate(0)) for _ in range(2 * QUEUED)]
        action()
        for begin, end in zip(events[::2], events[1::2], strict=True):
            call(driver.cuEventRecord(begin, self.stream))
            action()
            call(driver.cuEventRecord(end, self.stream))
        self.synchronize()
        pairs = zip(events[::2], events[1::2], strict=True)
        times = [call(driver.cuEventElapsedTime(begin, end)) / 1e3 for begin, end in pairs]
        for event in events:
            call(driver.cuEventDestroy(event))
        return times


def polygraphy_runner(engine: Engine) -> Any:
    """Create a ``TrtRunner`` of the same engine, which uses TensorRT-RTX if the engine does."""
    # Both are read when Polygraphy is first imported, or first uses CUDA.
    if engine.backend.product == "TensorRT-RTX":
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
    found = [str(p) for path in sys.path if path for p in Path(path).glob("nvidia/*/lib")]
    runtime = [folder for folder in found if list(Path(folder).glob("libcudart.so*"))]
    known = os.environ.get("LD_LIBRARY_PATH", "")
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (known, *runtime)))
    try:
        module: Any = importlib.import_module("polygraphy.backend.trt")
    except ImportError:
        raise UnsupportedError("Polygraphy is missing: pip install polygraphy==0.53.6") from None
    runner = module.TrtRunner(engine.native)
    runner.activate()
    return runner


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
        bare = Bare(engine, x)
        stack.callback(bare.close)
        runner = polygraphy_runner(engine)
        stack.callback(runner.deactivate)
        ways = checked_ways(bare, device, host, runner, reference(weights, x))
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


def checked_ways(
    bare: Bare, device: Any, host: Any, runner: Any, expected: Any
) -> dict[str, Callable[[], Any]]:
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
    equal(POLYGRAPHY, runner.infer(tensors, copy_outputs_to_host=False)["y"], y)
    equal(POLYGRAPHY_NUMPY, runner.infer(arrays)["y"], y)

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
        POLYGRAPHY: lambda: host_times(lambda: runner.infer(tensors, copy_outputs_to_host=False)),
        POLYGRAPHY_NUMPY: lambda: host_times(lambda: runner.infer(arrays)),
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
    """A limit of one figure."""

    shape: str
    what: str
    found: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the limit is met."""
        return bool(self.found >= self.limit if self.at_least else self.found <= self.limit)


def bounds(shape: tuple[int, ...], medians: dict[str, float]) -> list[Bound]:
    """Compare median seconds at a shape with their limits."""
    text = "x".join(map(str, shape))
    us = {name: seconds * 1e6 for name, seconds in medians.items()}
    slowest, own = (max(stages, key=lambda stage: us[stage]) for stages in (STAGES, OWN_STAGES))
    off = abs(us[BENCH_COMPUTE] / us["bare events"] - 1) * 100
    found = [
        Bound(text, "Session.run above graph replay", us[RUN] - us[BARE_GRAPH], 12, "µs"),
        Bound(text, "submit alone", us[SUBMIT], 15, "µs"),
        Bound(
            text, "map over Polygraphy, NumPy", us[POLYGRAPHY_NUMPY] / us[MAP], 2.5, "times", True
        ),
        Bound(
            text, f"map over the slowest stage ({slowest})", us[MAP] / us[slowest], 1.15, "times"
        ),
        Bound(text, f"map over its own slowest stage ({own})", us[MAP] / us[own], 1.15, "times"),
        Bound(text, "bench's GPU compute off a bare event loop", off, 2, "%"),
    ]
    if shape == SHAPES[0]:
        found.append(
            Bound(
                text,
                "Session.run over Polygraphy, CUDA",
                us[POLYGRAPHY] / us[RUN],
                1.6,
                "times",
                True,
            )
        )
    return found


def clocks() -> dict[str, str]:
    """Query nvidia-smi for the GPU's clocks and driver."""
    names = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw")
    command = ("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader")
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(names, map(str.strip, printed.splitlines()[0].split(",")), strict=False))


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
            f"{'at least' if b.at_least else 'at most'} {b.limit:g} {b.unit}",
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


def versions() -> dict[str, str]:
    """Return the versions of all measured packages."""
    from importlib.metadata import PackageNotFoundError, version

    from trt_native.backends.registry import load_backend

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "numpy", "cuda-core", "cuda-bindings", "polygraphy", "trt-native"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    backend = load_backend("auto")
    return {**found, backend.product: backend.version}


if __name__ == "__main__":
    typer.run(main)
