"""The log lines of TensorRT that say the workspace limit was too small."""

from __future__ import annotations

import pytest

from trt_native.backends.workspace_shortage import WorkspaceShortage, find_shortage

BUDGET = " (foreignNode) [pass.cpp:2131: run_passes] Exceeded mem budget of 67551232. Need 75300864"
OUT_OF_MEMORY = (
    "[localCheckMacros.cpp::getErrorStr::129] Error Code 2: OutOfMemory (Requested size was"
    " 67551232 bytes.)"
)
MIB = 2**20


@pytest.mark.parametrize(
    ("lines", "needed"),
    [
        # TensorRT-RTX 1.4 to 1.7
        ([BUDGET, OUT_OF_MEMORY], 75300864),
        (
            [
                "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1654:"
                " enumerate_tactics] Tactic Selection: no tactics to implement the operation within"
                " workspace limit. Consider increase the allowed workspace size if applicable.)"
            ],
            None,
        ),
        # TensorRT 7 and 10, as users reported them
        (
            [
                "Internal error: could not find any implementation for node conv, try increasing"
                " the workspace size with IBuilder::setMaxWorkspaceSize()"
            ],
            None,
        ),
        (
            [
                "[optimizer.cpp::computeCosts::3726] Error Code 4: Internal Error (Could not find"
                " any implementation for node {ForeignNode[a...b]} due to insufficient workspace."
                " See verbose log for requested sizes.)"
            ],
            None,
        ),
    ],
)
def test_too_small(lines, needed):
    assert find_shortage(lines) == WorkspaceShortage(needed)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [OUT_OF_MEMORY],  # of the GPU
        [BUDGET],  # TensorRT went on with another implementation
        [BUDGET, "Error Code 10: Could not find any implementation for node {conv}."],
        [
            "Skipping tactic 3 due to insufficient memory on requested size of 4294967296. Try"
            " decreasing the workspace size with IBuilderConfig::setMemoryPoolLimit()."
        ],
    ],
)
def test_other_failures(lines):
    assert find_shortage(lines) is None


@pytest.mark.parametrize(
    ("needed", "limit", "larger"),
    [
        (75300864, 64 * MIB, 128 * MIB),
        (75300864, 16 * MIB, 128 * MIB),
        (128 * MIB, 16 * MIB, 128 * MIB),
        (1, 16 * MIB, 32 * MIB),
        (17 * MIB, 17 * MIB, 64 * MIB),
        (None, 16 * MIB, 64 * MIB),
    ],
)
def test_the_size_to_try_next(needed, limit, larger):
    assert WorkspaceShortage(needed).larger_workspace(limit) == larger
