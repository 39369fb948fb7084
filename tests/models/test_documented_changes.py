"""The diffs of LatentSync's page, applied to the source that they are for."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
from operator import attrgetter

import pytest
from helpers import ROOT
from helpers.original_latentsync import checkout

import trt_native

PAGE = ROOT / "docs/latentsync.md"
DIFFS = re.findall(r"^```diff\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
COMFYUI = ("TRT_NATIVE_LATENTSYNC_COMFYUI", "ShmuelRonen/ComfyUI-LatentSyncWrapper")
SOURCES = {**dict.fromkeys(range(3), ()), 3: COMFYUI}

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


def apply(diff, folder, *options):
    command = ["git", "apply", *options, "-"]
    done = subprocess.run(command, cwd=folder, input=diff, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_they_are_whole(tmp_path):
    assert len(DIFFS) == len(SOURCES)
    for diff in DIFFS:
        added, removed, _ = apply(diff, tmp_path, "--numstat").split()
        assert int(added) == len(re.findall(r"^\+(?!\+\+)", diff, re.MULTILINE))
        assert int(removed) == len(re.findall(r"^-(?!--)", diff, re.MULTILINE))


@pytest.mark.parametrize("number", SOURCES)
def test_they_apply(number, tmp_path):
    name = re.search(r"^--- a/(.*)$", DIFFS[number], re.MULTILINE)[1]
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    shutil.copy(checkout(*SOURCES[number]) / name, file)
    before = ast.parse(file.read_text())
    apply(DIFFS[number], tmp_path, "--ignore-whitespace")
    after = ast.parse(file.read_text())
    used = {node.id for node in ast.walk(after) if isinstance(node, ast.Name)}
    assert not (imported(before) - imported(after)) & used
    assert imported(after) - imported(before) <= used
    for call in (node for node in ast.walk(after) if isinstance(node, ast.Call)):
        if ast.unparse(call.func).startswith("LatentSync"):
            function = attrgetter(ast.unparse(call.func))(trt_native)
            inspect.signature(function).bind(*call.args, **{k.arg: k for k in call.keywords})


def imported(tree):
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
