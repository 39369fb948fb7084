"""Benchmarks of plans on a machine of which every time is known."""

from __future__ import annotations

import numpy as np

from helpers.fake_machine import FakeMachine, Speed
from helpers.made_plans import X, Y, make_plan
from trt_native.bench import BenchOptions, bench_plan

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
