"""Weights that are made replaceable one by one, in the networks that TensorRT parses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.backend_builds import build
from onnx import TensorProto, helper

from trt_native.config import BuildConfig
from trt_native.cuda import gpu_info
from trt_native.errors import UnsupportedError

pytestmark = pytest.mark.backend


class ConfiguredError(Exception):
    """The network and the options of a build, in its stead."""


@pytest.fixture
def marking(backend):
    """The backend, where single weights can be made replaceable."""
    if backend.capabilities.build_needs_gpu and gpu_info() is None:
        pytest.skip("the library behind this lane has this function at another position")
    return backend


@pytest.fixture
def configured(marking, request_for, monkeypatch):
    """What TensorRT would build: which weights are replaceable, and the flags."""

    def stop(builder, network, config, *_):
        raise ConfiguredError(network, config)

    monkeypatch.setattr(marking, "_serialize", stop)

    def of(make_model, **changes):
        request = request_for(make_model, **changes)
        with pytest.raises(ConfiguredError) as caught:
            build(marking, request)
        network, config = caught.value.args
        names = [one.name for one in onnx.load(request.onnx).graph.initializer]
        marked = {name for name in names if network.are_weights_marked_refittable(name)}
        flags = marking._trt.BuilderFlag
        members = ("REFIT", "REFIT_INDIVIDUAL", "STRIP_PLAN")
        return marked, {name for name in members if config.get_flag(getattr(flags, name))}

    return of


SHAPES = {"h0": "1x64:2x64:4x64"}


@pytest.mark.parametrize(
    ("changes", "marked", "flags"),
    [
        ({"config": BuildConfig()}, set(), set()),
        ({"config": BuildConfig(refit=True)}, set(), {"REFIT"}),
        (
            {"config": BuildConfig(refit_weights="w1"), "refit_weights": frozenset({"w1"})},
            {"w1"},
            {"REFIT_INDIVIDUAL"},
        ),
        (
            {
                "config": BuildConfig(refit_weights="*", strip_weights=True),
                "refit_weights": frozenset({"w0", "w1"}),
            },
            {"w0", "w1"},
            {"REFIT_INDIVIDUAL", "STRIP_PLAN"},
        ),
    ],
    ids=["none", "all", "one", "stripped"],
)
def test_the_weights_that_tensorrt_makes_replaceable(configured, changes, marked, flags):
    assert configured(tiny_models.dense, shapes=SHAPES, **changes) == (marked, flags)


def test_weights_that_the_parser_merges_cannot_be_marked(marking, request_for):
    names = frozenset({"scale", "bias"})
    request = request_for(batch_norm, config=BuildConfig(refit_weights="*"), refit_weights=names)
    with pytest.raises(UnsupportedError, match="merges with others; choose") as caught:
        build(marking, request)
    assert caught.value.problems == ("'bias'", "'scale'")
    assert caught.value.details


def batch_norm(path):
    node = helper.make_node(
        "BatchNormalization", ["x", "scale", "bias", "mean", "variance"], ["y"], name="norm"
    )
    tensors = [[tiny_models.tensor(name, TensorProto.FLOAT, [1, 4, 8, 8])] for name in ("x", "y")]
    names = ("scale", "bias", "mean", "variance")
    weights = {name: np.ones(4, np.float32) for name in names}
    return tiny_models.save(path, [node], *tensors, weights)
