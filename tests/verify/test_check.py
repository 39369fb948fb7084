"""Verification of a plan over several batches, with errors that were computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from trt_native.errors import SpecError
from trt_native.verify.check import Case, Cases, verify_plan
from trt_native.verify.metrics import Thresholds

EXPECTED = {"y": np.array([3.0, 4.0]), "z": np.array([1.0, 1.0])}
"""Of the norms 5 and sqrt(2)."""
LIMITS = Thresholds(max_relative_error=0.15)


def plan(inputs):
    """A plan whose output y is off by its input."""
    return {"y": EXPECTED["y"] + [0.0, inputs["x"]], "z": EXPECTED["z"]}


def cases(*errors):
    return [({"x": error}, lambda: EXPECTED) for error in errors]


def test_a_plan_within_the_limits():
    found = verify_plan(plan, cases(0.5), LIMITS)
    assert found.passed
    assert found.problems() == {"y": [], "z": []}
    ((y, z),) = found.batches
    assert (y.name, y.relative_l2, y.max_abs) == ("y", pytest.approx(0.1), 0.5)
    assert (z.name, z.relative_l2, z.max_abs) == ("z", 0, 0)
    assert found.thresholds is LIMITS


def test_a_problem_names_output_value_limit_and_batch():
    found = verify_plan(plan, cases(0.5, 1.0, 2.0), LIMITS)
    assert not found.passed
    assert found.problems() == {
        "y": ["relative L2 0.2 > 0.15 (batch 1)", "relative L2 0.4 > 0.15 (batch 2)"],
        "z": [],
    }
    assert verify_plan(plan, cases(1.0), LIMITS).problems()["y"] == ["relative L2 0.2 > 0.15"]


def test_the_worst_of_all_batches():
    y, z = verify_plan(plan, cases(0.5, 1.0, 0.25), LIMITS).worst()
    assert (y.relative_l2, y.max_abs, y.compared) == (pytest.approx(0.2), 1.0, 6)
    assert (z.relative_l2, z.max_abs, z.compared) == (0, 0, 6)


@pytest.mark.parametrize(
    ("errors", "worst"),
    [
        ((0.25, 0.5, 0.1), 0.5),  # none fails: the largest error
        ((0.5, 1.0, 2.0), 1.0),  # the first that fails
        ((2.0, 0.5), 2.0),
        ((0.0, 0.0), 0.0),
    ],
)
def test_the_worst_inputs(errors, worst):
    assert verify_plan(plan, cases(*errors), LIMITS).worst_inputs == {"x": worst}


def test_nan_fails_without_any_limit():
    found = verify_plan(plan, cases(float("nan")), Thresholds())
    assert found.problems()["y"] == ["1 NaN or infinite on one side alone"]


def test_the_floor_of_the_limits_is_used():
    silence = [({}, lambda: {"y": np.zeros(4)})]
    noise = {"y": np.full(4, 1e-3)}
    found = verify_plan(lambda _: noise, silence, Thresholds(max_relative_error=0.01, floor=1.0))
    assert found.batches[0][0].relative_l2 == pytest.approx(1e-3)
    assert found.passed
    assert not verify_plan(lambda _: noise, silence, Thresholds(max_relative_error=0.01)).passed


def test_the_plan_runs_before_the_reference():
    calls = []

    def run(inputs):
        calls.append("plan")
        return plan(inputs)

    def reference():
        calls.append("reference")
        return EXPECTED

    def on_case(inputs, expected):
        assert inputs == {"x": 0.5}
        assert expected is EXPECTED
        calls.append("case")

    verify_plan(run, [({"x": 0.5}, reference)] * 2, LIMITS, on_case=on_case)
    assert calls == ["plan", "reference", "case"] * 2


def test_inputs_that_the_plan_refuses_cost_no_run_of_the_reference():
    def refuse(_):
        raise SpecError("x is outside the profile")

    with pytest.raises(SpecError, match="outside the profile"):
        verify_plan(refuse, [({}, lambda: pytest.fail("the reference ran"))], LIMITS)


def test_no_inputs():
    with pytest.raises(SpecError, match="there are no inputs to verify with"):
        verify_plan(plan, [], LIMITS)


def test_shapes_that_differ():
    other = [({"x": 0.0}, lambda: {**EXPECTED, "y": np.zeros(3)})]
    with pytest.raises(SpecError, match="'y' has the shape 2 in the plan and 3 in the reference"):
        verify_plan(plan, other, LIMITS)


class TestCases:
    def test_labels_take_the_place_of_numbers(self):
        found = verify_plan(
            plan,
            [Case(*case, label) for case, label in zip(cases(1, 2), "ab", strict=True)],
            LIMITS,
        )
        assert found.labels == ("a", "b")
        assert found.problems()["y"] == ["relative L2 0.2 > 0.15 (a)", "relative L2 0.4 > 0.15 (b)"]

    def test_an_optional_case_without_a_reference_is_skipped(self):
        def reference():
            raise SpecError("1 and 4 cannot be added")

        def run(inputs):
            assert inputs["x"] == 0.5, "the plan ran what the model does not allow"
            return plan(inputs)

        given = [*cases(0.5), Case({"x": 9}, reference, "corner", optional=True)]
        found = verify_plan(run, given, LIMITS)
        assert found.passed
        assert (found.labels, found.skipped) == (
            ("batch 0",),
            {"corner": "1 and 4 cannot be added"},
        )
        with pytest.raises(SpecError, match="cannot be added"):
            verify_plan(plan, [*cases(0.5), Case({"x": 9.0}, reference, "corner")], LIMITS)

    def test_an_optional_case_that_only_the_plan_lacks_is_an_error(self):
        def run(_):
            raise SpecError("the plan cannot")

        with pytest.raises(SpecError, match="the plan cannot"):
            verify_plan(run, [Case(*cases(0.5)[0], "corner", optional=True)], LIMITS)


def test_progress_receives_every_case():
    calls = []
    shown = Cases(2, iter(cases(0.0, 0.1)))
    verify_plan(plan, shown, Thresholds(), progress=lambda *call: calls.append(call))
    assert calls == [("Comparing with the reference", done, 2) for done in range(3)]
    calls.clear()
    verify_plan(plan, iter(cases(0.0)), Thresholds(), progress=lambda *call: calls.append(call))
    assert calls == [("Comparing with the reference", done, 0) for done in range(2)]
