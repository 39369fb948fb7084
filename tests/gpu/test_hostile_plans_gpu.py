"""Broken plans handed to the real TensorRT and the GPU: errors in words, and no hang."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_models
from helpers.child_server import HANG_S, ChildServer
from helpers.mutations import BYTES, SPLICES
from helpers.tolerances import FP32_PRODUCTS
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Plan, Precision, ProfileSpec, build_plan
from trt_native.plans.manifest import manifest_path

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

MUTANTS = 60
SERVER = Path(__file__).parents[1] / "corpus" / "plan_server.py"


def answer_of(server, path, inputs):
    answer = server.ask([str(path), str(inputs)])
    if answer.get("error"):
        server.end()  # a failure must not affect the next run
    return answer


def with_its_length(data):
    """Restore the true length in the header, so that the plan gets as far as TensorRT."""
    return data[:16] + struct.pack("<Q", len(data)) + data[24:] if len(data) >= 32 else data


def mutants(data, other):
    rng = random.Random(11)
    kinds = (*BYTES, *SPLICES)
    for number in range(MUTANTS):
        mutate = kinds[number % len(kinds)]
        mutant = mutate(rng, data, *((other,) if mutate in SPLICES else ()))
        # An invalid header is refused before TensorRT; here the rest is the point.
        if number % 6:
            mutant = data[:32] + mutant[32:]
        yield number, mutate.__name__, with_its_length(mutant)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    model = tiny_models.conv(folder / "conv.onnx")
    profile = ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"])
    config = BuildConfig(profiles=(profile,), precision=Precision.FP32, tf32=False)
    plan = build_plan(model, config)
    plan.save(folder / "conv.plan")
    batch = BuildConfig(profiles=(ProfileSpec.parse(["batch=2"]),))
    other = build_plan(tiny_models.norm(folder / "norm.onnx"), batch)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8), np.float32)
    np.savez(folder / "inputs.npz", x=x)
    (expected,) = ReferenceEvaluator(str(model)).run(None, {"x": x})
    return folder, bytes(plan.data), bytes(other.data), expected


@pytest.mark.timeout(600)
def test_mutated_plans(seeds, tmp_path):
    folder, data, other, expected = seeds
    inputs = folder / "inputs.npz"
    outcomes = Counter()
    with (tmp_path / "log").open("w") as log, ChildServer(SERVER, log) as server:
        good = tmp_path / "good.plan"
        good.write_bytes(data)
        assert answer_of(server, good, inputs) == {"outputs": ["y"]}
        np.testing.assert_allclose(
            np.load(good.with_suffix(".npz"))["y"],
            expected,
            atol=FP32_PRODUCTS * np.abs(expected).max(),
        )
        for number, kind, mutant in mutants(data, other):
            path = tmp_path / f"{number}.plan"
            path.write_bytes(mutant)
            answer = answer_of(server, path, inputs)
            what = f"{number} ({kind}): {answer}"
            print(what[:300])
            assert not answer.keys() & {"traceback", "hang"}, what
            if "outputs" in answer:
                # Weights have no checksum of their own: only a manifest shows that they changed.
                found = np.load(path.with_suffix(".npz"))["y"]
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype), what
                same = np.allclose(found, expected, atol=FP32_PRODUCTS * np.abs(expected).max())
                outcomes["correct" if same else "other values"] += 1
                assert same or mutant != data, what
            elif "signal" in answer:
                outcomes["child died"] += 1
            else:
                assert answer["error"].strip(), what
                outcomes["error"] += 1
        # The GPU and its driver are as good as before.
        assert answer_of(server, good, inputs) == {"outputs": ["y"]}
    print(dict(outcomes))
    assert outcomes["error"] > 0


@pytest.mark.timeout(300)
def test_with_its_manifest_no_mutant_reaches_tensorrt(seeds, tmp_path):
    folder, data, other, _ = seeds
    described = manifest_path(folder / "conv.plan").read_bytes()
    with (tmp_path / "log").open("w") as log, ChildServer(SERVER, log) as server:
        for number, kind, mutant in list(mutants(data, other))[::12]:
            path = tmp_path / f"{number}.plan"
            path.write_bytes(mutant)
            manifest_path(path).write_bytes(described)
            answer = answer_of(server, path, folder / "inputs.npz")
            assert "outputs" in answer if mutant == data else str(path) in answer["error"], kind


def test_the_command_says_what_is_wrong(seeds, tmp_path):
    """Zeros instead of the second half: TensorRT's own words arrive in one error."""
    _, data, _, _ = seeds
    path = tmp_path / "m.plan"
    Plan(data[: len(data) // 2] + bytes(len(data) - len(data) // 2)).save(path)
    result = subprocess.run(
        [sys.executable, "-m", "trt_native", "run", path, "--random", "0"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    if result.returncode > 0:  # else it was killed by a signal
        assert sum(line.startswith("error: ") for line in result.stderr.splitlines()) == 1
