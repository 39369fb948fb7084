"""The INT8 calibrator on TensorRT 10's real bindings, called from C++ as TensorRT calls it.

Runs where those bindings import (tests/lanes: ``trt10`` and ``trt10-stub``); the calls need a C++
compiler. No GPU: the uploader, which alone needs one, is replaced by one to host memory.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.passes import pass_records

from trt_native.backends.base import BuildRequest, Calibration
from trt_native.backends.registry import load_backend
from trt_native.backends.trt10_calibrator import DeviceUploader, make_calibrator, with_header
from trt_native.builder.build import decide
from trt_native.builder.build_plan import build_plan
from trt_native.calibration.batches import read_batches
from trt_native.calibration.collect import calibrate as calibrate_model
from trt_native.calibration.folder import write_batches
from trt_native.config import BuildConfig, CalibrationMethod, Precision, QuantizationSpec
from trt_native.errors import BuildError, CalibrationError, SpecError, UnsupportedError
from trt_native.graph.onnx_file import operator_names, read_model, tensor_specs
from trt_native.shapes import Profile, ProfileSpec, ShapeRange, TensorSpec

HEADER = "TRT-101601-EntropyCalibration2\n"
RANGES = "latents: 3c010a14\nhalf: 4000890a\n"


class TestHeader:
    def test_only_the_first_line_changes(self):
        old = b"TRT-8401-MinMaxCalibration\nx: 3c010a14\n(Unnamed Layer* 9) [Constant]_output: 1\n"
        new = with_header(old, "10.3.0.26", "EntropyCalibration2")
        assert new.split(b"\n")[0] == b"TRT-100300-EntropyCalibration2"
        assert new.split(b"\n", 1)[1] == old.split(b"\n", 1)[1]

    @pytest.mark.parametrize(
        ("version", "number"),
        [("10.16.1.11", "101601"), ("10.3.0", "100300"), ("11.4.0", "110400")],
    )
    def test_the_number_is_major_minor_patch(self, version, number):
        assert with_header(b"TRT-1-A\nx: 0", version, "B") == f"TRT-{number}-B\nx: 0".encode()

    @pytest.mark.parametrize("cache", [b"\x00\x01", b"x: 3c010a14\n", b'{"amax": 1}'])
    def test_another_file_is_refused(self, cache):
        with pytest.raises(CalibrationError, match="not a calibration cache of TensorRT: it star"):
            with_header(cache, "10.3.0", "B")

    @pytest.mark.parametrize("cache", [b"TRT-8401-A", b"TRT-8401-A\n", b"TRT-8401-A\n \n"])
    def test_no_ranges_are_refused(self, cache):
        # TensorRT would take such a cache, and quantize nothing.
        with pytest.raises(CalibrationError, match="without ranges"):
            with_header(cache, "10.3.0", "B")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("driver") / "driver.so"
    source = Path(__file__).with_name("calibrator_driver.cpp")
    subprocess.run(
        [compiler, "-std=c++17", "-shared", "-fPIC", "-O1", "-o", library, source], check=True
    )
    loaded = ctypes.CDLL(
        str(library)
    )  # gives the GIL up during a call, as the bindings' build does
    for name in ("calibrate", "trace_pointer", "trace_content"):
        getattr(loaded, name).restype = ctypes.c_void_p
    loaded.trace_kind.restype = ctypes.c_char_p
    loaded.trace_accepted.restype = ctypes.c_bool
    loaded.trace_cache.restype = ctypes.c_size_t
    return loaded


@dataclasses.dataclass
class Seen:
    """Record of the calls on the C++ side."""

    kind: str
    algorithm: int
    batch_size: int
    accepted: bool
    cache: bytes
    pointers: list[tuple[int, ...]]
    contents: list[tuple[bytes, ...]]


COPY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def calibrate(
    driver, calibrator, sizes, header=HEADER, result=HEADER + RANGES, limit=100, copy=None
):
    """Let C++ drive the calibrator; ``sizes`` are the bytes to read of each input, in order."""
    address = ctypes.c_void_p.from_address(id(calibrator) + 16).value  # pybind11's first word
    names = (ctypes.c_char_p * len(sizes))(*(name.encode() for name in sizes))
    lengths = (ctypes.c_size_t * len(sizes))(*sizes.values())
    trace = ctypes.c_void_p(
        driver.calibrate(
            ctypes.c_void_p(address), header.encode(), result.encode(), len(sizes), names, lengths,
            limit, copy or COPY(),
        )
    )  # fmt: skip
    data = ctypes.c_void_p()
    length = driver.trace_cache(trace, ctypes.byref(data))
    reads = driver.trace_reads(trace)
    pointers = [driver.trace_pointer(trace, i) for i in range(reads)]
    contents = [
        ctypes.string_at(driver.trace_content(trace, i), list(sizes.values())[i % len(sizes)])
        for i in range(reads)
    ]
    seen = Seen(
        driver.trace_kind(trace).decode(),
        driver.trace_algorithm(trace),
        driver.trace_batch_size(trace),
        driver.trace_accepted(trace),
        ctypes.string_at(data, length),
        list(zip(*[iter(pointers)] * len(sizes), strict=True)),
        list(zip(*[iter(contents)] * len(sizes), strict=True)),
    )
    driver.trace_free(trace)
    return seen


class HostUploader:
    """Host memory in place of the GPU's: what the C++ side reads is what lies there then."""

    def __init__(self, fail_at=None):
        self.buffers, self.calls, self.closed, self.fail_at = {}, 0, 0, fail_at

    def upload(self, arrays):
        self.calls += 1
        if self.calls == self.fail_at:
            raise ZeroDivisionError("planted")
        for name, array in arrays.items():
            buffer = self.buffers.setdefault(name, np.zeros(array.nbytes, np.uint8))
            assert buffer.nbytes == array.nbytes
            buffer[:] = np.frombuffer(array.tobytes(), np.uint8)
        return {name: self.buffers[name].ctypes.data for name in arrays}

    def close(self):
        self.closed += 1


class Recorder:
    def __init__(self, fail_at=None):
        self.events, self.fail_at = [], fail_at

    def _note(self, *event):
        self.events.append(event)
        if event == self.fail_at:
            raise KeyboardInterrupt

    def phase_start(self, phase, parent, steps):
        self._note("start", phase, parent, steps)

    def step_complete(self, phase, step):
        self._note("step", phase, step)

    def phase_finish(self, phase):
        self._note("finish", phase)


INPUTS = (
    TensorSpec("latents", "float32", (2, 3, "width")),
    TensorSpec("timestep", "int64", (1,)),
    TensorSpec("half", "float16", ("n", 5)),
    TensorSpec("mask", "bool", (7,)),
)


def make_arrays(count):
    rng = np.random.default_rng(0)
    return [
        {
            "latents": rng.standard_normal((2, 3, 4), np.float32),
            "timestep": np.array([2**40 + i], np.int64),
            "half": rng.standard_normal((6, 5)).astype(np.float16),
            "mask": rng.integers(0, 2, 7).astype(bool),
        }
        for i in range(count)
    ]


# As TensorRT reads them: floats in FP32, regardless of the model.
SERVED = {"latents": "float32", "timestep": "int64", "half": "float32", "mask": "bool"}
SHUFFLED = ("half", "timestep", "mask", "latents")


def sizes_of(arrays, names=SHUFFLED):
    return {name: arrays[0][name].astype(SERVED[name]).nbytes for name in names}


def expected_contents(arrays, names=SHUFFLED):
    return [tuple(batch[name].astype(SERVED[name]).tobytes() for name in names) for batch in arrays]


@pytest.fixture
def arrays():
    return make_arrays(5)


@pytest.fixture
def batches(arrays, tmp_path):
    write_batches(tmp_path / "data", arrays, model="test")
    return read_batches(tmp_path / "data", INPUTS)


@pytest.fixture
def make(trt10):
    def make(calibration, uploader=None, progress=None, cancelled=None):
        return make_calibrator(
            trt10._trt,
            calibration,
            uploader or HostUploader(),
            progress,
            cancelled or threading.Event(),
        )

    return make


@pytest.mark.backend
class TestProtocol:
    def test_inputs_of_four_types_in_shuffled_order(self, driver, make, batches, arrays):
        calibrator = make(Calibration(batches=batches))
        seen = calibrate(driver, calibrator, sizes_of(arrays))
        assert seen.contents == expected_contents(arrays)
        assert len(set(seen.pointers)) == 1, "each input needs one buffer for all batches"
        assert len(set(seen.pointers[0])) == len(INPUTS)
        assert (seen.kind, seen.algorithm, seen.batch_size) == ("IInt8EntropyCalibrator2", 2, 1)
        assert seen.cache == b""
        calibrator.check()

    def test_another_order_of_names(self, driver, make, batches, arrays):
        order = ("timestep", "latents", "half", "mask")
        seen = calibrate(driver, make(Calibration(batches=batches)), sizes_of(arrays, order))
        assert seen.contents == expected_contents(arrays, order)

    def test_min_max(self, driver, make, batches, arrays, tmp_path):
        cache = tmp_path / "cache"
        cache.write_text("TRT-8401-EntropyCalibration2\n" + RANGES)
        calibrator = make(Calibration(batches=batches, cache=cache, method="minmax"))
        header = "TRT-101601-MinMaxCalibration\n"
        seen = calibrate(driver, calibrator, sizes_of(arrays), header=header)
        assert (seen.kind, seen.algorithm) == ("IInt8MinMaxCalibrator", 3)
        assert seen.accepted
        assert seen.cache == (header + RANGES).encode()

    def test_exhausted_data_stays_exhausted(self, driver, make, batches, arrays):
        calibrator = make(Calibration(batches=batches))
        first = calibrate(driver, calibrator, sizes_of(arrays))
        again = calibrate(driver, calibrator, sizes_of(arrays))
        assert (len(first.contents), len(again.contents)) == (5, 0)
        calibrator.check()

    def test_too_few_batches_read_is_an_error(self, driver, make, batches, arrays, tmp_path):
        calibrator = make(Calibration(batches=batches, cache=tmp_path / "cache"))
        calibrate(driver, calibrator, sizes_of(arrays), limit=4)
        with pytest.raises(CalibrationError, match="calibrated on 4 of 5 batches"):
            calibrator.check()
        assert not (tmp_path / "cache").exists()

    def test_an_exception_on_batch_3_ends_all_and_comes_back(
        self, driver, make, batches, arrays, tmp_path
    ):
        cancelled = threading.Event()
        uploader = HostUploader(fail_at=3)
        calibration = Calibration(batches=batches, cache=tmp_path / "cache")
        calibrator = make(calibration, uploader, cancelled=cancelled)
        seen = calibrate(driver, calibrator, sizes_of(arrays))
        assert seen.contents == expected_contents(arrays)[:2]
        assert uploader.calls == 3
        assert cancelled.is_set(), "the build must not go on for nothing"
        assert not (tmp_path / "cache").exists(), "ranges of two batches must not be kept"
        with pytest.raises(ZeroDivisionError, match="planted"):
            calibrator.check()

    def test_an_exception_of_the_users_function_is_raised_again(
        self, driver, make, arrays, tmp_path
    ):
        source = tmp_path / "data.py"
        source.write_text(
            "import numpy as np\n"
            "passes = 0\n"
            "def batches():\n"
            "    global passes\n"
            "    passes += 1\n"
            "    for i in range(5):\n"
            "        if passes > 1 and i == 2:\n"
            "            raise OSError('disk gone')\n"
            "        yield {'mask': np.full(7, True)}\n"
        )
        batches = read_batches(f"{source}:batches", INPUTS[3:])
        calibrator = make(Calibration(batches=batches))
        seen = calibrate(driver, calibrator, {"mask": 7})
        assert len(seen.contents) == 2
        with pytest.raises(CalibrationError, match="raised OSError: disk gone"):
            calibrator.check()

    def test_an_unknown_input_is_reported(self, driver, make, batches):
        calibrator = make(Calibration(batches=batches))
        seen = calibrate(driver, calibrator, {"latents": 4, "audio": 4})
        assert seen.contents == []
        with pytest.raises(CalibrationError, match="asks for input 'audio', the data has latents"):
            calibrator.check()

    def test_a_cancelled_build_gets_no_more_data(self, driver, make, batches, arrays, tmp_path):
        cancelled = threading.Event()
        cancelled.set()
        calibration = Calibration(batches=batches, cache=tmp_path / "cache")
        calibrator = make(calibration, cancelled=cancelled)
        assert calibrate(driver, calibrator, sizes_of(arrays)).contents == []
        assert not (tmp_path / "cache").exists()

    def test_close_closes_the_uploader(self, make, batches):
        uploader = HostUploader()
        make(Calibration(batches=batches), uploader).close()
        assert uploader.closed == 1


@pytest.mark.backend
@pytest.mark.gpu
def test_the_pointers_lead_to_the_batches_in_gpu_memory(driver, make, batches, arrays):
    from cuda.bindings import driver as cuda

    def copy(to, address, size):  # a plain copy: it sees only what was complete before
        codes.append(int(cuda.cuMemcpyDtoH(to, address, size)[0]))

    codes = []
    calibrator = make(Calibration(batches=batches), DeviceUploader())
    seen = calibrate(driver, calibrator, sizes_of(arrays), copy=COPY(copy))
    assert codes == [0] * len(arrays) * len(INPUTS)
    assert seen.contents == expected_contents(arrays)
    assert len(set(seen.pointers)) == 1
    calibrator.check()
    calibrator.close()


@pytest.mark.backend
class TestCache:
    def test_it_is_written_once_all_data_was_read(self, driver, make, batches, arrays, tmp_path):
        cache = tmp_path / "cache"
        calibrate(driver, make(Calibration(batches=batches, cache=cache)), sizes_of(arrays))
        assert cache.read_text() == HEADER + RANGES
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]

    @pytest.mark.parametrize("header", [HEADER, "TRT-8401-EntropyCalibration2\n", "TRT-1-Mse\n"])
    def test_one_of_any_version_is_accepted_and_left_as_it_is(
        self, driver, make, batches, arrays, tmp_path, header
    ):
        cache = tmp_path / "cache"
        cache.write_text(header + RANGES)
        uploader = HostUploader()
        calibrator = make(Calibration(batches=batches, cache=cache), uploader)
        seen = calibrate(driver, calibrator, sizes_of(arrays), result="TRT-101601-changed\n")
        assert seen.accepted
        assert seen.cache == (HEADER + RANGES).encode()
        assert uploader.calls == 0
        calibrator.check()
        assert cache.read_text() == header + RANGES

    def test_without_data(self, driver, make, tmp_path):
        cache = tmp_path / "cache"
        cache.write_text(HEADER + RANGES)
        calibrator = make(Calibration(cache=cache))
        assert calibrate(driver, calibrator, {"latents": 4}).accepted
        calibrator.check()

    def test_an_empty_one_is_a_miss(self, driver, make, batches, arrays, tmp_path):
        cache = tmp_path / "cache"
        cache.touch()
        calibrator = make(Calibration(batches=batches, cache=cache))
        seen = calibrate(driver, calibrator, sizes_of(arrays))
        assert (seen.cache, len(seen.contents)) == (b"", 5)
        calibrator.check()
        assert cache.read_text() == HEADER + RANGES

    def test_one_that_tensorrt_rejects_is_an_error(self, driver, make, batches, arrays, tmp_path):
        cache = tmp_path / "cache"
        cache.write_text(HEADER + RANGES)
        calibrator = make(Calibration(batches=batches, cache=cache))
        seen = calibrate(driver, calibrator, sizes_of(arrays), header="TRT-another")
        assert seen.contents == []
        with pytest.raises(CalibrationError, match="did not accept the calibration cache"):
            calibrator.check()
        assert cache.read_text() == HEADER + RANGES

    def test_one_that_cannot_be_written_is_an_error(self, driver, make, batches, arrays, tmp_path):
        calibration = Calibration(batches=batches, cache=tmp_path / "nowhere" / "cache")
        calibrator = make(calibration)
        calibrate(driver, calibrator, sizes_of(arrays))
        with pytest.raises(CalibrationError, match=r"cannot write .*nowhere/cache: No such file"):
            calibrator.check()

    def test_neither_data_nor_cache(self, make, tmp_path):
        with pytest.raises(CalibrationError, match="is missing or empty, and no calibration data"):
            make(Calibration(cache=tmp_path / "cache"))

    def test_another_file(self, make, batches, tmp_path):
        (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
        with pytest.raises(CalibrationError, match=r"model\.onnx: not a calibration cache"):
            make(Calibration(batches=batches, cache=tmp_path / "model.onnx"))


@pytest.mark.backend
class TestProgress:
    def test_every_batch_is_reported(self, driver, make, batches, arrays):
        recorder = Recorder()
        calibrate(driver, make(Calibration(batches=batches), progress=recorder), sizes_of(arrays))
        name = "Calibrating INT8"
        assert recorder.events == [
            ("start", name, None, 5),
            *(("step", name, i) for i in range(5)),
            ("finish", name),
        ]

    def test_an_interrupt_in_it_comes_back(self, driver, make, batches, arrays):
        recorder = Recorder(fail_at=("step", "Calibrating INT8", 1))
        calibrator = make(Calibration(batches=batches), progress=recorder)
        # The batch of step 1 is not handed over any more.
        assert len(calibrate(driver, calibrator, sizes_of(arrays)).contents) == 1
        with pytest.raises(KeyboardInterrupt):
            calibrator.check()


# In a build --------------------------------------------------------------------------------------

DYNAMIC = {"x": "1x3x8x8:2x3x8x8:4x3x16x16"}


@pytest.fixture
def image_batches(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [{"x": rng.standard_normal((3, 3, 8, 8), np.float32)} for _ in range(4)]
    write_batches(tmp_path / "images", arrays, model="conv")
    inputs, _ = tensor_specs(read_model(tiny_models.lone_conv(tmp_path / "conv.onnx")))
    return read_batches(tmp_path / "images", inputs)


@pytest.fixture
def request_for(tmp_path):
    def make(calibration, make_model=tiny_models.conv, shapes=DYNAMIC, **changes):
        path = make_model(tmp_path / "model.onnx")
        ranges = {name: ShapeRange.parse(text) for name, text in shapes.items()}
        request = BuildRequest(
            onnx=path,
            config=BuildConfig(),
            profiles=(Profile(ranges),) if ranges else (),
            fixed={},
            builder_flags=Precision.FP16,
            strongly_typed=False,
            fp32_nodes=frozenset(),
            operators=operator_names(read_model(path)),
            workspace_bytes=1 << 30,
            calibration=calibration,
        )
        return dataclasses.replace(request, **changes)

    return make


@pytest.fixture
def driven(trt10, driver, monkeypatch):
    """The backend, with C++ calling the configuration's calibrator where TensorRT would.

    The library under these bindings builds, but never calibrates.
    """
    try:
        trt10._builder()
    except UnsupportedError as error:
        pytest.skip(error.message)
    serialize = trt10._serialize
    uploader = HostUploader()
    seen = {"uploader": uploader}

    def calibrate_and_serialize(builder, network, config, progress, cancelled, output):
        flags = trt10._trt.BuilderFlag.__members__
        profile = config.get_calibration_profile()
        seen["flags"] = {name for name, flag in flags.items() if config.get_flag(flag)}
        seen["profile"] = profile and [tuple(shape) for shape in profile.get_shape("x")]
        if seen.get("calls", True):
            seen["trace"] = calibrate(driver, config.int8_calibrator, {"x": 3 * 3 * 8 * 8 * 4})
        return serialize(builder, network, config, progress, cancelled, output)

    monkeypatch.setattr(trt10, "_serialize", calibrate_and_serialize)
    monkeypatch.setattr("trt_native.backends.trt10.DeviceUploader", lambda: uploader)
    trt10.seen = seen
    return trt10


def int8(spec):
    profile = ProfileSpec.parse(shapes=[f"x={DYNAMIC['x']}"])
    return BuildConfig(profiles=(profile,), precision=Precision.INT8, quantization=spec)


def build(backend, request):
    return backend.build(request, None, threading.Event())


@pytest.mark.backend
class TestBuild:
    def test_flags_profile_and_data(self, driven, request_for, image_batches, tmp_path):
        calibration = Calibration(batches=image_batches, cache=tmp_path / "cache")
        build(driven, request_for(calibration))
        seen = driven.seen
        assert {"FP16", "INT8"} <= seen["flags"]
        assert "BF16" not in seen["flags"]
        assert seen["profile"] == [(3, 3, 8, 8)] * 3
        assert seen["trace"].contents == [(batch["x"].tobytes(),) for batch in image_batches]
        assert seen["uploader"].closed == 1
        assert (tmp_path / "cache").read_text() == HEADER + RANGES

    def test_bf16_beside_int8(self, driven, request_for, image_batches):
        calibration = Calibration(batches=image_batches)
        build(driven, request_for(calibration, builder_flags=Precision.BF16))
        assert {"BF16", "INT8"} <= driven.seen["flags"]
        assert "FP16" not in driven.seen["flags"]

    def test_static_shapes_need_no_profile(self, driven, request_for, image_batches):
        def static(path):
            return tiny_models.conv(path, (3, 3, 8, 8))

        build(driven, request_for(Calibration(batches=image_batches), static, shapes={}))
        assert driven.seen["profile"] is None
        assert len(driven.seen["trace"].contents) == 4

    def test_a_cache_alone(self, driven, request_for, tmp_path):
        (tmp_path / "cache").write_text("TRT-8401-EntropyCalibration2\n" + RANGES)
        build(driven, request_for(Calibration(cache=tmp_path / "cache")))
        assert driven.seen["trace"].accepted
        assert driven.seen["profile"] == [(2, 3, 8, 8)] * 3

    def test_a_failure_in_the_pass_ends_the_build(self, driven, request_for, image_batches):
        driven.seen["uploader"].fail_at = 3
        with pytest.raises(ZeroDivisionError, match="planted") as caught:
            build(driven, request_for(Calibration(batches=image_batches)))
        assert isinstance(caught.value.__cause__, BuildError)
        assert driven.seen["uploader"].closed == 1

    def test_a_build_that_did_not_calibrate_is_an_error(self, driven, request_for, image_batches):
        driven.seen["calls"] = False
        with pytest.raises(CalibrationError, match="calibrated on 0 of 4 batches"):
            build(driven, request_for(Calibration(batches=image_batches)))

    def test_build_plan_with_data(self, driven, image_batches, tmp_path):
        spec = QuantizationSpec(
            calibration_data=str(tmp_path / "images"), calibration_method=CalibrationMethod.MINMAX
        )
        plan = build_plan(tmp_path / "conv.onnx", int8(spec), backend=driven)
        assert {"FP16", "INT8"} <= driven.seen["flags"]
        assert driven.seen["trace"].contents == [(batch["x"].tobytes(),) for batch in image_batches]
        record = plan.manifest.precision
        assert record["applied"] == "int8"
        assert pass_records(plan.manifest)["pin_fp32_nodes"]["nodes"] == {}
        assert record["calibrated"] == {
            "by": f"TensorRT {driven.version}",
            "data": str(tmp_path / "images"),
            "batches": 4,
            "method": "minmax",
        }

    def test_build_plan_with_ranges_found_without_tensorrt(self, driven, image_batches, tmp_path):
        calibrate_model(tmp_path / "conv.onnx", image_batches).save(tmp_path / "own.calib")
        spec = QuantizationSpec(calibration_cache=tmp_path / "own.calib")
        plan = build_plan(tmp_path / "conv.onnx", int8(spec), backend=driven)
        assert driven.seen["trace"].accepted
        text = (tmp_path / "own.calib").read_text().partition("\n")[2]
        assert driven.seen["trace"].cache.decode() == HEADER + text
        assert plan.manifest.precision["calibrated"]["file"] == "own.calib"

    def test_node_placement_yields_qdq_nodes(self, driven, tmp_path):
        model = tiny_models.dense(tmp_path / "dense.onnx")
        write_batches(tmp_path / "data", [{"h0": np.ones((4, 64), np.float32)}], model="dense")
        given = {"calibration_data": str(tmp_path / "data")}
        profiles = (ProfileSpec.parse(["batch=1:4:8"]),)
        found = []
        for spec in ({}, {"exclude": ("/dense.1",)}, {"calibration_method": CalibrationMethod.MSE}):
            config = BuildConfig(
                profiles=profiles,
                precision=Precision.INT8,
                quantization=QuantizationSpec(**given, **spec),
            )
            planned = decide(model, config, backend=driven)
            nodes = pass_records(planned).get("quantize", {}).get("nodes")
            precision = planned.precision
            found.append((precision.calibrates, precision.strongly_typed, nodes))
        both = {"MatMul": 1, "Gemm": 1}
        assert found == [(True, False, None), (False, True, {"MatMul": 1}), (False, True, both)]

    def test_strong_typing_is_refused(self, driven, request_for, image_batches):
        request = request_for(Calibration(batches=image_batches), strongly_typed=True)
        with pytest.raises(UnsupportedError, match="a network whose types TensorRT may choose"):
            build(driven, request)

    def test_a_quantized_model_is_refused(self, driven, request_for, image_batches):
        def quantized(path):
            model = onnx.load(tiny_models.conv(path))
            node = model.graph.node[1]
            for operator, output in (("QuantizeLinear", "q"), ("DequantizeLinear", "dq")):
                new = onnx.helper.make_node(operator, [node.input[0], "scale", "zero"], [output])
                node.input[0] = output
                model.graph.node.insert(len(model.graph.node) - 1, new)
            for name, value in (("scale", np.float32(0.1)), ("zero", np.int8(0))):
                model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
            onnx.save(model, path)
            return path

        with pytest.raises(SpecError, match="has Q/DQ nodes, which hold its ranges"):
            build(driven, request_for(Calibration(batches=image_batches), quantized))

    def test_data_of_other_extents_than_the_plans_is_refused(
        self, driven, request_for, image_batches
    ):
        request = request_for(Calibration(batches=image_batches), fixed={"x": (None, 3, 16, 16)})
        with pytest.raises(SpecError, match="'x' is 3x3x8x8 in the data, and fixed to") as caught:
            build(driven, request)
        assert "?x3x16x16" in str(caught.value)


@pytest.mark.backend
def test_other_backends_refuse_it_by_name(tmp_path, request_for, image_batches):
    try:
        backend = load_backend()
    except UnsupportedError as error:
        pytest.skip(error.message)
    if backend.capabilities.int8_calibrator:
        pytest.skip(f"{backend.name} has a calibrator")
    with pytest.raises(UnsupportedError, match=f"{backend.product} .* has no INT8 calibrator"):
        build(backend, request_for(Calibration(batches=image_batches)))


def test_an_unknown_method_is_refused():
    with pytest.raises(SpecError, match="'mse': TensorRT's own are entropy and minmax"):
        Calibration(method="mse")
