"""Calls of one Predictor whose results several threads take, as on Ray."""

from __future__ import annotations

import threading

import numpy as np
from helpers.predictors import ReferenceRun

from trt_native.plans.manifest import PlanTensor
from trt_native.ray import Predictor
from trt_native.shapes import ShapeRange


class WaitingSession:
    """A session that adds one, and ends no run before both calls have submitted theirs."""

    inputs = (PlanTensor("x", "input", "int64", (-1,), profiles=(ShapeRange.parse("1:2:2"),)),)
    outputs = (PlanTensor("y", "output", "int64", (-1,)),)

    def __init__(self):
        self.both = threading.Barrier(2, timeout=10)
        self.submitting = threading.Lock()  # a session refuses a second thread

    def submit(self, inputs):
        assert self.submitting.acquire(blocking=False)
        run = WaitingRun(self.both, {"y": inputs["x"] + 1})
        self.submitting.release()
        return run


class WaitingRun(ReferenceRun):
    def __init__(self, both, outputs):
        self.result = lambda: (both.wait(), outputs)[1]


class WaitingPredictor(Predictor):
    def _opened(self, plan, options):
        return WaitingSession()


def test_calls_overlap():
    predictor = WaitingPredictor("")
    found = {}

    def take(start, call):
        (found[start],) = call

    rows = {start: {"x": np.arange(start, start + 7)} for start in (0, 100)}
    threads = [threading.Thread(target=take, args=(s, predictor(b))) for s, b in rows.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for start, batch in rows.items():
        np.testing.assert_array_equal(found[start]["x"], batch["x"])
        np.testing.assert_array_equal(found[start]["y"], batch["x"] + 1)
