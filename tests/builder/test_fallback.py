"""Settings to retry a build with, and the errors that are retried."""

from __future__ import annotations

import pytest

from trt_native.builder.fallback import FallbackLadder, resource_error
from trt_native.config import BuildConfig
from trt_native.errors import BuildError

MIB = 2**20
NO_ROOM = ["Cuda Error in allocate: 2 (out of memory)"]
TOO_SMALL = ["no tactics to implement the operation within workspace limit"]


def needs(size):
    return [
        f"Exceeded mem budget of 1. Need {size}",
        "Error Code 2: OutOfMemory (Requested size was 1 bytes.)",
    ]


def rungs(*failures, workspace_bytes=2**33, has_levels=True, **options):
    """The (workspace, level) of each retry; the last failure repeats until there is none left."""
    ladder, config = FallbackLadder(), BuildConfig(**options)
    found = []
    while True:
        lines = failures[min(len(found), len(failures) - 1)]
        failure = resource_error(
            BuildError("failed", lines), workspace_bytes, has_levels=has_levels
        )
        config = ladder.next_config(config, failure)
        if config is None:
            return found
        workspace_bytes = config.workspace_bytes
        found.append((workspace_bytes, config.optimization_level))


def test_the_ladder_goes_down_in_three_steps():
    assert rungs(NO_ROOM) == [(2048 * MIB, None), (512 * MIB, 2), (128 * MIB, 0)]
    assert rungs(NO_ROOM, optimization_level=5) == [
        (2048 * MIB, 5),
        (512 * MIB, 2),
        (128 * MIB, 0),
    ]
    assert rungs(NO_ROOM, optimization_level=1) == [
        (2048 * MIB, 1),
        (512 * MIB, 1),
        (128 * MIB, 0),
    ]
    assert rungs(NO_ROOM, workspace_bytes=32 * MIB) == [(32 * MIB, 2), (32 * MIB, 0)]
    assert rungs(NO_ROOM, workspace_bytes=MIB) == [(MIB, 2), (MIB, 0)]
    assert rungs(NO_ROOM, workspace_bytes=MIB, optimization_level=0) == []


def test_the_ladder_goes_up_where_the_workspace_is_too_small():
    assert rungs(needs(12 * 2**30)) == [(2**34, None), (2**35, None), (2**36, None)]
    assert rungs(TOO_SMALL, optimization_level=2) == [(2**35, 2), (2**37, 2), (2**39, 2)]
    assert rungs(TOO_SMALL, workspace_bytes=2**62) == []


def test_sizes_that_failed_are_not_tried_again():
    assert rungs(NO_ROOM, TOO_SMALL) == [(2**31, None)]
    assert rungs(NO_ROOM, needs(3 * 2**30), NO_ROOM) == [(2**31, None), (2**32, None)]
    assert rungs(TOO_SMALL, NO_ROOM) == [(2**35, None)]


def test_levels_without_effect_stay():
    smaller = [(2048 * MIB, None), (512 * MIB, None), (128 * MIB, None)]
    assert rungs(NO_ROOM, has_levels=False) == smaller
    assert rungs(NO_ROOM, has_levels=False, workspace_bytes=MIB) == []


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
        (TOO_SMALL[0], "the workspace is too small"),
    ],
)
def test_causes_are_read_from_the_log(line, cause):
    error = BuildError("TensorRT failed to build the network", [line])
    assert resource_error(error, 2**33).cause == cause


@pytest.mark.parametrize(
    "line", ["Error Code 4: Shape Error (divide by zero)", "In node 3 (importConv): INVALID_NODE"]
)
def test_other_errors_are_not_retried(line):
    assert resource_error(BuildError("TensorRT failed to build the network", [line]), 2**33) is None
