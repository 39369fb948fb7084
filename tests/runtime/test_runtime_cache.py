from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from trt_native.backends.registry import load_backend
from trt_native.cuda import GpuInfo
from trt_native.errors import PlanError
from trt_native.plans.plan import Plan
from trt_native.runtime.runtime_cache import RuntimeCacheFile, save_runtime_cache_file


@pytest.fixture
def kernels(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    gpu = GpuInfo("NVIDIA L4", "8.9", "13.0", 24 << 30, 20 << 30)
    plan = Plan(b"vtrt" + bytes(60), None, tmp_path / "m.plan")
    backend = load_backend("rtx")
    return lambda **other: RuntimeCacheFile.of(plan, backend, dataclasses.replace(gpu, **other))


def test_kernels_are_kept_for_one_plan_gpu_and_library(kernels, tmp_path):
    kernels().write(b"code\nand more")
    assert kernels().read() == b"code\nand more"
    assert kernels(name="NVIDIA L40").read() == b""
    assert kernels(driver="13.1").read() == b""
    path = tmp_path / "m.plan.cache"
    for broken in (path.read_bytes()[:-1], b"", b"\xff\n\xff", b"[]\n", path.read_bytes() + b"x"):
        path.write_bytes(broken)
        assert kernels().read() == b""


def test_kernels_are_written_only_where_there_are_more(kernels, tmp_path):
    path = tmp_path / "m.plan.cache"
    kernels().write(b"")
    assert not path.exists()
    kernels().write(b"12345")
    before = path.stat().st_mtime_ns
    file = kernels()
    file.read()
    file.write(b"54321")
    assert path.stat().st_mtime_ns == before
    file.write(b"123456")
    assert kernels().read() == b"123456"


def test_a_session_goes_on_where_kernels_cannot_be_written(kernels, tmp_path):
    path = tmp_path / "m.plan.cache"
    path.write_bytes(b"precious")
    with pytest.raises(PlanError, match="not a runtime cache"):
        kernels().write(b"compiled")
    save_runtime_cache_file(SimpleNamespace(cache=lambda: b"compiled"), kernels())
    assert path.read_bytes() == b"precious"


def test_a_plan_that_is_no_file_keeps_no_kernels():
    backend, gpu = load_backend("rtx"), GpuInfo("NVIDIA L4", "8.9", "13.0", 1, 1)
    assert RuntimeCacheFile.of(Plan(b""), backend, gpu) is None
