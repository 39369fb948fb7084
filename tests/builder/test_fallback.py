"""Settings to retry a build with, and the errors that are retried."""

from __future__ import annotations

import pytest

from trt_native.builder.fallback import fallback_configs, retry_cause
from trt_native.config import BuildConfig
from trt_native.errors import BuildError


def rungs(**options):
    workspace = options.pop("workspace_bytes", 2**33)
    has_levels = options.pop("has_levels", True)
    configs = fallback_configs(BuildConfig(**options), workspace, has_levels=has_levels)
    return [(c.workspace_bytes, c.optimization_level) for c in configs]


def test_the_ladder_goes_down_in_three_steps():
    mib = 2**20
    assert rungs() == [(2048 * mib, None), (512 * mib, 2), (128 * mib, 0)]
    assert rungs(optimization_level=5) == [(2048 * mib, 5), (512 * mib, 2), (128 * mib, 0)]
    assert rungs(optimization_level=1) == [(2048 * mib, 1), (512 * mib, 1), (128 * mib, 0)]
    assert rungs(workspace_bytes=32 * mib) == [(32 * mib, 2), (32 * mib, 0)]
    assert rungs(workspace_bytes=1000) == [(1000, 2), (1000, 0)]
    assert rungs(workspace_bytes=1000, optimization_level=0) == []


def test_levels_without_effect_stay():
    mib = 2**20
    assert rungs(has_levels=False) == [(2048 * mib, None), (512 * mib, None), (128 * mib, None)]
    assert rungs(has_levels=False, workspace_bytes=1000) == []


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        # From TensorRT 8 to 10, as users reported them.
        (
            "[virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory (no further"
            " information)",
            "out of memory",
        ),
        (
            "Requested amount of GPU memory (68719476736 bytes) could not be allocated. There may"
            " not be enough free memory for allocation to succeed.",
            "out of memory",
        ),
        ("Cuda Error in allocate: 2 (out of memory)", "out of memory"),
        (
            "[optimizer.cpp::computeCosts::3873] Error Code 10: Internal Error (Could not find any"
            " implementation for node {ForeignNode[a...b]}.)",
            "TensorRT found no implementation",
        ),
        ("std::bad_alloc", "out of memory"),
        ("Error Code 4: Shape Error (divide by zero)", None),
        ("In node 3 (importConv): INVALID_NODE", None),
    ],
)
def test_causes_are_read_from_the_log(line, cause):
    assert retry_cause(BuildError("TensorRT failed to build the network", [line])) == cause
