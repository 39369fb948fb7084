"""Calibration on the GPU, and quantized plans against FP32."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import tiny_models
from helpers.golden_unet import cases, export
from helpers.metrics import relative_error
from helpers.passes import pass_records
from helpers.tolerances import TF32_PRODUCTS
from onnx import TensorProto
from onnx.helper import make_node, np_dtype_to_tensor_dtype

from trt_native import BuildConfig, Precision, ProfileSpec, QuantizationSpec, Session, build_plan
from trt_native.backends.registry import load_backend
from trt_native.builder.engine_calibration import EngineActivations, activation_source
from trt_native.builder.select_precision import select_precision
from trt_native.calibration.batches import read_batches
from trt_native.calibration.collect import calibrate
from trt_native.calibration.device import MEASURED_DTYPES, DeviceStatistics
from trt_native.calibration.folder import write_batches
from trt_native.calibration.ranges import Histogram, magnitude
from trt_native.config import CalibrationMethod, CalibrationRunner
from trt_native.errors import CalibrationError, CudaError
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.plans.plan import Plan

pytestmark = pytest.mark.gpu

DATA = Path(__file__).parents[2] / "calib_data" / "latentsync_small"


class OnDevice:
    """An array in GPU memory, made with nothing but the driver."""

    def __init__(self, array):
        from cuda.bindings import driver
        from cuda.core import Device

        device = Device()
        device.set_current()
        self._stream = device.create_stream()
        self._buffer = device.allocate(max(array.nbytes, 1), stream=self._stream)
        (code,) = driver.cuMemcpyHtoDAsync(
            int(self._buffer.handle), array.ctypes.data, array.nbytes, self._stream.handle
        )
        assert int(code) == 0
        self._stream.sync()
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            # What the interface has no word for travels as its bits.
            "typestr": f"<u{array.itemsize}" if array.dtype.kind == "V" else array.dtype.str,
            "data": (int(self._buffer.handle), False),
            "strides": None,
            "version": 3,
        }


def cast(values, dtype):
    return np.ascontiguousarray(values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype))


@pytest.mark.parametrize("dtype", MEASURED_DTYPES)
def test_largest_values_and_histograms_are_those_of_numpy(rng, dtype):
    batches = [
        {
            "normal": rng.standard_normal((3, 5, 7 + 2**18)) * scale,
            "sparse": np.where(rng.random(300_000) < 0.99, 0, rng.standard_normal(300_000) * scale),
            "edges": np.concatenate([np.arange(-2048, 2049), np.arange(2047) * 2048 / 2047]) / 2048,
            "one": np.array(-3.5),
            "zeros": np.zeros((2, 2000)),
            "few": rng.standard_normal(31) * 1e-6,
        }
        for scale in (1, 100, 3)
    ]
    batches = [{name: cast(values, dtype) for name, values in b.items()} for b in batches]
    names = list(batches[0])
    peaks = {name: max(magnitude(batch[name]) for batch in batches) for name in names}
    expected = {name: Histogram(peak) for name, peak in peaks.items() if peak}
    with DeviceStatistics(names) as statistics:
        held = [{name: OnDevice(values) for name, values in batch.items()} for batch in batches]
        for batch in held:
            for name, tensor in batch.items():
                statistics.measure(name, tensor, dtype)
        assert statistics.peaks() == peaks
        statistics.start_histograms({name: h.limit for name, h in expected.items()})
        for batch in held:
            for name, tensor in batch.items():
                statistics.count(name, tensor, dtype)
        statistics.wait()
        found = statistics.histograms()
    assert list(found) == [name for name in names if name != "zeros"]
    for name, histogram in expected.items():
        for batch in batches:
            histogram.add(batch[name])
        np.testing.assert_array_equal(found[name].counts, histogram.counts, err_msg=name)
        assert (found[name].limit, found[name].amax) == (histogram.limit, histogram.amax)
        assert found[name].elements == histogram.elements
    statistics.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(bad):
    values = np.zeros(100_000, np.float32)
    values[77_777] = bad
    with DeviceStatistics(["x"]) as statistics:
        statistics.measure("x", OnDevice(values), "float32")
        assert not np.isfinite(statistics.peaks()["x"])


def test_an_array_in_host_memory_is_refused():
    with (
        DeviceStatistics(["x"]) as statistics,
        pytest.raises(CudaError, match="not in GPU memory"),
    ):
        statistics.measure("x", np.zeros(3, np.float32), "float32")


@pytest.fixture
def dense(tmp_path):
    return tiny_models.dense(tmp_path / "m.onnx", layers=6)


@pytest.fixture
def batches(rng):
    return [{"h0": rng.standard_normal((n, 64), np.float32)} for n in (4, 2, 4, 4)]


@pytest.mark.backend
@pytest.mark.parametrize(
    ("by", "tolerance"),
    [(CalibrationRunner.ENGINE, TF32_PRODUCTS), (CalibrationRunner.ENGINE_FP16, 4e-3)],
    ids=str,
)
def test_an_engine_finds_what_the_reference_finds(dense, batches, by, tolerance):
    expected = calibrate(dense, batches, method=CalibrationMethod.MINMAX)
    # Two tensors at a time, so that there are three engines.
    source = EngineActivations(load_backend(), by=by, memory_bytes=2 * 4 * 64 * 4)
    found = calibrate(dense, batches, method=CalibrationMethod.MINMAX, source=source)
    assert source.groups == (3 if by is CalibrationRunner.ENGINE else 2)
    assert list(found.scales) == list(expected.scales)
    for name, scale in expected.scales.items():
        assert found.scales[name] == pytest.approx(scale, rel=tolerance), name


@pytest.mark.backend
@pytest.mark.parametrize("method", [CalibrationMethod.ENTROPY, CalibrationMethod.MSE], ids=str)
def test_ranges_by_histogram(dense, batches, method):
    source = activation_source(CalibrationRunner.AUTO)
    assert isinstance(source, EngineActivations)
    expected = calibrate(dense, batches, method=method)
    found = calibrate(dense, batches, method=method, source=source)
    assert "engine in FP32" in found.provenance.runner
    for name in expected.scales:
        assert found.amax(name) == pytest.approx(expected.amax(name), rel=TF32_PRODUCTS)
        # A value at a bin's edge may fall to either side; entropy then leaps to another threshold.
        if method is CalibrationMethod.MSE:
            assert found.scales[name] == pytest.approx(expected.scales[name], rel=0.1), name


@pytest.mark.backend
def test_a_norm_next_to_an_extra_output(tmp_path, rng):
    """TensorRT-RTX has a kernel for it in the layout of convolutions alone."""
    shape = (2, 320, 64, 64)
    nodes = [
        make_node("Reshape", ["x", "groups"], ["rows"]),
        make_node("InstanceNormalization", ["rows", "ones", "zeros"], ["normal"]),
        make_node("Reshape", ["normal", "shape"], ["norm"]),
        make_node("Conv", ["norm", "w"], ["y"], name="conv"),
    ]
    weights = {
        "groups": np.array([0, 32, -1]),
        "shape": np.array(shape),
        "ones": np.ones(32, np.float16),
        "zeros": np.zeros(32, np.float16),
        "w": rng.standard_normal((32, 320, 1, 1)).astype(np.float16),
    }
    tensors = [tiny_models.tensor("x", TensorProto.FLOAT16, shape)]
    results = [tiny_models.tensor("y", TensorProto.FLOAT16, [2, 32, 64, 64])]
    model = tiny_models.save(tmp_path / "m.onnx", nodes, tensors, results, weights)
    batches = [{"x": rng.standard_normal(shape).astype(np.float16)} for _ in range(2)]
    expected = calibrate(model, batches, method=CalibrationMethod.MINMAX)
    source = EngineActivations(load_backend())
    found = calibrate(model, batches, method=CalibrationMethod.MINMAX, source=source)
    assert "norm" in expected.scales
    for name, scale in expected.scales.items():
        assert found.scales[name] == pytest.approx(scale, rel=4e-3), name


@pytest.mark.backend
def test_an_overflow_names_batch_and_tensor(dense, batches):
    batches[2]["h0"] = batches[2]["h0"] * np.float32(1e5)
    source = EngineActivations(load_backend(), by=CalibrationRunner.ENGINE_FP16)
    with pytest.raises(CalibrationError, match=r"^batch 2: tensor 'h[1-5]' has NaN or infinite"):
        calibrate(dense, batches, source=source)


@pytest.mark.backend
def test_a_build_calibrates_with_an_engine_and_notes_its_layers(tmp_path, rng):
    model = tiny_models.dense(tmp_path / "m.onnx", width=256)
    batches = [{"h0": rng.standard_normal((64, 256), np.float32)} for _ in range(4)]
    write_batches(tmp_path / "data", batches, model="dense")
    quantization = QuantizationSpec(calibration_data=str(tmp_path / "data"))
    profiles = (ProfileSpec.parse(["batch=64"]),)
    plans = {
        precision: build_plan(
            model,
            BuildConfig(
                profiles=profiles,
                precision=precision,
                quantization=quantization if precision.needs_ranges else QuantizationSpec(),
            ),
        )
        for precision in (Precision.FP32, Precision.INT8, Precision.FP8, Precision.INT8_WEIGHTS)
    }
    record = plans[Precision.INT8].manifest.precision
    quantized = pass_records(plans[Precision.INT8].manifest).get("quantize")
    if quantized:  # TensorRT 10 calibrates with its own calibrator
        assert "engine in FP32" in quantized["calibration"]["runner"]
    print("layers of the INT8 engine:", record["engine_layers"])
    assert record["engine_layers"] is None or record["engine_layers"]["layers"] > 0
    errors = _errors(plans, batches[0], "h2")
    assert errors[Precision.INT8] <= 0.05
    assert errors[Precision.FP8] <= 0.08
    assert errors[Precision.INT8_WEIGHTS] <= 0.02


@pytest.mark.backend
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8], ids=str)
def test_sums_beyond_fp16(tmp_path, precision, dtype):
    """Every number is the largest there is: 256 * 127 * 127 before it is scaled, 8 after."""
    kind = np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = tiny_models.save(
        tmp_path / "m.onnx",
        [make_node("MatMul", ["x", "w"], ["y"], name="product")],
        [tiny_models.tensor("x", kind, ["batch", 256])],
        [tiny_models.tensor("y", kind, ["batch", 64])],
        {"w": np.full((256, 64), 1 / 128, dtype)},
    )
    cache = tiny_models.calibration(model, tmp_path / "m.calib", 4.0)
    config = BuildConfig(
        profiles=(ProfileSpec.parse(["batch=16"]),),
        precision=precision,
        quantization=QuantizationSpec(calibration_cache=cache),
    )
    with Session(build_plan(model, config)) as session:
        found = session.run({"x": np.full((16, 256), 4, dtype)})["y"]
    np.testing.assert_allclose(found, np.full((16, 64), 8, dtype), rtol=2e-3)


def _errors(plans, batch, output):
    results = {}
    for precision, plan in plans.items():
        with Session(plan) as session:
            results[precision] = session.run(batch)[output].astype(np.float64)
    reference = results.pop(Precision.FP32)
    errors = {p: relative_error(found, reference) for p, found in results.items()}
    print("relative L2 errors:", {str(p): f"{error:.4f}" for p, error in errors.items()})
    return errors


@pytest.mark.backend
def test_the_fastest_plan(tmp_path, rng):
    model = tiny_models.dense(tmp_path / "m.onnx", width=128)
    batches = [{"h0": rng.standard_normal((64, 128), np.float32)} for _ in range(4)]
    write_batches(tmp_path / "data", batches, model="dense")
    config = BuildConfig(profiles=(ProfileSpec.parse(["batch=64"]),))
    quantization = QuantizationSpec(calibration_data=str(tmp_path / "data"))
    found = select_precision(model, config, quantization, max_error=0.05)
    for candidate in found.candidates:
        print(candidate)
        assert candidate.failure is not None or candidate.latency_ms > 0
    by_name = {candidate.precision: candidate for candidate in found.candidates}
    assert by_name[Precision.FP16].error <= 0.01
    assert by_name[Precision.INT8_WEIGHTS].error <= 0.02
    measured = [c for c in found.candidates if c.error is not None and c.error <= 0.05]
    assert by_name[found.chosen].latency_ms == min(c.latency_ms for c in measured)
    with Session(found.plan) as session:
        assert session.run(batches[0])["h2"].shape == (64, 128)


@pytest.mark.backend
@pytest.mark.slow
def test_the_command_for_the_fastest_plan(tmp_path, rng):
    model = tiny_models.dense(tmp_path / "m.onnx", width=128)
    batches = [{"h0": rng.standard_normal((64, 128), np.float32)} for _ in range(4)]
    write_batches(tmp_path / "data", batches, model="dense")
    words = [
        "--dim",
        "batch=64",
        "--precision",
        "best",
        "--calibration-data",
        tmp_path / "data",
        "--json",
    ]
    command = [sys.executable, "-m", "trt_native", "build", model, "-o", tmp_path / "m.plan"]
    done = subprocess.run([*command, *words], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    print(report["selection"])
    found = {c["precision"]: c for c in report["selection"]["candidates"]}
    assert found["fp16"]["error"] <= 0.02
    assert found[report["selection"]["chosen"]]["error"] <= 0.02
    assert (
        Plan.load(tmp_path / "m.plan").manifest.precision["applied"]
        == report["precision"]["applied"]
    )


# The small U-Net: an engine to calibrate it, and two plans; each builds for half a minute.


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return export(tmp_path_factory.mktemp("golden") / "unet.onnx")


@pytest.fixture(scope="module")
def unet_ranges(unet):
    """The ranges of 16 of the shipped batches, and two of the others with their FP32 outputs."""
    from onnx.reference import ReferenceEvaluator

    batches = read_batches(DATA, tensor_specs(read_model(unet))[0])
    cache = calibrate(unet, batches[:-4], source=activation_source(CalibrationRunner.AUTO))
    print("activations from:", cache.provenance.runner)
    assert "engine in FP32" in cache.provenance.runner
    evaluator = ReferenceEvaluator(str(unet))
    held = [(batch, evaluator.run(None, dict(batch))[0]) for batch in batches[-4::2]]
    return cache.save(unet.with_suffix(".calib")), held


@pytest.mark.slow
@pytest.mark.backend
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_small_unet(unet, unet_ranges, tmp_path, precision):
    """On batches that calibration has not seen; the golden cases are other inputs altogether."""
    ranges, held = unet_ranges
    shapes = ("batch=1:2:2", "frames=1:4:16", "height=8:16:32", "width=8:16:32", "tokens=5:50:50")
    dims = [word for dim in shapes for word in ("--dim", dim)]
    plan = tmp_path / "unet.plan"
    command = [
        "build",
        unet,
        "-o",
        plan,
        *dims,
        "--precision",
        precision,
        "--calibration-cache",
        ranges,
    ]
    subprocess.run(
        [sys.executable, "-m", "trt_native", *command, "--quantize-preset", "diffusion-unet"],
        check=True,
    )
    print(
        f"{precision}: layers of the engine:", Plan.load(plan).manifest.precision["engine_layers"]
    )
    with Session(plan) as session:
        errors = [
            relative_error(session.run(batch)["noise_pred"], expected) for batch, expected in held
        ]
        golden = []
        for case in cases():
            expected = case.pop("noise_pred")
            case["timestep"] = case["timestep"].reshape(1)
            golden.append(relative_error(session.run(case)["noise_pred"], expected))
    texts = [", ".join(f"{error:.4f}" for error in found) for found in (errors, golden)]
    print(f"{precision}: relative L2 errors on batches held back {texts[0]}; golden {texts[1]}")
    assert max(errors) <= 0.08
