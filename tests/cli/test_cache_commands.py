"""``trt-native build`` with its cache, and ``trt-native cache``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from helpers import program
from typer.testing import CliRunner

from trt_native.cli.app import app

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend

DIMS = ("--dim", "batch=1:2:4", "--dim", "height=8", "--dim", "width=8")


def trt_native(*arguments, code=0, **env):
    result = program.trt_native(*arguments, env=env, width=200)
    assert result.returncode == code, result.stderr
    return result


@pytest.fixture
def build(model):
    def run(*arguments, **options):
        return trt_native("build", model, *DIMS, "--backend", "rtx", *arguments, **options)

    return run


def listing(*arguments, **env):
    return json.loads(trt_native("cache", "list", "--json", *arguments, **env).stdout)


def test_the_second_build_returns_what_the_first_made_and_says_so(build, tmp_path):
    first = build()
    written = (tmp_path / "m.plan").read_bytes()
    second = build("-o", tmp_path / "again.plan")
    assert "Built" in first.stdout
    assert "Unchanged: from the cache" in second.stdout
    assert "Building engine" not in second.stderr
    assert (tmp_path / "again.plan").read_bytes() == written
    manifests = [json.loads((tmp_path / f"{n}.plan.json").read_text()) for n in ("m", "again")]
    assert manifests[0] == manifests[1]
    third = json.loads(build("--json").stdout)
    assert third == {
        "path": str(tmp_path / "m.plan"),
        "cached": True,
        "failed_attempts": [],
        **manifests[0],
    }
    assert "Built" in build("--no-cache").stdout


def test_the_files_of_user_and_cache_are_not_the_same(build, tmp_path):
    build()
    plan = tmp_path / "m.plan"
    (kept,) = Path(os.environ["TRT_NATIVE_CACHE"], "engines").glob("*.plan")
    assert not plan.samefile(kept)
    assert kept.stat().st_mode & 0o777 == plan.stat().st_mode & 0o777
    assert Path(os.environ["TRT_NATIVE_CACHE"], "engines").stat().st_mode & 0o777 == 0o700


def test_without_a_cache_nothing_is_written_to_it(build):
    build("--no-cache")
    assert os.listdir(os.environ["TRT_NATIVE_CACHE"]) == []


def test_the_default_is_the_users_cache_folder(build, tmp_path):
    env = {"TRT_NATIVE_CACHE": "", "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    build(**env)
    assert listing(**env)["folder"] == str(tmp_path / "xdg" / "trt-native")
    assert len(listing(**env)["plans"]) == 1


def test_list_prune_and_clear(build, tmp_path):
    folder = tmp_path / "here"
    cache = ("--cache", folder)
    build(*cache)
    build(*cache, "--precision", "fp32")
    found = listing(*cache)
    assert found["folder"] == str(folder)
    assert [p["manifest"]["precision"]["applied"] for p in found["plans"]] == ["fp32", "fp16"]
    assert found["bytes"] == sum(p["bytes"] for p in found["plans"])
    assert found["timing_caches"] == []
    table = trt_native("cache", "list", *cache).stdout
    assert found["plans"][0]["key"][:8] in table
    assert "m.onnx" in table
    assert "batch 1:2:4" in table
    assert " s " in table
    assert "2 plans" in table

    size = max(p["bytes"] for p in found["plans"])
    removed = json.loads(
        trt_native("cache", "prune", *cache, "--cache-size", size, "--json").stdout
    )
    assert removed == {
        "folder": str(folder),
        "removed": {"plans": 1, "files": 2, "bytes": found["plans"][1]["bytes"]},
    }
    (left,) = listing(*cache)["plans"]
    assert left == found["plans"][0]
    plan = folder / "engines" / f"{left['key']}.plan"
    os.utime(plan, (time.time() - 7200,) * 2)
    assert "removed 0 plans" in trt_native("cache", "prune", *cache, "--older-than", "3h").stdout
    assert "removed 1 plan," in trt_native("cache", "prune", *cache, "--older-than", "1h").stdout
    build(*cache)
    (left,) = listing(*cache)["plans"]
    unknown = trt_native("cache", "remove", left["key"][:9], "01234", "5", *cache, code=1).stderr
    assert "'01234': no plan has this key\n  - '5': give more digits" in unknown
    assert "removed 1 plan," in trt_native("cache", "remove", left["key"][:9], *cache).stdout
    build(*cache)
    assert "removed 1 plan," in trt_native("cache", "clear", *cache).stdout
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["CACHEDIR.TAG"]


def test_an_unusable_folder_is_a_warning(build, tmp_path):
    (tmp_path / "file").touch()
    result = build("--cache", tmp_path / "file" / "cache")
    text = " ".join(result.stderr.split())
    assert text.count("cannot be used here: Not a directory") == 1
    assert "Built" in result.stdout


def test_bad_sizes_are_found_before_the_build(build, tmp_path):
    for options, env in ((("--cache-size", "much"), {}), ((), {"TRT_NATIVE_CACHE_SIZE": "much"})):
        message = build(*options, code=1, **env).stderr
        assert "not a size: 'much'" in message
        assert "Reading the model" not in message
    assert os.listdir(tmp_path) == ["m.onnx"]
    for command in ("prune", "clear", "list"):
        trt_native("cache", command, code=1, TRT_NATIVE_CACHE_SIZE="much")
    assert "not a duration" in trt_native("cache", "prune", "--older-than", "old", code=1).stderr


@pytest.mark.parametrize("command", ["list", "prune", "clear"])
def test_a_file_is_not_a_cache_folder(tmp_path, command):
    path = tmp_path / "file"
    path.write_text("x")
    result = CliRunner().invoke(app, ["cache", command, "--cache", str(path)])
    assert result.exit_code == 1
    assert "is a file, not a cache folder" in result.stderr
    assert path.read_text() == "x"
