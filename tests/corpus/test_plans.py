"""Broken plans and manifests: every reader names the problem, or reads them right."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

import pytest
from helpers import tiny_models
from helpers.made_plans import STATIC, TWO, X, Y, make_plan, tensor
from helpers.mutations import BYTES, SPLICES, attempt, json_broken, json_edited, lengths_absurd

from trt_native.builder.build_plan import build_plan
from trt_native.config import BuildConfig
from trt_native.errors import PlanError
from trt_native.plans.manifest import manifest_path
from trt_native.plans.plan import Plan
from trt_native.shapes import ProfileSpec

MUTATED_PLANS = 500
MUTATED_MANIFESTS = 200
"""Of the caches, manifests and npz; the rest are in test_caches.py."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Plans that TensorRT-RTX built, and plans for TensorRT that only the Triton exporter reads."""
    folder = tmp_path_factory.mktemp("seeds")
    dims = ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"])
    dynamic = BuildConfig(profiles=(dims,))
    build_plan(tiny_models.conv(folder / "conv.onnx"), dynamic, backend="rtx").save(
        folder / "conv.plan"
    )
    build_plan(tiny_models.external_weights(folder / "gemm.onnx"), backend="rtx").save(
        folder / "gemm.plan"
    )
    words = tensor("s", "input", "int64", shape=(2,), values=("1x1:2x2:4x4",))
    make_plan(folder / "xy.plan", (X, Y))
    make_plan(folder / "static.plan", STATIC)
    make_plan(folder / "two.plan", (TWO, Y), version=(11, 4, 0, 106))
    make_plan(folder / "words.plan", (X, words, Y), options={"profiles": [{"dims": {"n": "2"}}]})
    return sorted(folder.glob("*.plan"))


def readers(command, path, other, folder):
    """Every command that reads a plan, without a GPU."""
    json_or_not = ("--json",) * (len(path.name) % 2)
    yield command("inspect", path, *json_or_not)
    yield command("doctor", path, *json_or_not)
    yield command("deploy", "trtexec", path)
    yield command("deploy", "triton", path, "--repository", folder / "repository")
    yield command("diff", path, other)
    yield command("run", path, "--random", "0")


@pytest.mark.backend
@pytest.mark.timeout(300)
def test_mutated_plans(command, seeds, tmp_path):
    rng = random.Random(1)
    contents = [(path.read_bytes(), manifest_path(path).read_bytes()) for path in seeds]
    for number in range(MUTATED_PLANS):
        data, manifest = contents[number % len(contents)]
        mutate = (*BYTES, *SPLICES, lengths_absurd)[number % (len(BYTES) + len(SPLICES) + 1)]
        other = (rng.choice(contents)[0],) if mutate in SPLICES else ()
        mutant = mutate(rng, data, *other)
        path = tmp_path / f"{number:x}.plan"
        path.write_bytes(mutant)
        if rng.random() < 0.5:
            manifest_path(path).write_bytes(manifest)
            if mutant == data:
                assert Plan.load(path).data == data
            else:
                with pytest.raises(PlanError, match=r"\w+\.plan: "):
                    Plan.load(path)
            expected = None if mutant == data else 1
        else:
            expected = check_foreign(path, mutant)
        results = list(readers(command, path, seeds[0], tmp_path / str(number)))
        if expected is not None:
            assert [result.exit_code for result in results] == [1] * len(results), path


def loaded(path: Path) -> Plan | None:
    """The plan, or None and an error that names the file."""
    plan, error = attempt(Plan.load, path, kind=PlanError)
    assert plan is not None or str(path) in error.message
    return plan


def check_foreign(path: Path, data: bytes) -> int | None:
    """A plan without a manifest is read as it is, if its header says nothing against it."""
    plan = loaded(path)
    if plan is None:
        return 1
    assert plan.manifest is None
    assert plan.data == data
    assert plan.header.declared_bytes in (None, len(data))
    return None


@pytest.mark.backend
@pytest.mark.timeout(300)
def test_mutated_manifests(command, seeds, tmp_path):
    rng = random.Random(2)
    contents = [(path.read_bytes(), json.loads(manifest_path(path).read_bytes())) for path in seeds]
    accepted = 0
    for number in range(MUTATED_MANIFESTS):
        data, manifest = contents[number % len(contents)]
        path = tmp_path / f"{number:x}.plan"
        path.write_bytes(data)
        mutate = json_broken if number % 6 == 0 else json_edited
        manifest_path(path).write_bytes(mutate(rng, manifest))
        plan = loaded(path)
        if plan is not None:
            accepted += 1
            assert plan.manifest.plan_sha256 == hashlib.sha256(data).hexdigest()
            assert plan.manifest.plan_bytes == len(data)
        list(readers(command, path, seeds[0], tmp_path / str(number)))
        assert command("inspect", path, "--no-manifest").exit_code == 0
    assert 0 < accepted < MUTATED_MANIFESTS / 2  # what a reader need not look at may be anything


@pytest.mark.timeout(120)
def test_mutated_reports(command, tmp_path):
    """What ``inspect --json`` printed, as ``diff`` reads it."""
    plan = make_plan(tmp_path / "a.plan", (X, Y)).path
    report = json.loads(command("inspect", plan, "--json").stdout)
    report["layers"] = [
        {"Name": "l", "Outputs": [{"Name": "y", "Dimensions": [1], "Datatype": "Half"}]}
    ]
    times = [{"name": "l", "median_ms": 1.0}]
    rng = random.Random(3)
    path = tmp_path / "mutant.json"
    for number in range(60):
        mutate = json_broken if number % 6 == 0 else json_edited
        path.write_bytes(mutate(rng, report))
        command("diff", path, plan)
        path.write_bytes(mutate(rng, times))
        command("inspect", plan, "--html", tmp_path / "a.html", "--times", path)


def test_a_plan_of_five_gigabytes_of_nothing(command, tmp_path):
    path = tmp_path / "zeros.plan"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
    for result in readers(command, path, path, tmp_path / "repository"):
        assert result.exit_code == 1
        assert "not a TensorRT plan" in result.stderr + result.stdout
    with path.open("r+b") as file:
        file.write(b"vtrt" + bytes(28))
    with pytest.raises(PlanError, match="its header says 0 bytes, the file has 5368709120"):
        Plan.load(path)


@pytest.mark.parametrize("what", ["fifo", "/dev/zero", "/dev/null", "folder", "loop", "none"])
def test_what_is_no_file(command, tmp_path, what):
    path = tmp_path / "m.plan"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what != "none":
        path.symlink_to(path if what == "loop" else what)
    for result in readers(command, path, path, tmp_path / "repository"):
        assert result.exit_code == 1
        assert str(path) in result.stderr.replace("\n", "")
    good = make_plan(tmp_path / "good.plan", STATIC).path
    manifest_path(good).unlink()
    path.rename(manifest_path(good)) if what != "none" else None
    if what == "loop":
        manifest_path(good).unlink()
        manifest_path(good).symlink_to(manifest_path(good))
    codes = {command("inspect", good).exit_code, command("doctor", good).exit_code}
    assert codes == ({0, 1} if what == "none" else {1})


def test_names_do_not_steer_a_terminal(command, tmp_path):
    folder = tmp_path / "d["
    folder.mkdir()
    hostile = tensor("\x1b[31my\x07[/bold]", "output", "float16", shape=(-1, 5), dims=("n", None))
    path = folder / ("bold]\x1b[2J\udcff'; id '" + "y" * 200 + ".plan")
    make_plan(path, (X, hostile), gpu="\x1b]0;title\x07")
    for result in readers(command, path, path, tmp_path / "repository"):
        assert "\x1b" not in result.output
        assert "\x07" not in result.output
    words = json.loads(command("deploy", "trtexec", path, "--json").stdout)["words"]
    assert words[1] == f"--loadEngine={path}"
    assert command("inspect", path, "--html", tmp_path / "page.html").exit_code == 0
    assert "repository" not in {item.name for item in tmp_path.iterdir()}  # no name for a model
