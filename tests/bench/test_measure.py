"""Statistics against NumPy, and the loops on a machine of which every time is known."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from helpers.fake_machine import GPU, FakeMachine, Speed
from helpers.made_plans import STATIC, TWO, X, Y, make_plan

from trt_native.bench import BenchOptions, Statistics, bench_plan
from trt_native.bench.statistics import (
    find_bottleneck,
    ratio_of,
    slowest_first,
    stability_problems,
)
from trt_native.errors import SpecError
from trt_native.inspection import read_layer_times

QUICK = BenchOptions(iterations=40, duration_s=0.05, warmup_s=0.01)


def ones(tensors):
    return {t.name: np.ones(t.profiles[0].opt if t.profiles else t.shape, t.dtype) for t in tensors}


def measure(tmp_path, speed=None, options=QUICK, tensors=(X, Y), other=None):
    plans = [make_plan(tmp_path / "a.plan", tensors)]
    speeds = {"a.plan": speed or Speed()}
    if other is not None:
        speeds["b.plan"] = other
        plans.append(make_plan(tmp_path / "b.plan", tensors))
    machine = FakeMachine(speeds)
    report = bench_plan(plans[0], ones, options, other=(*plans, None)[1], machine=machine)
    assert machine.open == []
    assert machine.used == FakeMachine({}).used
    return report


@pytest.mark.parametrize("count", [1, 2, 3, 100, 1001])
def test_statistics_are_those_of_numpy(rng, count):
    samples = rng.lognormal(size=count)
    found = Statistics.of(list(samples))
    assert found.count == count
    assert (found.min, found.max) == (samples.min(), samples.max())
    for name, percent in (("median", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert getattr(found, name) == pytest.approx(np.percentile(samples, percent), rel=1e-12)
    assert found.mean == pytest.approx(np.mean(samples), rel=1e-12)
    spread = np.std(samples, ddof=1) if count > 1 else 0
    assert found.cv == pytest.approx(spread / np.mean(samples), rel=1e-12)
    assert found.to_json()["p99_ms"] == found.p99
    assert found.to_json()["cv"] == found.cv


def test_statistics_of_nothing_but_zeros():
    assert Statistics.of([0.0, 0.0]).cv == 0


@pytest.mark.parametrize(
    ("medians", "bound", "said"),
    [
        ((1.0, 0.1, 0.5, 0.5), "compute", "GPU compute 1.0000 ms"),
        ((1.0, 0.79, 0.5, 0.5), "compute", "hides behind"),
        ((1.0, 0.81, 0.5, 0.5), "enqueue", "more work in each call"),
        ((1.0, 0.1, 1.5, 0.5), "transfer", "H2D takes longer"),
        ((1.0, 0.9, 0.5, 1.5), "transfer", "D2H takes longer"),
        ((1.0, 1.7, 0.5, 1.5), "enqueue", "enqueue 1.7000 ms"),
        ((0.0, 0.0, 0.0, 0.0), "enqueue", "more work in each call"),
    ],
)
def test_bottleneck(medians, bound, said):
    names = ("gpu_compute", "enqueue", "h2d", "d2h")
    bottleneck = find_bottleneck(dict(zip(names, medians, strict=True)))
    assert bottleneck.bound == bound
    assert bottleneck.text.startswith(f"bound by {bound}: ")
    assert said in bottleneck.text


def test_stability(rng):
    steady = 1 + 0.01 * rng.standard_normal(400)
    assert stability_problems(steady) == []
    assert stability_problems([1.0]) == []
    assert (
        "coefficient of variation 3" in stability_problems(1 + 0.3 * rng.standard_normal(4000))[0]
    )
    (problem,) = stability_problems(steady * np.linspace(1, 1.08, 400))
    # Of a straight line from 1 to 1.08: 1.07 over 1.01.
    assert 5 < float(problem.removeprefix("drift +").partition("%")[0]) < 7
    (problem,) = stability_problems(steady * np.linspace(1.08, 1, 400))
    assert problem.startswith("drift -5.")


def test_nineteen_of_twenty_intervals_hold_the_ratio(rng):
    held, different = 0, 0
    for _ in range(2000):
        plan = rng.lognormal(0, 0.05, 20)
        other = 1.02 * rng.lognormal(0, 0.08, 20)
        found = ratio_of("gpu_compute", plan, other)
        assert found.low < found.speedup < found.high
        held += found.low <= 1.02 <= found.high
        different += found.differs
    assert 0.93 < held / 2000 < 0.97
    # Of an effect of 0.94 standard errors a test at 5 % finds about one in seven.
    assert 0.08 < different / 2000 < 0.25


def test_the_ratio_is_the_geometric_mean(rng):
    plan, other = rng.lognormal(size=(2, 20))
    found = ratio_of("end_to_end", plan, other)
    assert found.speedup == pytest.approx(np.prod(other / plan) ** (1 / 20))
    assert (found.plan_ms, found.other_ms) == (np.median(plan), np.median(other))
    back = ratio_of("end_to_end", other, plan)
    assert (1 / back.high, 1 / back.low) == pytest.approx((found.low, found.high))
    with pytest.raises(ValueError, match="19 pairs"):
        ratio_of("end_to_end", plan[1:], other[1:])


def test_layers_come_slowest_first():
    layers = slowest_first({"a": [1.0, 1.0, 40.0], "b": [2.0, 3.0, 4.0], "c": [0.0]})
    assert [layer.name for layer in layers] == ["b", "a", "c"]
    assert [layer.median_ms for layer in layers] == [3, 1, 0]
    assert layers[1].mean_ms == 14
    assert [layer.share for layer in layers] == [0.75, 0.25, 0]
    assert [layer.share for layer in slowest_first({"a": [0.0]})] == [0]


def test_every_time_is_found(tmp_path):
    speed = Speed()
    report = measure(tmp_path, speed)
    medians = {name: s.median for name, s in report.phases.items()}
    end_to_end = 2 * speed.host_copy + speed.h2d + speed.compute + speed.d2h
    expected = {
        "gpu_compute": speed.compute,
        "gpu_compute_no_graph": speed.compute,
        "enqueue": speed.enqueue_graph,
        "enqueue_no_graph": speed.enqueue,
        "h2d": speed.h2d,
        "d2h": speed.d2h,
        # The GPU can start when the host has asked for the copy in; the rest is ahead of it.
        "latency": 0.002 + speed.h2d + speed.compute + speed.d2h,
        "end_to_end": end_to_end,
    }
    assert medians == pytest.approx(expected, rel=1e-6)
    assert report.throughput == pytest.approx(
        {
            "compute": 1e3 / speed.compute,
            "compute_no_graph": 1e3 / speed.compute,
            "synchronous": 1e3 / end_to_end,
            "pipelined": 1e3 / speed.compute,
        },
        rel=1e-6,
    )
    assert report.pipeline_share == pytest.approx(1)
    assert report.load_ms == pytest.approx(
        {"load": 40, "session": 5, "first_call": 300 + end_to_end}
    )
    assert report.gpu == GPU
    assert report.bottleneck.bound == "compute"
    assert report.warnings == ()
    assert report.layers is None
    assert report.comparison is None


def test_the_host_is_in_gpu_compute_only_where_it_is_slower(tmp_path):
    report = measure(tmp_path, Speed(compute=0.1, enqueue=0.25, enqueue_graph=0.02))
    assert report.phases["gpu_compute"].median == pytest.approx(0.1)
    assert report.phases["gpu_compute_no_graph"].median == pytest.approx(0.25)
    assert report.throughput["compute_no_graph"] == pytest.approx(1 / 0.25e-3, rel=0.05)
    assert measure(tmp_path, Speed(compute=0.1, enqueue_graph=0.25)).bottleneck.bound == "enqueue"
    assert measure(tmp_path, Speed(compute=0.1, d2h=0.25)).bottleneck.bound == "transfer"


def test_memory(tmp_path):
    memory = measure(tmp_path).memory
    assert (memory.weights, memory.context) == (10 << 20, 4 << 20)
    assert (memory.activations, memory.peak) == (3 << 20, 14 << 20)
    assert (memory.inputs, memory.outputs) == (4 * 3 * 16 * 8 * 4, 1024)
    options = dataclasses.replace(QUICK, streams=3)
    assert measure(tmp_path, options=options).memory.peak == (14 + 3 * 4) << 20


def test_the_time_line(tmp_path):
    spans = {(s.lane, s.name): s for s in measure(tmp_path).timeline}
    assert list(spans) == [
        *(("host", name) for name in ("upload", "enqueue", "download", "wait")),
        *(("GPU", name) for name in ("H2D", "compute", "D2H")),
    ]
    assert spans["GPU", "compute"].stop_ms == pytest.approx(0.602)
    assert spans["host", "enqueue"].stop_ms == pytest.approx(0.012)
    assert spans["host", "wait"].stop_ms == pytest.approx(0.652)
    assert spans["GPU", "D2H"].stop_ms == pytest.approx(0.652)
    for lane in ("host", "GPU"):
        ends = [(s.start_ms, s.stop_ms) for s in spans.values() if s.lane == lane]
        assert [start for start, _ in ends] == [0, *(stop for _, stop in ends[:-1])]


def test_a_least_number_and_a_least_time(tmp_path):
    few = measure(tmp_path, options=BenchOptions(iterations=23, duration_s=0, warmup_s=0))
    assert {s.count for s in few.phases.values()} == {25}  # in five turns
    long = measure(tmp_path, options=BenchOptions(iterations=1, duration_s=1, warmup_s=0))
    assert long.phases["end_to_end"].count == pytest.approx(1 / 0.71e-3, rel=0.01)
    assert long.phases["gpu_compute"].count == pytest.approx(1 / 0.5e-3, rel=0.05)


def test_depth(tmp_path):
    one = measure(tmp_path, options=dataclasses.replace(QUICK, depth=1))
    assert one.throughput["pipelined"] == pytest.approx(1e3 / 0.65)
    assert one.pipeline_share == pytest.approx(0.5 / 0.65)
    assert measure(tmp_path, Speed(d2h=0.8)).pipeline_share == pytest.approx(1)
    assert measure(tmp_path, Speed(h2d=0.8)).pipeline_share == pytest.approx(1)


def test_streams_add_up(tmp_path):
    report = measure(tmp_path, options=dataclasses.replace(QUICK, streams=4))
    assert report.throughput["streams"] == pytest.approx(4e3 / 0.5)


@pytest.mark.timeout(60)
def test_a_thread_that_fails_is_heard(tmp_path):
    machine = FakeMachine({"a.plan": Speed()})
    opened = []

    def session(engine):
        made = FakeMachine.session(machine, engine)
        opened.append(made)
        if len(opened) == 3:  # the main thread's, one of a thread that waits for this one
            made.speed = made.speed.but(fails_in="run")
        return made

    machine.session = session
    plan = make_plan(tmp_path / "a.plan", (X, Y))
    with pytest.raises(SpecError, match="refused in run"):
        bench_plan(plan, ones, dataclasses.replace(QUICK, streams=3), machine=machine)
    assert machine.open == []


def test_unstable_measurements_are_reported(tmp_path):
    noisy = measure(tmp_path, Speed(factor=lambda n: 2.0 if n % 3 == 0 else 1.0))
    assert len(noisy.warnings) == 2
    assert noisy.warnings[0].startswith("GPU compute is unstable: coefficient of variation 3")
    slowing = measure(tmp_path, Speed(factor=lambda n: 1 + n / 10000))
    assert "drift +" in slowing.warnings[0]
    assert "coefficient" not in slowing.warnings[0]


@pytest.mark.parametrize("step", ["run", "create_execution", "map", "profile_layers"])
def test_a_failure_anywhere_frees_all(tmp_path, step):
    plan = make_plan(tmp_path / "a.plan", (X, Y))
    machine = FakeMachine({"a.plan": Speed(fails_in=step)})
    with pytest.raises(SpecError, match=f"refused in {step}"):
        bench_plan(plan, ones, dataclasses.replace(QUICK, layers=True), machine=machine)
    assert machine.open == []


def test_a_comparison_of_plans_with_known_speeds(tmp_path):
    noise = np.random.default_rng(1).lognormal(0, 0.03, 4096)
    one = Speed(factor=lambda n: noise[n % 4096])
    report = measure(tmp_path, one, other=one.but(compute=0.6))
    assert report.comparison.other.endswith("b.plan")
    compute, whole = report.comparison.ratios
    assert (compute.phase, whole.phase) == ("gpu_compute", "end_to_end")
    assert compute.low < 0.6 / 0.5 < compute.high
    assert compute.differs
    assert whole.speedup == pytest.approx(0.81 / 0.71, rel=0.02)
    assert compute.plan_ms == pytest.approx(0.5, rel=0.02)
    assert compute.other_ms == pytest.approx(0.6, rel=0.02)
    # The figures of the first plan are of the time before the other was loaded.
    assert report.memory.peak == 14 << 20


def test_drift_favours_neither_plan(tmp_path):
    plan = make_plan(tmp_path / "c.plan", (X, Y))
    machine = FakeMachine({"c.plan": Speed(), "d.plan": Speed()})
    steps = itertools.count()

    def slowing(milliseconds):
        FakeMachine.spend(machine, milliseconds * (1 + next(steps) / 1e5))

    machine.spend = slowing
    other = make_plan(tmp_path / "d.plan", (X, Y))
    report = bench_plan(plan, ones, QUICK, other=other, machine=machine)
    whole = report.comparison.ratios[1]
    assert whole.low <= 1 <= whole.high
    assert abs(whole.speedup - 1) < 0.002


def test_plans_of_other_inputs_are_not_compared(tmp_path):
    machine = FakeMachine({"a.plan": Speed(), "b.plan": Speed()})
    plan = make_plan(tmp_path / "a.plan", (X, Y))
    other = make_plan(tmp_path / "b.plan", (dataclasses.replace(X, name="z"), Y))
    with pytest.raises(SpecError, match=r"b\.plan: its inputs are z, those of the plan .* are x"):
        bench_plan(plan, ones, QUICK, other=other, machine=machine)
    assert machine.open == []


@pytest.mark.parametrize("tensors", [STATIC, (TWO, Y)])
def test_json_holds_all_of_it(tmp_path, tensors):
    options = dataclasses.replace(QUICK, layers=True, streams=2)
    report = measure(tmp_path, options=options, tensors=tensors, other=Speed())
    data = json.loads(json.dumps(report.to_json()))
    assert data["phases"]["h2d"] == report.phases["h2d"].to_json()
    assert data["gpu"]["driver"] == "13.0"
    assert data["inputs"] == [{"name": "x", "dtype": "float32", "shape": [2, 3]}]
    assert data["comparison"]["ratios"][0]["speedup"] == report.comparison.ratios[0].speedup
    assert data["throughput_per_s"].keys() >= {"compute", "pipelined", "synchronous", "streams"}
    (tmp_path / "bench.json").write_text(json.dumps(data))
    assert read_layer_times(tmp_path / "bench.json") == {"slow <b>": 0.35, "fast": 0.1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"iterations": 0}, "iterations 0: must be at least 1"),
        ({"depth": -1}, "depth -1"),
        ({"streams": 0}, "streams 0"),
        ({"duration_s": float("nan")}, "duration of nan s"),
        ({"warmup_s": float("inf")}, "warmup of inf s"),
        ({"duration_s": -0.1}, "duration of -0.1 s"),
    ],
)
def test_options_out_of_range(changes, said):
    with pytest.raises(SpecError, match=said):
        BenchOptions(**changes)
