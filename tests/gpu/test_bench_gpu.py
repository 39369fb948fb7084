"""MeasurementHooks on a GPU; times only against times of the same machine, and loosely."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from cuda.bindings import driver
from helpers import tiny_models
from helpers.html_reader import Collector

from trt_native import BuildConfig, Engine, Plan, Precision, ProfileSpec, build_plan
from trt_native.bench import PHASES, BenchOptions, bench_plan
from trt_native.inspection import read_layer_times

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

# Ten convolutions: enough work that the GPU is slower than the host that hands it out.
LENGTH = 10
SHAPE = (16, 32, 32, 32)
NBYTES = 4 * 16 * 32 * 32 * 32
NAMES = ("x0", f"x{LENGTH}")
QUICK = BenchOptions(iterations=25, duration_s=0.02, warmup_s=0.02)


@pytest.fixture(scope="module")
def plan_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    model = tiny_models.conv_chain(folder / "m.onnx", LENGTH)
    profile = ProfileSpec.parse(["batch=1:16:16"])
    plan = build_plan(model, BuildConfig(profiles=(profile,), precision=Precision.FP32))
    return plan.save(folder / "m.plan")


def ones(tensors):
    return {tensor.name: np.ones(tensor.profiles[0].opt, tensor.dtype) for tensor in tensors}


def called(result):
    code, *values = result
    assert int(code) == 0, code
    return values[0] if values else None


def event_loop(plan):
    """Median milliseconds between two events around a replay, with nothing of the package."""
    with Engine(plan) as engine:
        context = engine.create_context()
        assert context.set_input_shape("x0", SHAPE)
        buffers = [called(driver.cuMemAlloc(NBYTES)) for _ in NAMES]
        for name, buffer in zip(NAMES, buffers, strict=True):
            assert context.set_tensor_address(name, int(buffer))
        stream = called(driver.cuStreamCreate(1))
        assert context.execute_async_v3(int(stream))
        called(driver.cuStreamSynchronize(stream))
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        called(driver.cuStreamBeginCapture(stream, mode))
        assert context.execute_async_v3(int(stream))
        graph = called(driver.cuGraphInstantiate(called(driver.cuStreamEndCapture(stream)), 0))
        pairs = [[called(driver.cuEventCreate(0)) for _ in range(2)] for _ in range(100)]
        for begin, end in pairs:
            called(driver.cuEventRecord(begin, stream))
            called(driver.cuGraphLaunch(graph, stream))
            called(driver.cuEventRecord(end, stream))
        called(driver.cuStreamSynchronize(stream))
        times = [called(driver.cuEventElapsedTime(*pair)) for pair in pairs]
        called(driver.cuGraphExecDestroy(graph))
        del context
        for buffer in buffers:
            called(driver.cuMemFree(buffer))
        called(driver.cuStreamDestroy(stream))
    return float(np.median(times))


def test_gpu_compute_is_that_of_a_bare_event_loop(plan_path):
    plan = Plan.load(plan_path)
    before = event_loop(plan)
    found = bench_plan(plan, ones, QUICK).phases["gpu_compute"].median
    after = event_loop(plan)
    assert min(before, after) / 2 < found < 2 * max(before, after)


def test_what_must_hold_between_the_figures(plan_path):
    options = BenchOptions(iterations=25, duration_s=0.02, warmup_s=0.02, streams=2, layers=True)
    report = bench_plan(Plan.load(plan_path), ones, options)
    phases = report.phases
    assert list(phases) == list(PHASES)
    for stats in phases.values():
        assert stats.count >= 25
        assert 0 < stats.min <= stats.median <= stats.p90 <= stats.p99 <= stats.max
    # One call holds a copy in, the kernels, and a copy out, one after the other.
    parts = sum(phases[name].min for name in ("gpu_compute", "h2d", "d2h"))
    assert phases["latency"].max > parts / 2
    assert report.memory.inputs == NBYTES
    assert report.memory.outputs == NBYTES
    assert report.throughput["streams"] > 0
    assert all(rate > 0 for rate in report.throughput.values())
    assert report.load_ms["first_call"] > 0
    assert {span.lane for span in report.timeline} == {"host", "GPU"}
    assert all(span.stop_ms >= span.start_ms >= 0 for span in report.timeline)
    with Engine(Plan.load(plan_path)) as engine:
        known = {layer["Name"] for layer in engine.layers()}
    assert report.layers
    assert sum(layer.share for layer in report.layers) == pytest.approx(1)
    assert {layer.name for layer in report.layers} & known


def test_a_plan_against_itself(plan_path):
    plan = Plan.load(plan_path)
    report = bench_plan(plan, ones, QUICK, other=plan)
    for ratio in report.comparison.ratios:
        assert 0.5 < ratio.speedup < 2
        assert ratio.low <= ratio.speedup <= ratio.high


def trt_native(*arguments, cwd):
    result = subprocess.run(
        [sys.executable, "-m", "trt_native", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
    )
    assert "Traceback" not in result.stderr
    return result


def test_the_command(plan_path, tmp_path):
    fast = ("--duration", 0.02, "--warmup", 20, "--layers")
    shape = ("--shape", "x0=2x32x32x32")
    files = ("--html", tmp_path / "m.html", "--trace", tmp_path / "t.json")
    command = ("bench", plan_path, *fast, *shape, "--json", *files)
    result = trt_native(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["inputs"] == [{"name": "x0", "dtype": "float32", "shape": [2, 32, 32, 32]}]
    assert set(data["phases"]) == set(PHASES)
    assert data["bottleneck"]["bound"] in ("compute", "transfer", "enqueue")
    times = [layer["median_ms"] for layer in data["layers"]]
    assert times == sorted(times, reverse=True)
    Collector((tmp_path / "m.html").read_text())
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    layers = {layer["name"] for layer in data["layers"]}
    assert layers <= {event["name"] for event in events if event["ph"] == "X"}
    (tmp_path / "times.json").write_text(result.stdout)
    assert len(read_layer_times(tmp_path / "times.json")) == len(data["layers"])
    page = ("inspect", plan_path, "--html", tmp_path / "layers.html", "--times", "times.json")
    assert trt_native(*page, cwd=tmp_path).returncode == 0
    shown = Collector((tmp_path / "layers.html").read_text()).text
    assert any(text.endswith(" ms") for text in shown)


def test_inputs_that_do_not_fit(plan_path, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1, 32, 32, 32), np.float64))
    result = trt_native("bench", plan_path, "--input", "x0=x.npy", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "'x0' needs float32, found float64" in result.stderr
