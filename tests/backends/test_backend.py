"""Behaviour common to all backends, on the real TensorRT of this environment.

Runs once with TensorRT-RTX, and once on each of the lanes (tests/lanes) with the Python bindings of
TensorRT 10 and 11.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os

import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.backend_builds import DYNAMIC, build

from trt_native.config import (
    BuildConfig,
    HardwareCompatibility,
    ProfilingVerbosity,
    RuntimePlatform,
)
from trt_native.cuda import gpu_info
from trt_native.errors import BuildError, UnsupportedError
from trt_native.graph.onnx_file import read_model
from trt_native.passes.autocast import autocast
from trt_native.passes.quantize import quantize_model
from trt_native.plans.header import PlanHeader
from trt_native.plans.plan_file import PlanFile

pytestmark = pytest.mark.backend


def test_a_dynamic_model_becomes_a_plan(backend, request_for):
    result = build(backend, request_for(shapes=DYNAMIC))
    assert PlanHeader.parse(result.data).declared_bytes == len(result.data)
    assert [(t.name, t.mode, t.dtype, t.shape) for t in result.tensors] == [
        ("x", "input", "float32", (-1, 3, -1, -1)),
        ("y", "output", "float32", (-1, 8, -1, -1)),
    ]
    assert set(result.seconds) == {"parse", "build"}


def test_a_plan_goes_to_its_file_as_it_is_made(streaming, request_for, tmp_path):
    backend = streaming
    in_memory = build(backend, request_for(tiny_models.external_weights))
    with PlanFile(tmp_path / "m.plan") as file:
        result = build(backend, request_for(tiny_models.external_weights, output=file))
        os.lseek(file.new.file.fileno(), 0, os.SEEK_SET)
        assert file.new.file.read() == in_memory.data == result.data
    assert result.sha256 == in_memory.sha256 == hashlib.sha256(in_memory.data).hexdigest()
    assert result.tensors == in_memory.tensors
    assert not [name for name in os.listdir(tmp_path) if "plan" in name]


def test_fixed_extents_make_the_network_static(backend, request_for):
    request = request_for(shapes={"x": "2x3x8x8"}, fixed={"x": (2, 3, 8, 8)})
    result = build(backend, request)
    assert [t.shape for t in result.tensors] == [(2, 3, 8, 8), (2, 8, 8, 8)]


def test_external_weights_are_found_next_to_the_model(backend, request_for):
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
    lines = dict(problem.split(": ", 1) for problem in caught.value.problems)
    assert lines.keys() == {"Warp 'activation'", "Weft 'second'"}
    assert "has no Warp" in lines["Warp 'activation'"]


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
    with pytest.raises(BuildError, match=r"the workspace is too small, the limit is 1\.0 KiB"):
        build(backend, request_for(shapes=DYNAMIC, workspace_bytes=1024))


def test_out_of_memory_by_the_workspace_limit_names_what_it_needs(backend, request_for):
    request = request_for(tiny_models.wide_convs, workspace_bytes=64 << 20)
    with pytest.raises(BuildError, match=r"it needs (?P<need>\d\d\.\d) MiB") as caught:
        build(backend, request)
    assert "the limit is 64.0 MiB; allow 128.0 MiB" in caught.value.message
    assert caught.value.options == ("workspace_bytes",)
    assert any("OutOfMemory (Requested size was" in line for line in caught.value.details)
    build(backend, dataclasses.replace(request, workspace_bytes=128 << 20))


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
    if backend.capabilities.unsupported_options.keys() & options.keys():
        with pytest.raises(UnsupportedError, match="it has no effect"):
            backend.check(config)
        return
    backend.check(config)
    assert len(build(backend, request_for(shapes=DYNAMIC, config=config)).data) > 0


def test_a_plan_for_another_system(backend, request_for):
    """TensorRT on Linux builds one; the libraries behind the lanes refuse it, in their words."""
    config = BuildConfig(runtime_platform="windows-amd64")
    if "runtime_platform" in backend.capabilities.unsupported_options:
        with pytest.raises(UnsupportedError, match="another system"):
            backend.check(config)
        return
    request = request_for(shapes=DYNAMIC, config=config)
    try:
        plan = build(backend, request)
    except BuildError as error:
        assert "setRuntimePlatform" in error.details[0]  # noqa: PT017
    else:
        assert len(plan.data) > 0


def test_unsupported_options_are_refused_with_the_reason(backend):
    requests = {
        "timing_cache": {"timing_cache": "cache"},
        "version_compatible": {"version_compatible": True},
        "plugins": {"plugins": ("libx.so",)},
        "replacement_map": {"replacement_map": "map.json"},
        "serialize_plugins": {"plugins": ("libx.so",), "serialize_plugins": True},
        "exclude_lean_runtime": {"version_compatible": True, "exclude_lean_runtime": True},
        "hardware_compatibility": {"hardware_compatibility": HardwareCompatibility.AMPERE_PLUS},
        "runtime_platform": {"runtime_platform": RuntimePlatform.WINDOWS_AMD64},
        "compute_capabilities": {"compute_capabilities": ("8.9",)},
        "optimization_level": {"optimization_level": 3},
        "sparse_weights": {"sparse_weights": True},
    }
    assert set(backend.capabilities.unsupported_options) <= set(requests)
    for option, reason in backend.capabilities.unsupported_options.items():
        with pytest.raises(UnsupportedError) as caught:
            backend.check(BuildConfig(**requests[option]))
        assert f"{option} is not supported: {reason}" in str(caught.value)
