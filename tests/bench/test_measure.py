"""The loops that measure, on a machine of which every time is known."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from helpers.fake_machine import GPU, FakeMachine, Speed
from helpers.made_plans import X, Y, make_plan
from helpers.measured_plans import QUICK, measure, ones

from trt_native.bench import BenchOptions, bench_plan
from trt_native.errors import SpecError


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
def test_a_thread_that_fails_ends_the_benchmark(tmp_path):
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
