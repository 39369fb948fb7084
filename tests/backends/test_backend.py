"""Behaviour common to all backends, on the real TensorRT of this environment.

Runs once with TensorRT-RTX, and once on each of the lanes (tests/lanes) with the Python bindings of
TensorRT 10 and 11.
"""

from __future__ import annotations

import dataclasses
import logging
import threading

import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models

from trt_native.backends.base import BuildRequest
from trt_native.backends.registry import load_backend
from trt_native.config import BuildConfig, HardwareCompatibility, Precision, ProfilingVerbosity
from trt_native.cuda import gpu_info
from trt_native.errors import BuildError, UnsupportedError
from trt_native.graph.onnx_file import operator_names, read_model
from trt_native.passes.autocast import autocast
from trt_native.passes.quantize import quantize_model
from trt_native.plans.header import PlanHeader
from trt_native.shapes import Profile, ShapeRange

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def backend():
    try:
        return load_backend()
    except UnsupportedError as error:
        pytest.skip(error.message)


@pytest.fixture
def request_for(tmp_path):
    def make(make_model=tiny_models.conv, shapes=None, **changes):
        path = make_model(tmp_path / "model.onnx")
        ranges = {name: ShapeRange.parse(text) for name, text in (shapes or {}).items()}
        request = BuildRequest(
            onnx=path,
            config=BuildConfig(),
            profiles=(Profile(ranges),) if ranges else (),
            fixed={},
            precision=Precision.FP32,
            strongly_typed=True,
            fp32_nodes=frozenset(),
            operators=operator_names(read_model(path)),
            workspace_bytes=1 << 30,
        )
        return dataclasses.replace(request, **changes)

    return make


DYNAMIC = {"x": "1x3x8x8:2x3x8x8:4x3x16x16"}


def build(backend, request, progress=None):
    return backend.build(request, progress, threading.Event())


def test_a_dynamic_model_becomes_a_plan(backend, request_for):
    result = build(backend, request_for(shapes=DYNAMIC))
    assert PlanHeader.parse(result.data).declared_bytes == len(result.data)
    assert [(t.name, t.mode, t.dtype, t.shape) for t in result.tensors] == [
        ("x", "input", "float32", (-1, 3, -1, -1)),
        ("y", "output", "float32", (-1, 8, -1, -1)),
    ]
    assert set(result.seconds) == {"parse", "build"}


def test_fixed_extents_make_the_network_static(backend, request_for):
    request = request_for(shapes={"x": "2x3x8x8"}, fixed={"x": (2, 3, 8, 8)})
    result = build(backend, request)
    assert [t.shape for t in result.tensors] == [(2, 3, 8, 8), (2, 8, 8, 8)]


def test_external_weights_are_found_beside_the_model(backend, request_for):
    result = build(backend, request_for(tiny_models.external_weights))
    assert [t.shape for t in result.tensors] == [(1, 64), (1, 64)]


@pytest.mark.parametrize("fmt", ["int8", "fp8", "int8-weights"])
def test_quantized_products_in_an_fp16_graph(backend, request_for, fmt):
    if backend.name == "trt10" and gpu_info() is None:
        pytest.skip("the library behind this lane asks a GPU which quantized kernels it has")

    def quantized(path):
        model = read_model(tiny_models.dense(path))
        quantize_model(model, {"h0": 4.0, "h1": 4.0}, format=fmt)
        autocast(model, ir.DataType.FLOAT16, io_precision="fp16")
        ir.save(model, path)
        return path

    result = build(backend, request_for(quantized, {"h0": "1x64:4x64:8x64"}))
    assert [(t.name, t.dtype) for t in result.tensors] == [("h0", "float16"), ("h2", "float16")]


def test_all_unsupported_operators_are_listed(backend, request_for):
    def two_unknown(path):
        model = onnx.load(tiny_models.conv(path, operator="Warp"))
        model.graph.node.append(onnx.helper.make_node("Weft", ["y"], ["z"], name="second"))
        model.graph.output.append(tiny_models.tensor("z", tiny_models.FLOAT, ["n"]))
        onnx.save(model, path)
        return path

    with pytest.raises(BuildError) as caught:
        build(backend, request_for(two_unknown, DYNAMIC))
    assert "Warp (first in node 'activation'), Weft (first in node 'second')" in str(caught.value)


def test_a_parser_error_names_node_operator_and_reason(backend, request_for):
    def mismatched(path):
        return tiny_models.conv(path, ("batch", 4, 8, 8))

    with pytest.raises(BuildError) as caught:
        build(backend, request_for(mismatched, {"x": "1x4x8x8"}))
    text = str(caught.value)
    assert "'conv'" in text
    assert "Conv" in text
    assert "Kernel weight dimension" in text


def test_a_missing_profile_is_tensorrts_own_error(backend, request_for):
    with pytest.raises(BuildError, match="no optimization profile has been defined"):
        build(backend, request_for())


def test_too_little_workspace_is_reported(backend, request_for):
    with pytest.raises(BuildError, match=r"(?i)workspace"):
        build(backend, request_for(shapes=DYNAMIC, workspace_bytes=1024))


class Recorder:
    def __init__(self, fail_at=None, cancel=None):
        self.events, self.fail_at, self.cancel = [], fail_at, cancel

    def phase_start(self, phase, parent, steps):
        self.events.append(("start", phase))
        if self.fail_at == phase:
            raise ZeroDivisionError("planted")

    def step_complete(self, phase, step):
        self.events.append(("step", phase))
        if self.cancel is not None:
            self.cancel.set()

    def phase_finish(self, phase):
        self.events.append(("finish", phase))


def test_progress_is_reported_phase_by_phase(backend, request_for):
    recorder = Recorder()
    build(backend, request_for(shapes=DYNAMIC), recorder)
    started = [phase for kind, phase in recorder.events if kind == "start"]
    finished = [phase for kind, phase in recorder.events if kind == "finish"]
    assert started[0] == finished[-1] == "Building engine"
    assert sorted(started) == sorted(finished)
    assert ("step", "Building engine") in recorder.events


def test_a_cancelled_build_stops(backend, request_for):
    cancelled = threading.Event()
    recorder = Recorder(cancel=cancelled)
    with pytest.raises(BuildError, match="cancelled"):
        backend.build(request_for(shapes=DYNAMIC), recorder, cancelled)
    assert sum(kind == "step" for kind, _ in recorder.events) == 1


def test_an_exception_of_a_callback_ends_the_build_and_is_raised_again(backend, request_for):
    with pytest.raises(ZeroDivisionError, match="planted"):
        build(backend, request_for(shapes=DYNAMIC), Recorder(fail_at="Building engine"))


def test_tensorrts_log_goes_to_logging(backend, request_for, caplog):
    with caplog.at_level(logging.DEBUG, "trt_native.tensorrt"):
        build(backend, request_for(shapes=DYNAMIC))
    assert any(record.name == "trt_native.tensorrt" for record in caplog.records)


@pytest.mark.parametrize(
    "options",
    [
        {"optimization_level": 0},
        {"optimization_level": 5},
        {"max_aux_streams": 0},
        {"tf32": False},
        {"sparse_weights": True},
        {"profiling_verbosity": ProfilingVerbosity.NONE},
        {"profiling_verbosity": ProfilingVerbosity.LAYER_NAMES_ONLY},
    ],
    ids=str,
)
def test_options_are_accepted(backend, request_for, options):
    config = BuildConfig(**options)
    backend.check(config)
    assert len(build(backend, request_for(shapes=DYNAMIC, config=config)).data) > 0


def test_unsupported_options_are_refused_with_the_reason(backend):
    requests = {
        "timing_cache": {"timing_cache": "cache"},
        "version_compatible": {"version_compatible": True},
        "hardware_compatibility": {"hardware_compatibility": HardwareCompatibility.AMPERE_PLUS},
        "compute_capabilities": {"compute_capabilities": ("8.9",)},
    }
    assert set(backend.capabilities.unsupported_options) <= set(requests)
    for option, reason in backend.capabilities.unsupported_options.items():
        with pytest.raises(UnsupportedError) as caught:
            backend.check(BuildConfig(**requests[option]))
        assert f"{option} is not supported: {reason}" in str(caught.value)


def test_an_unknown_target_is_refused(backend):
    if not backend.capabilities.targets:
        pytest.skip(f"{backend.name} takes no targets")
    with pytest.raises(
        UnsupportedError, match=r"compute capability 3\.5 is not supported: it targets 7\.5, 8\.0"
    ):
        backend.check(BuildConfig(compute_capabilities=("3.5",)))


def test_targets_narrow_the_plan(backend, request_for):
    if not backend.capabilities.targets:
        pytest.skip(f"{backend.name} takes no targets")
    both = BuildConfig(compute_capabilities=("8.6", "8.9"))
    one = BuildConfig(compute_capabilities=("8.9",))
    results = [build(backend, request_for(shapes=DYNAMIC, config=c)) for c in (one, both)]
    # The bit mask of targets that follows the header's version.
    assert [result.data[32] for result in results] == [0x08, 0x0C]


def test_an_interrupt_during_tensorrts_log_is_raised_afterwards(backend, request_for):
    # TensorRT's bindings swallow what its calls back into Python raise.
    class Interrupting(logging.Handler):
        def emit(self, record):
            raise KeyboardInterrupt

    logger = logging.getLogger("trt_native.tensorrt")
    handler = Interrupting(logging.DEBUG)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(backend, request_for(shapes=DYNAMIC))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_an_output_allocator_keeps_the_exception_of_its_allocation(backend):
    def allocate(name, size):
        if size > 100:
            raise MemoryError(f"{name} needs {size}")
        return 4096

    allocator = backend.output_allocator(allocate)
    assert allocator.reallocate_output_async("y", 0, 16, 256, 0) == 4096
    allocator.notify_shape("y", backend._trt.Dims([2, 3]))
    assert allocator.shape("y") == (2, 3)
    assert allocator.reallocate_output_async("y", 0, 101, 256, 0) == 0
    with pytest.raises(MemoryError, match="y needs 101"):
        allocator.shape("y")
    assert allocator.shape("y") == (2, 3)
