#!/usr/bin/env python3
"""Costs and gains of INT8 and FP8 on a GPU: calibration, plan sizes, times.

Three parts, each a command, so that they fit into short GPU sessions:

    quantization.py ranges                       # what entropy takes beyond inference
    quantization.py calibrate unet.onnx -o unet.calib --dim batch=2 --dim frames=16 ...
    quantization.py plans unet.onnx --calib unet.calib --dim batch=2 --dim frames=16 ...

The full-size U-Net: trt-native export latentsync --random-weights 0 --precision fp16 -o unet.onnx
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import numpy as np
import typer

from trt_native.arrays import Array, Batch
from trt_native.backends.registry import load_backend
from trt_native.builder.build_plan import build_plan
from trt_native.builder.engine_calibration import EngineActivations
from trt_native.builder.select_precision import time_sessions
from trt_native.calibration.batches import read_batches
from trt_native.calibration.collect import calibrate as find_cache
from trt_native.calibration.device import DeviceStatistics
from trt_native.calibration.ranges import entropy_threshold
from trt_native.cli.console import report_errors, stderr, stdout, table
from trt_native.config import (
    BuildConfig,
    CalibrationMethod,
    CalibrationRunner,
    Precision,
    QuantizationSpec,
)
from trt_native.cuda import GpuInfo, require_gpu
from trt_native.errors import SpecError, TrtNativeError
from trt_native.graph.dims import resolve_profiles
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.plans.plan import Plan
from trt_native.runtime import Session
from trt_native.shapes import ProfileSpec, TensorSpec
from trt_native.units import format_bytes, parse_bytes

app = typer.Typer(add_completion=False, help=__doc__)

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL.onnx")]
Dims = Annotated[list[str] | None, typer.Option(help="NAME=N of a symbolic dimension.")]
JsonFile = Annotated[Path | None, typer.Option(help="Write the figures to this file, too.")]
_TIMESTEPS = 1000
_GIB = 2**30


class Memory:
    """The most GPU memory in use while the block ran, whoever used it, and before it."""

    def __init__(self, ordinal: int = 0) -> None:
        self._ordinal = ordinal
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self.peak = self._used()

    def _used(self) -> int:
        gpu = require_gpu(self._ordinal)
        return gpu.total_bytes - gpu.free_bytes

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self._used())

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()


class Phases:
    """A progress that adds up how long the phases of each kind took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: dict[str, tuple[float, bool]] = {}

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
        """See :class:`trt_native.progress.Progress`."""
        self._open[phase] = (time.perf_counter(), parent is None)

    def step_complete(self, phase: str, step: int) -> None:
        """See :class:`trt_native.progress.Progress`."""

    def phase_finish(self, phase: str) -> None:
        """See :class:`trt_native.progress.Progress`."""
        started, outermost = self._open.pop(phase)
        if outermost:
            self.seconds[phase] = time.perf_counter() - started
            stderr.print(f"{self.seconds[phase]:7.1f} s  {phase}", highlight=False)


class Values:
    """Numbers in GPU memory."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        from cuda.bindings import driver
        from cuda.core import Device

        device = Device()
        device.set_current()
        stream = device.create_stream()
        self._buffer = device.allocate(array.nbytes, stream=stream)
        address = int(self._buffer.handle)
        (code,) = driver.cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, stream.handle)
        if int(code):
            raise SpecError(f"cannot copy to the GPU: {code.name}")
        stream.sync()
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


@app.command()
@report_errors
def ranges(
    tensors: int = 1000,
    elements: Annotated[int, typer.Option(help="Of each tensor.")] = 2**21,
    batches: int = 20,
    json_file: JsonFile = None,
) -> None:
    """Largest values, histograms and entropy of many tensors, with nothing to infer."""
    gpu = require_gpu()
    random = np.random.default_rng(0)
    # A few, so that they need not all fit; every tensor reads one of them.
    arrays = [random.standard_normal(elements).astype(np.float16) * (i + 1) for i in range(4)]
    values = [Values(array) for array in arrays]
    names = [f"t{i}" for i in range(tensors)]
    seconds = {}
    with DeviceStatistics(names) as statistics:
        started = time.perf_counter()
        for _ in range(batches):
            for index, name in enumerate(names):
                statistics.measure(name, values[index % len(values)], "float16")
            peaks = statistics.peaks()
        seconds["largest values"] = time.perf_counter() - started
        started = time.perf_counter()
        statistics.start_histograms(peaks)
        for _ in range(batches):
            for index, name in enumerate(names):
                statistics.count(name, values[index % len(values)], "float16")
            statistics.wait()
        found = statistics.histograms()
        seconds["histograms"] = time.perf_counter() - started
    started = time.perf_counter()
    for histogram in found.values():
        entropy_threshold(histogram.counts, histogram.bin_width, histogram.amax)
    seconds["entropy"] = time.perf_counter() - started
    seconds["all"] = sum(seconds.values())
    title = f"{tensors} tensors of {elements} FP16 values, {batches} batches"
    table(title, ("", "s"), ((name, f"{value:.2f}") for name, value in seconds.items()))
    _write(json_file, gpu, {"tensors": tensors, "elements": elements, "seconds": seconds})


@app.command()
@report_errors
def calibrate(
    model: ModelFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The cache to write.")],
    dim: Dims = None,
    data: Annotated[str | None, typer.Option(help="Batches; random ones without.")] = None,
    batches: int = 20,
    method: str = "entropy",
    activations: str = "auto",
    memory: str = "8GiB",
    json_file: JsonFile = None,
) -> None:
    """Time and peak GPU memory of a calibration by engines."""
    gpu = require_gpu()
    inputs, _ = tensor_specs(read_model(model))
    if data is not None:
        samples: Any = read_batches(data, inputs, limit=batches)
    else:
        samples = list(_random(inputs, dim or [], batches))
    source = EngineActivations(
        load_backend(), by=CalibrationRunner.parse(activations), memory_bytes=parse_bytes(memory)
    )
    phases = Phases()
    started = time.perf_counter()
    with Memory() as used:
        cache = find_cache(
            model,
            samples,
            method=CalibrationMethod.parse(method),
            source=source,
            progress=phases,
        )
    seconds = time.perf_counter() - started
    cache.save(output)
    skipped = cache.provenance.skipped if cache.provenance else {}
    running = sum(value for name, value in phases.seconds.items() if name.startswith("Running"))
    rows = [
        ("by", source.name),
        ("engines", str(source.groups)),
        ("tensors", f"{len(cache.scales)} with a range, {len(skipped)} without"),
        ("time", f"{seconds:.1f} s, of which {running:.1f} s running engines"),
        (
            "GPU memory",
            f"{format_bytes(used.peak)} at the most, {format_bytes(used.before)} before",
        ),
    ]
    table(f"{len(samples)} batches", ("", ""), rows)
    figures = {
        **dict(rows),
        "seconds": seconds,
        "phases": phases.seconds,
        "peak_bytes": used.peak,
        "before_bytes": used.before,
        "skipped": dict(skipped),
    }
    _write(json_file, gpu, figures)


@app.command()
@report_errors
def plans(
    model: ModelFile,
    calib: Annotated[Path, typer.Option(help="The cache for INT8 and FP8.")],
    dim: Dims = None,
    preset: str = "diffusion-unet",
    precision: Annotated[str, typer.Option(help="Which, besides the first: auto is FP16.")] = (
        "auto,int8,fp8,int8-weights,int4-weights"
    ),
    json_file: JsonFile = None,
) -> None:
    """Size and time of the plans, timed in turns."""
    gpu = require_gpu()
    profiles = (ProfileSpec.parse(dim or []),)
    built: dict[str, Plan] = {}
    figures: dict[str, dict[str, Any]] = {}
    for text in precision.split(","):
        wanted = Precision.parse(text)
        spec = QuantizationSpec()
        if wanted.quantized:
            spec = QuantizationSpec(
                preset=preset, calibration_cache=calib if wanted.needs_ranges else None
            )
        config = BuildConfig(profiles=profiles, precision=wanted, quantization=spec)
        started = time.perf_counter()
        try:
            built[text] = plan = build_plan(model, config)
        except TrtNativeError as error:
            figures[text] = {"error": error.message}
            stderr.print(f"{text}: {error.message}", highlight=False)
            continue
        figures[text] = {"bytes": len(plan.data), "build_s": time.perf_counter() - started}
        if plan.manifest and plan.manifest.precision.get("engine_layers"):
            figures[text]["engine_layers"] = plan.manifest.precision["engine_layers"]
        stderr.print(f"{text}: {format_bytes(len(plan.data))}", highlight=False)
    inputs, _ = tensor_specs(read_model(model))
    (sample,) = _random(inputs, dim or [], 1)
    sessions = [Session(plan) for plan in built.values()]
    for text, ms in zip(built, time_sessions(sessions, [sample] * len(sessions)), strict=True):
        figures[text]["ms"] = ms
    half = next(iter(figures.values())).get("bytes")
    table(
        "Plans",
        ("precision", "MiB", "of the first", "ms", "build s"),
        (
            (
                text,
                f"{found['bytes'] / 2**20:.1f}",
                f"{found['bytes'] / half:.2f}" if half else "",
                f"{found['ms']:.2f}",
                f"{found['build_s']:.0f}",
            )
            for text, found in figures.items()
            if "bytes" in found
        ),
    )
    _write(json_file, gpu, {"plans": figures})


def _random(inputs: tuple[TensorSpec, ...], dims: list[str], count: int) -> Iterator[Batch]:
    """Normal latents, and timesteps from all over the schedule."""
    profiles = resolve_profiles(inputs, [ProfileSpec.parse(dims)])
    shapes = {name: found.opt for profile in profiles for name, found in profile.shapes.items()}
    random = np.random.default_rng(0)
    for number in range(count):
        batch: dict[str, Array] = {}
        for tensor in inputs:
            shape: Any = shapes.get(tensor.name, tensor.shape)
            if tensor.dtype.startswith("int"):
                step = _TIMESTEPS * (count - number) // count - 1
                batch[tensor.name] = np.full(shape, step, np.dtype(tensor.dtype))
            else:
                values: Any = random.standard_normal(shape)
                batch[tensor.name] = values.astype(tensor.dtype)
        yield batch


def _write(path: Path | None, gpu: GpuInfo, figures: dict[str, Any]) -> None:
    backend = load_backend()
    about = {
        "gpu": gpu.name,
        "driver": gpu.driver,
        "backend": f"{backend.product} {backend.version}",
    }
    stdout.print(", ".join(about.values()), highlight=False)
    if path is not None:
        path.write_text(json.dumps({**about, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    app()
