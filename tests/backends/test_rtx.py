"""Compute capabilities that TensorRT-RTX targets."""

from __future__ import annotations

import pytest
from helpers.backend_builds import DYNAMIC, build

from trt_native.config import BuildConfig
from trt_native.errors import UnsupportedError

pytestmark = pytest.mark.backend


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
