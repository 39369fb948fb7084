"""The runtime's permission to run code in a plan, and lean runtimes, asked of TensorRT itself."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
from helpers import ROOT, tiny_models

from trt_native.config import BuildConfig
from trt_native.errors import PlanError, SpecError, UnsupportedError
from trt_native.plans.host_code import HostCode

pytestmark = pytest.mark.backend

# What TensorRT puts into a version compatible plan, without its functions.
_LEAN = "int getInferLibVersion(void) { return 0; }"

_BUILD = """
import json, sys, threading
from pathlib import Path
from trt_native.backends.base import BuildRequest
from trt_native.backends.registry import load_backend
from trt_native.config import BuildConfig, Precision
from trt_native.errors import TrtNativeError
from trt_native.plans.host_code import HEAD_BYTES, HostCode, carried_code
found, backend = {}, load_backend()
for name, excluded in (("carrying", False), ("excluding", True)):
    request = BuildRequest(
        onnx=Path(sys.argv[1]),
        config=BuildConfig(version_compatible=True, exclude_lean_runtime=excluded),
        profiles=(),
        fixed={},
        builder_flags=Precision.FP32,
        strongly_typed=True,
        fp32_nodes=frozenset(),
        operators={},
        workspace_bytes=1 << 30,
    )
    plan = backend.build(request, None, threading.Event()).data
    found[name] = {"carries": carried_code(plan[:HEAD_BYTES], len(plan))}
    for allowed in (False, True):
        try:
            backend.deserialize(plan, HostCode(allowed=allowed))
        except TrtNativeError as error:
            found[name][str(allowed)] = [error.message, error.options, error.details]
print(json.dumps(found))
"""


def static_conv(path):
    return tiny_models.conv(path, (1, 3, 8, 8))


def library(path, source):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run(
        [compiler, "-x", "c", "-shared", "-fPIC", "-o", path, "-"],
        input=source,
        text=True,
        check=True,
    )
    return path


@pytest.fixture
def found(backend, tmp_path, request_for):
    """What a process finds that has a library of the lean runtime's name."""
    library(tmp_path / "libnvinfer_lean.so.1", _LEAN)  # of TensorRT-RTX, also under the lanes
    request = request_for(static_conv)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{tmp_path}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{ROOT}",
    }
    environment["TRT_NATIVE_BACKEND"] = "rtx" if backend.name == "rtx" else "tensorrt"
    answer = subprocess.run(
        [sys.executable, "-c", _BUILD, request.onnx],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_code_in_a_plan_runs_only_where_that_is_allowed(found):
    message, options, details = found["carrying"]["False"]
    assert found["carrying"]["carries"] == ["TensorRT's lean runtime"]
    assert "the plan carries the lean runtime of the TensorRT that built it" in message
    assert options == ["allow_host_code"]
    assert any("getEngineHostCodeAllowed() is false" in line for line in details)
    # Allowed, it comes further: what is in that plan is no lean runtime.
    message, options, details = found["carrying"]["True"]
    assert "cannot load the plan" in message
    assert not any("getEngineHostCodeAllowed" in line for line in details)


def test_a_plan_without_its_lean_runtime_carries_no_code(found):
    assert found["excluding"]["carries"] == []
    message, options, _ = found["excluding"].get("False", ["", [], []])  # it loads on a GPU
    assert options == []
    assert "lean runtime" not in message


def test_lean_runtimes(backend, tmp_path, request_for):
    plan = backend.build(request_for(static_conv), None, threading.Event()).data
    host_code = HostCode(lean_runtime=library(tmp_path / "lean.so", _LEAN))
    if backend.name == "rtx":
        with pytest.raises(UnsupportedError, match=r"lean\.so: it loads plans of its own version"):
            backend.deserialize(plan, host_code)
        return
    with pytest.raises(PlanError, match=r"cannot load the lean runtime .*lean\.so") as caught:
        backend.deserialize(plan, host_code)
    assert caught.value.options == ("lean_runtime",)
    assert any("could not be loaded" in line for line in caught.value.details)
    missing = dataclasses.replace(host_code, lean_runtime=tmp_path / "none.so")
    with pytest.raises(PlanError, match=r"none\.so") as caught:
        backend.deserialize(plan, missing)
    assert any("No such file" in line for line in caught.value.details)


def test_only_a_version_compatible_plan_has_one():
    with pytest.raises(SpecError, match="only a version compatible plan has a lean runtime"):
        BuildConfig(exclude_lean_runtime=True)
