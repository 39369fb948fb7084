"""Caches in place, on each real library: what its parser makes of them."""

from __future__ import annotations

import dataclasses
import threading

import pytest
from helpers.cached_models import attention_step, cache_update

from trt_native.config import BuildConfig
from trt_native.errors import UnsupportedError

pytestmark = pytest.mark.backend
IN_PLACE = BuildConfig(in_place_caches=True)


def test_the_updated_caches_are_known_by_their_inputs(backend, request_for):
    request = request_for(attention_step, config=IN_PLACE)
    result = backend.build(request, None, threading.Event())
    assert {t.name: t.alias for t in result.tensors} == {
        "x": None, "index": None, "keys": None, "values": None,
        "y": None, "new_keys": "keys", "new_values": "values",
    }  # fmt: skip


def test_a_cache_that_is_computed_is_refused(backend, request_for, tmp_path):
    import onnx

    request = request_for(lambda path: cache_update(path, shape=(1, 2, 16, 8)), config=IN_PLACE)
    model = onnx.load(request.onnx)
    model.graph.node[0].input[0] = "negative"
    model.graph.node.insert(0, onnx.helper.make_node("Neg", ["past"], ["negative"], name="n"))
    onnx.save(model, tmp_path / "computed.onnx")
    request = dataclasses.replace(request, onnx=tmp_path / "computed.onnx")
    with pytest.raises(UnsupportedError, match="does not update these caches of") as caught:
        backend.build(request, None, threading.Event())
    assert list(caught.value.problems) == ["'negative'"]
