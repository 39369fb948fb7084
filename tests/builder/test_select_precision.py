"""Choosing between plans that are really built, with runs and timings of our own making."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import tiny_models
from helpers.passes import pass_records
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, ProfileSpec, QuantizationSpec
from trt_native.builder import select_precision as selection
from trt_native.builder.isolated import Job
from trt_native.builder.select_precision import MeasurementHooks, select_precision, time_sessions
from trt_native.calibration.folder import write_batches
from trt_native.cli.best import build_best
from trt_native.config import CalibrationRunner
from trt_native.errors import BuildError, CudaError, SpecError, UnsupportedError
from trt_native.plans.plan import Plan

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend

CONFIG = BuildConfig(profiles=(ProfileSpec.parse(["batch=1:4:8"]),))
ERRORS = {
    "fp32": 0.0, "fp16": 0.001, "int8": 0.03, "fp8": 0.015, "int8-weights": 0.01,
    "int4-weights": 0.08,
}  # fmt: skip
TIMES = {"fp16": 3.0, "int8": 1.0, "fp8": 2.0, "int8-weights": 4.0, "int4-weights": 0.9}


class Machine:
    """Sessions that answer with ``onnx.reference``, off by the error of the plan's precision."""

    def __init__(self, model, errors=ERRORS, times=TIMES):
        self.evaluator = ReferenceEvaluator(str(model))
        self.errors, self.times = dict(errors), times
        self.runs = []
        self.open = 0

    def open_session(self, path):
        machine = self
        manifest = Plan.load(path).manifest
        precision = manifest.precision["requested"]

        class Session:
            engine = manifest
            name = precision

            def __enter__(self):
                machine.open += 1
                return self

            def __exit__(self, *exception):
                machine.open -= 1

            def run(self, inputs):
                machine.runs.append((precision, inputs))
                (y,) = machine.evaluator.run(None, inputs)
                error = machine.errors[precision]
                if isinstance(error, Exception):
                    raise error
                return {"h2": y + np.float32(error) * np.abs(y)}

        return Session()

    def time_sessions(self, sessions, inputs):
        assert self.open == len(sessions), "all are loaded, and can take turns"
        assert [sorted(arrays) for arrays in inputs] == [["h0"]] * len(sessions)
        return [self.times[session.name] for session in sessions]

    @property
    def measuring(self):
        return MeasurementHooks(self.open_session, self.time_sessions)


@pytest.fixture
def model(tmp_path):
    return tiny_models.dense(tmp_path / "m.onnx")


@pytest.fixture
def data(tmp_path, rng):
    batches = [{"h0": rng.standard_normal((4, 64), np.float32)} for _ in range(12)]
    write_batches(tmp_path / "data", batches, model="dense")
    return QuantizationSpec(
        calibration_data=str(tmp_path / "data"), calibration_runner=CalibrationRunner.REFERENCE
    )


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch):
    monkeypatch.setattr(selection, "require_gpu", lambda: "made up")


def fastest(model, data, machine=None, **options):
    machine = machine or Machine(model)
    return select_precision(
        model, CONFIG, data, backend="rtx", measuring=machine.measuring, **options
    )


def test_the_fastest_within_the_budget(model, data):
    machine = Machine(model)
    found = fastest(model, data, machine, max_error=0.02)
    assert found.chosen is Precision.FP8, "int8 is faster, but off by 0.03"
    assert (found.calibration_batches, found.held_out) == (11, 1)
    for candidate in found.candidates:
        assert candidate.error == pytest.approx(ERRORS[candidate.precision], rel=1e-3)
        assert candidate.latency_ms == TIMES[candidate.precision]
        assert candidate.plan_bytes > 0
        assert candidate.failure is None
    assert machine.open == 0
    assert [name for name, _ in machine.runs] == list(ERRORS)
    held = np.load(f"{data.calibration_data}/batch_0011.npz")["h0"]
    np.testing.assert_array_equal(machine.runs[0][1]["h0"], held)
    record = found.plan.manifest.precision
    assert (record["requested"], record["applied"]) == ("best", "fp8")
    assert pass_records(found.plan.manifest)["quantize"]["calibration"]["method"] == "mse"
    assert record["selection"] == json.loads(json.dumps(found.to_json()))
    assert record["selection"]["chosen"] == "fp8"


def test_int4_weights_are_fitted_to_what_is_not_held_out(model, data):
    found = fastest(model, data, max_error=0.1)
    assert found.chosen is Precision.INT4_WEIGHTS
    record = pass_records(found.plan.manifest)["quantize"]
    assert (record["calibration"]["batches"], record["calibration"]["method"]) == (11, "awq")
    assert record["blocks"] == {"32": 2}


@pytest.mark.parametrize(("budget", "chosen"), [(0.05, Precision.INT8), (0.005, Precision.FP16)])
def test_the_budget_decides(model, data, budget, chosen):
    assert fastest(model, data, max_error=budget).chosen is chosen


@pytest.mark.filterwarnings("ignore:invalid value")
def test_plans_that_do_not_build_or_run_are_reported(model, data):
    faulty = Machine(model, {**ERRORS, "fp8": CudaError("no kernel"), "int8": np.inf})

    def build(config, target):
        if config.precision is Precision.INT8_WEIGHTS:
            raise BuildError("TensorRT has no such thing")
        selection.build_plan(model, config, backend="rtx").save(target)

    found = fastest(model, data, faulty, build=build)
    assert found.chosen is Precision.FP16
    by_name = {candidate["precision"]: candidate for candidate in found.to_json()["candidates"]}
    assert by_name["fp8"]["failure"] == "no kernel"
    assert by_name["int8-weights"]["failure"] == "TensorRT has no such thing"
    assert by_name["int8-weights"]["plan_bytes"] is None
    assert (by_name["int8"]["error"], by_name["int8"]["failure"]) == (
        None,
        "gives NaN or infinite values",
    )


def test_a_model_without_products_is_still_built_in_fp16(tmp_path, rng):
    path = tiny_models.coupled(tmp_path / "m.onnx")
    arrays = {
        "x": rng.standard_normal((1, 2, 4), np.float32),
        "z": rng.standard_normal((2, 4), np.float32),
    }
    write_batches(tmp_path / "data", [arrays] * 2, model="coupled")
    machine = Machine(path)
    machine.time_sessions = lambda sessions, inputs: [1.0] * len(sessions)
    spec = QuantizationSpec(calibration_data=str(tmp_path / "data"))
    config = BuildConfig(profiles=(ProfileSpec.parse(["batch=1", "frames=2"]),))
    found = select_precision(path, config, spec, backend="rtx", measuring=machine.measuring)
    assert found.chosen is Precision.FP16
    failures = {candidate.precision: candidate.failure for candidate in found.candidates}
    assert "nothing to calibrate" in failures[Precision.INT8] == failures[Precision.FP8]
    assert failures[Precision.INT8_WEIGHTS]


def test_none_within_the_budget(model, data):
    with pytest.raises(
        BuildError, match=r"no plan is within a relative error of 0\.0001 "
    ) as caught:
        fastest(model, data, max_error=0.0001)
    assert "int8: error 0.0300, 1.000 ms" in caught.value.problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"calibration_data": None, "calibration_runner": CalibrationRunner.AUTO},
            "needs calibration data",
        ),
        ({"min_coverage": 0.5}, "minimum coverage: no effect"),
    ],
)
def test_options_that_contradict(model, data, change, message):
    fields = {name: getattr(data, name) for name in data.__dataclass_fields__}
    with pytest.raises(SpecError, match=message):
        fastest(model, QuantizationSpec(**{**fields, **change}))


def test_a_model_in_fp16(tmp_path, data):
    path = tiny_models.dense(tmp_path / "half.onnx", dtype=tiny_models.TensorProto.FLOAT16)
    with pytest.raises(SpecError, match="precision best compares with FP32"):
        fastest(path, data)


def test_one_batch_is_too_few(model, tmp_path):
    write_batches(tmp_path / "one", [{"h0": np.ones((4, 64), np.float32)}], model="dense")
    with pytest.raises(SpecError, match="has one batch, and precision best needs another"):
        fastest(model, QuantizationSpec(calibration_data=str(tmp_path / "one")))


def test_without_a_gpu_it_is_refused(model, data, monkeypatch):
    def refuse():
        raise CudaError("cannot find a GPU: this machine has no NVIDIA driver (libcuda)")

    monkeypatch.setattr(selection, "require_gpu", refuse)
    with pytest.raises(UnsupportedError, match=r"needs a GPU: cannot find a GPU: .*; name one"):
        fastest(model, data)


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command(model, data, tmp_path, monkeypatch, capsys, as_json):
    """With its builds in processes of their own."""
    faulty = Machine(model, {**ERRORS, "int8-weights": CudaError("no kernel")})
    monkeypatch.setattr(selection, "MeasurementHooks", lambda: faulty.measuring)
    target = tmp_path / "best.plan"
    job = Job(
        model=model, target=target, config=CONFIG, backend="rtx", cache=None, cache_bytes=None
    )
    build_best(job, data, None, None, False, as_json)
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("building ")] == [
        f"building {name}" for name in ERRORS
    ]
    plan = Plan.load(target)
    assert plan.manifest.precision["applied"] == "fp8"
    chosen = plan.manifest.precision["selection"]
    assert chosen["max_error"] == 0.02
    assert sorted(path.name for path in tmp_path.glob("best*")) == ["best.plan", "best.plan.json"]
    if as_json:
        report = json.loads(out)
        assert report["selection"] == chosen
        assert report["path"] == str(target)
        assert report["plan_sha256"] == plan.manifest.plan_sha256
    else:
        rows = {
            line.split()[1]: line for line in out.splitlines() if "0.0" in line or "no k" in line
        }
        assert "0.0300" in rows["int8"]
        assert "too large an error" in rows["int8"]
        assert "2.000" in rows["fp8"]
        assert "chosen" in rows["fp8"]
        assert "no kernel" in rows["int8-weights"]


def test_no_time_left(model, data, tmp_path):
    target = tmp_path / "best.plan"
    job = Job(
        model=model, target=target, config=CONFIG, backend="rtx", cache=None, cache_bytes=None
    )
    # A build may end before its limit is checked; then it is the GPU that lacks.
    with pytest.raises((BuildError, CudaError), match=r"allow more time|cannot find a GPU"):
        build_best(job, data, None, 0.01, False, False)
    assert not target.exists()


def test_sessions_take_turns(monkeypatch):
    """Each replay lies between two events on its own stream; the median of the rounds counts."""
    log = []

    class Event:
        def __init__(self, timing):
            assert timing

        def elapsed_ms(self, since):
            return self.at - since.at

    class Fake:
        clock = 0.0

        def __init__(self, name, cost):
            self.name, self.cost, self.rounds = name, cost, 0
            self.compute_stream = self

        def create_execution(self, inputs):
            assert inputs == {"x": self.name}
            return self

        def close(self):
            log.append("closed")

        def upload(self, stream):
            assert stream is self

        def record(self, event):
            event.at = Fake.clock

        def enqueue(self, stream, graph):
            self.rounds += 1
            assert graph == (self.rounds > 1), "a capture needs one run before it"
            if graph:
                log.append(self.name)
            # The first ones are slow, as kernels are compiled; one later is an outlier.
            slow = self.rounds <= 6 or self.rounds == 20
            Fake.clock += 100.0 if slow else self.cost

        def synchronize(self):
            pass

    monkeypatch.setattr(selection, "Event", Event)
    sessions = [Fake("a", 2.0), Fake("b", 3.0)]
    assert time_sessions(sessions, [{"x": "a"}, {"x": "b"}]) == [2.0, 3.0]
    assert [log.pop(), log.pop()] == ["closed"] * 2
    assert log == ["a", "b"] * (len(log) // 2)
    assert len(log) >= 100
