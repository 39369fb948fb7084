"""Fixtures of the tests of backends, which run on each of the lanes too."""

from __future__ import annotations

import dataclasses

import pytest
from helpers import tiny_models
from helpers.backends import backend_or_skip

from trt_native.backends.base import BuildRequest
from trt_native.config import BuildConfig, Precision
from trt_native.cuda import gpu_info
from trt_native.graph.onnx_file import operator_names, read_model
from trt_native.shapes import Profile, ShapeRange


@pytest.fixture(scope="module")
def backend():
    return backend_or_skip()


@pytest.fixture(scope="module")
def streaming(backend):
    """The backend, where it writes plans to files."""
    assert backend.capabilities.streams_plans
    if backend.capabilities.build_needs_gpu and gpu_info() is None:
        pytest.skip("the library behind this lane has this function at another position")
    return backend


@pytest.fixture(scope="module")
def trt10():
    backend = backend_or_skip("tensorrt")
    if backend.name != "trt10":
        pytest.skip(f"this is {backend.name}")
    return backend


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
            builder_flags=Precision.FP32,
            strongly_typed=True,
            fp32_nodes=frozenset(),
            operators=operator_names(read_model(path)),
            workspace_bytes=1 << 30,
        )
        return dataclasses.replace(request, **changes)

    return make
