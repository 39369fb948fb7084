"""From batches to a cache, against onnx.reference and NumPy over all activations at once."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
from helpers import tiny_models
from onnx.reference import ReferenceEvaluator

import trt_native.calibration.collect as collect_module
from trt_native.calibration.collect import ReferenceActivations, calibrate, collect
from trt_native.calibration.ranges import BINS, Histogram, entropy_threshold, mse_threshold
from trt_native.config import CalibrationMethod, CpuRuntime
from trt_native.errors import CalibrationError, SpecError
from trt_native.graph.onnx_file import hash_files, read_model
from trt_native.graph.quantizable import quantizable_tensors

ENTROPY, MINMAX, PERCENTILE, MSE = CalibrationMethod


def identity(batch):
    """A runner whose activations are its inputs."""
    yield from batch.items()


class Recorder:
    """A progress that records its calls."""

    def __init__(self):
        self.calls = []

    def phase_start(self, phase, parent, steps):
        self.calls.append((phase, steps))

    def step_complete(self, phase, step):
        self.calls.append((phase, "step", step))

    def phase_finish(self, phase):
        self.calls.append((phase, "end"))


@pytest.fixture
def batches(rng):
    scales = (1, 100, 7)
    return [
        {"x": rng.standard_normal((4, 5)).astype(np.float32) * s, "z": np.zeros(3)} for s in scales
    ]


def test_two_passes_give_an_exact_histogram(batches):
    found = collect(batches, identity, ["x", "z"])
    values = np.abs(np.concatenate([batch["x"] for batch in batches]).astype(np.float64))
    assert found.amax == {"x": values.max(), "z": 0.0}
    assert list(found.histograms) == ["x"]
    np.testing.assert_array_equal(
        found.histograms["x"].counts, np.histogram(values, BINS, (0, values.max()))[0]
    )
    assert found.batches == 3
    assert found.shapes == {"x": ("4x5",), "z": ("3",)}


def test_an_iterator_is_run_through_once(batches):
    found = collect(iter(batches), identity, ["x", "z"])
    expected = Histogram()
    for batch in batches:
        expected.add(batch["x"])
    assert found.amax == {"x": expected.amax, "z": 0.0}
    assert list(found.histograms) == ["x"]
    np.testing.assert_array_equal(found.histograms["x"].counts, expected.counts)
    assert found.histograms["x"].limit == expected.limit
    assert found.batches == 3


def test_without_histograms_one_pass_is_enough(batches):
    for source in (batches, iter(batches)):
        found = collect(source, identity, ["x", "z"], histograms=False)
        assert found.amax["x"] == max(float(np.abs(b["x"]).max()) for b in batches)
        assert found.histograms == {}


@pytest.mark.parametrize("wrap", [list, iter])
def test_zeros_and_nothing_have_no_histogram(wrap):
    batches = [{"x": np.zeros(4, np.float32), "y": np.zeros((0, 4), np.float32)}] * 2
    runs = []

    def run(batch):
        runs.append(batch)
        return identity(batch)

    found = collect(wrap(batches), run, ["x", "y"])
    assert (found.amax, found.histograms) == ({"x": 0.0, "y": 0.0}, {})
    assert len(runs) == 2


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int8, np.int64, np.bool_])
@pytest.mark.parametrize("wrap", [list, iter])
def test_types_of_activations(dtype, wrap):
    batches = [{"x": np.array([0, 1, 1, 0, 0]).astype(dtype)}, {"x": np.zeros(0, dtype)}]
    found = collect(wrap(batches), identity, ["x"])
    counts = found.histograms["x"].counts
    assert found.amax == {"x": 1.0}
    assert (counts[0], counts.sum()) == (3, 5)


@pytest.mark.parametrize("wrap", [list, iter])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite(batches, bad, wrap):
    batches[1]["x"][2, 3] = bad
    message = "^batch 1: tensor 'x' has NaN or infinite values; leave this batch out"
    with pytest.raises(CalibrationError, match=message):
        collect(wrap(batches), identity, ["x"])


class Shrinking:
    """Batches of which there are fewer each time."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        yield from self.batches
        self.batches = self.batches[:-1]


def test_data_that_changes_between_passes(batches):
    with pytest.raises(CalibrationError, match="3 batches at first and 2 the second time"):
        collect(Shrinking(batches), identity, ["x"])


def test_no_batches():
    with pytest.raises(CalibrationError, match="no batches"):
        collect([], identity, ["x"])


def test_a_runner_that_leaves_a_tensor_out(batches):
    with pytest.raises(CalibrationError, match=r"^batch 0: the model gave no values of tensor 'w'"):
        collect(batches, identity, ["x", "w"])


def test_progress_receives_every_batch(batches):
    progress = Recorder()
    collect(batches, identity, ["x"], progress=progress)
    phases = [f"Running the model: {title}" for title in ("largest values", "histograms")]
    assert progress.calls == [
        call
        for phase in phases
        for call in [(phase, 3), *((phase, "step", i) for i in range(3)), (phase, "end")]
    ]
    progress = Recorder()
    collect(iter(batches), identity, ["x"], progress=progress)
    steps = [(phases[1], "step", i) for i in range(3)]
    assert progress.calls == [(phases[1], 0), *steps, (phases[1], "end")]


@pytest.fixture
def model(tmp_path):
    return tiny_models.conv(tmp_path / "m.onnx", operator="Tanh")


def images(count=3, seed=0):
    random = np.random.default_rng(seed)
    return [
        {"x": random.standard_normal((n, 3, 8, 8)).astype(np.float32)} for n in (1, 2, 2)[:count]
    ]


@pytest.mark.parametrize(
    ("method", "find"),
    [
        (ENTROPY, lambda counts, amax: entropy_threshold(counts, amax / BINS, amax)),
        (MSE, lambda counts, amax: mse_threshold(counts, amax / BINS, amax)),
        (MINMAX, lambda counts, amax: amax),
    ],
)
def test_a_cache(model, method, find):
    batches = images()
    cache = calibrate(model, batches, method=method, source=ReferenceActivations(CpuRuntime.ONNX))
    values = np.abs(np.concatenate([np.tanh(b["x"]) for b in batches])).astype(np.float64)
    amax = values.max()
    bound = find(np.histogram(values, BINS, (0, amax))[0], amax)
    assert cache.scales == {"a": pytest.approx(bound / 127, rel=1e-6)}
    assert cache.amax("a") == pytest.approx(amax, rel=1e-6)
    algorithm = "MinMaxCalibration" if method is MINMAX else "EntropyCalibration2"
    assert cache.header == f"TRT-101601-{algorithm}"
    origin = cache.provenance
    assert origin.model == hash_files(model, read_model(model))
    assert (origin.method, origin.runner, origin.batches) == (str(method), "onnx.reference", 3)
    assert origin.shapes == {"x": ("1x3x8x8", "2x3x8x8")}
    assert origin.skipped == {}


def test_tensorrts_own_bits_for_uniform_inputs(tmp_path):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    batches = np.linspace(0, 255, 64 * 3200, dtype=np.float32).reshape(-1, 1, 64)
    cache = calibrate(path, [{"x": x} for x in batches], method=ENTROPY, version="8.6.1")
    assert cache.to_bytes() == b"TRT-8601-EntropyCalibration2\nx: 4000890a\n"


def test_percentile_is_recorded(model):
    cache = calibrate(model, images(), method=PERCENTILE, percentile=90.0)
    assert cache.provenance.method == "percentile 90"
    assert cache.threshold("a") < cache.amax("a")
    whole = calibrate(model, images(), method=PERCENTILE, percentile=100.0)
    assert whole.scales == calibrate(model, images(), method=MINMAX).scales


def two_products(path):
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        onnx.helper.make_node("MatMul", ["z", "a"], ["y"], name="second"),
    ]
    square = [tiny_models.tensor(name, tiny_models.FLOAT, [4, 4]) for name in "xzy"]
    return tiny_models.save(path, nodes, square[:2], square[2:], {"w": np.eye(4, dtype=np.float32)})


def test_zeros_are_skipped_and_named(tmp_path):
    path = two_products(tmp_path / "m.onnx")
    ones = np.ones((4, 4), np.float32)
    cache = calibrate(path, [{"x": ones, "z": ones * 0}])
    assert list(cache.scales) == ["x", "a"]
    assert cache.provenance.skipped == {"z": "holds nothing but zeros"}
    tiny = calibrate(path, [{"x": ones, "z": ones * np.float32(1e-45)}], method=MINMAX)
    assert list(tiny.scales) == ["x", "a"]
    with pytest.raises(CalibrationError, match="none of its 3 tensors holds anything but zeros"):
        calibrate(path, [{"x": ones * 0, "z": ones * 0}])


def test_patterns_choose_tensors(tmp_path):
    path = two_products(tmp_path / "m.onnx")
    batches = [{"x": np.ones((4, 4), np.float32), "z": np.ones((4, 4), np.float32)}]
    assert list(calibrate(path, batches, patterns=["z", "[ab]"]).scales) == ["z", "a"]
    with pytest.raises(SpecError, match=r"'xx' matches no tensor .*; close: x"):
        calibrate(path, batches, patterns=["x", "xx"])


def test_model_local_functions_are_inlined(tmp_path):
    text = """<ir_version: 10, opset_import: ["": 18, "local": 1]>
        g (float[2, 4] x) => (float[2, 4] y) { y = local.twice(x) }
        <opset_import: ["": 18], domain: "local">
        twice (v) => (p) { t = Transpose(v)  s = MatMul(v, t)  p = MatMul(s, v) }"""
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    cache = calibrate(path, [{"x": x}], method=MINMAX)
    assert [cache.amax(name) for name in cache.scales] == [7.0, 7.0, (x @ x.T).max()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y = Relu(x)", "nothing to calibrate: no activation goes into Conv or ConvTranspose or"),
        (
            "q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) y = MatMul(d, x)",
            "is quantized already",
        ),
    ],
)
def test_models_with_nothing_to_calibrate(text, message, tmp_path):
    path = tmp_path / "m.onnx"
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[4, 4] x, float s) => (float[4, 4] y)'
        f" {{ {text} }}"
    )
    onnx.save(proto, path)
    with pytest.raises(CalibrationError, match=message):
        calibrate(path, [])


def test_wrong_options_are_found_before_the_model_is_read(tmp_path):
    for options in ({"percentile": 0.0}, {"version": "11.0.0"}):
        with pytest.raises(SpecError):
            calibrate(tmp_path / "missing.onnx", [], **options)


class Doubling:
    """A source for which every tensor is twice the input, but for one that it leaves out."""

    name = "twice the input"

    def __call__(self, model, tensors, batches, *, histograms, progress):
        def run(batch):
            yield "h0", batch["h0"] * 2

        found = collect(batches, run, ["h0"], histograms=histograms, progress=progress)
        return replace(found, left_out={"h1": "too large"})


def test_another_source(tmp_path, rng):
    batches = [{"h0": rng.standard_normal((2, 64), np.float32)} for _ in range(3)]
    dense = tiny_models.dense(tmp_path / "m.onnx")
    cache = calibrate(dense, batches, method=MINMAX, source=Doubling())
    assert cache.provenance.runner == "twice the input"
    assert cache.amax("h0") == max(2 * float(np.abs(b["h0"]).max()) for b in batches)
    assert cache.provenance.skipped == {"h1": "too large"}


@pytest.mark.slow
def test_the_golden_unet(golden_onnx):
    path = golden_onnx
    random = np.random.default_rng(0)
    batches = [
        {
            "latents": random.standard_normal((2, 13, 2, 16, 16)).astype(np.float32),
            "timestep": np.array([step], np.int64),
            "encoder_hidden_states": random.standard_normal((4, 50, 24)).astype(np.float32),
        }
        for step in (900, 100)
    ]
    source = ReferenceActivations(CpuRuntime.ONNX)
    cache = calibrate(path, batches, method=ENTROPY, source=source)
    tensors = quantizable_tensors(read_model(path))
    assert list(cache.scales) == tensors
    evaluator = ReferenceEvaluator(str(path))
    runs = [evaluator.run(None, batch, intermediate=True) for batch in batches]
    for name in tensors:
        values = np.abs(np.concatenate([run[name].ravel() for run in runs])).astype(np.float64)
        amax = float(values.max())
        counts = np.histogram(values, BINS, (0, amax))[0]
        assert cache.amax(name) == amax
        assert cache.scales[name] == np.float32(entropy_threshold(counts, amax / BINS, amax) / 127)


@pytest.mark.parametrize(("room", "runs"), [(2**30, 3), (160, 6), (0, 6)])
def test_activations_that_fit_are_not_computed_again(batches, monkeypatch, room, runs):
    count = []

    def run(batch):
        count.append(1)
        yield from batch.items()

    monkeypatch.setattr(collect_module, "REUSED_BYTES", room)
    found = collect(batches, run, ["x"])
    assert len(count) == runs
    whole = collect(batches, identity, ["x"])
    np.testing.assert_array_equal(found.histograms["x"].counts, whole.histograms["x"].counts)
    assert found.shapes == whole.shapes
