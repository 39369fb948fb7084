"""A pool over one GPU twice, and over two, against a session."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from cuda.bindings import driver
from helpers import tiny_models

from trt_native import BuildConfig, Precision, ProfileSpec, Session, SessionPool, build_plan
from trt_native.cuda import memory_info, require_gpu
from trt_native.cuda.driver import check
from trt_native.errors import ClosedError, CudaError, SpecError

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tiny_models.conv(tmp_path_factory.mktemp("pool") / "m.onnx")
    profile = ProfileSpec.parse(["batch=1:2:4", "height=8:32:64", "width=8:32:64"])
    built = build_plan(path, BuildConfig(profiles=(profile,), precision=Precision.FP32))
    target = path.with_suffix(".plan")
    built.save(target)
    return target


@pytest.fixture(params=[["cuda:0", "cuda:0"], ["cuda:0", "cuda:1"]], ids=["one GPU", "two GPUs"])
def devices(request):
    require_gpu()
    if "cuda:1" in request.param and check(driver.cuDeviceGetCount())[0] < 2:
        pytest.skip("needs two GPUs")
    return request.param


def made(count):
    generator = np.random.default_rng(7)
    for i in range(count):
        shape = (1 + i % 4, 3, 8 + 8 * (i % 3), 32)
        yield {"x": generator.standard_normal(shape, np.float32)}


def test_a_thousand_inputs(plan, devices):
    inputs = list(made(1000))
    with Session(plan) as session:
        expected = [session.run(x)["y"] for x in inputs]
    with SessionPool(devices, plan) as pool:
        assert pool.inputs[0].name == "x"
        count = 0
        for found, y in zip(pool.map(iter(inputs)), expected, strict=True):
            np.testing.assert_array_equal(found["y"], y)
            count += 1
    assert count == 1000


def test_a_bad_input_among_many(plan, devices):
    inputs = list(made(100))
    bad = {"x": np.zeros((9, 3, 8, 8), np.float32)}
    inputs[40] = bad
    with Session(plan) as session:
        expected = [None if x is bad else session.run(x)["y"] for x in inputs]
    with SessionPool(devices, plan) as pool:
        results = pool.map(inputs)
        for y in expected[:40]:
            np.testing.assert_array_equal(next(results)["y"], y)
        with pytest.raises(SpecError, match=r"(?s)^cuda:[01]: .*9x3x8x8"):
            next(results)
        found = list(pool.map(inputs, return_exceptions=True))
    assert len(found) == 100
    assert isinstance(found[40], SpecError)
    for i, y in enumerate(expected):
        if y is not None:
            np.testing.assert_array_equal(found[i]["y"], y)


def test_torch_tensors_on_the_host_and_on_the_gpu(plan, devices):
    torch = pytest.importorskip("torch")
    x = torch.randn(2, 3, 8, 8)
    with SessionPool(devices, plan) as pool, Session(plan) as session:
        found = pool.run({"x": x})["y"]
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, session.run({"x": x})["y"])
        with pytest.raises(SpecError, match="'x': on a GPU"):
            pool.run({"x": x.cuda()})


def test_a_session_of_the_caller_goes_on(plan, devices):
    x = next(made(1))
    with Session(plan) as session:
        before = session.run(x)["y"]
        with SessionPool(devices[::-1], plan) as pool:
            np.testing.assert_array_equal(pool.run(x)["y"], before)
            np.testing.assert_array_equal(session.run(x)["y"], before)
        np.testing.assert_array_equal(session.run(x)["y"], before)


def test_closing_frees_the_memory(plan, devices):
    def free():
        infos = []
        for ordinal in sorted({int(device[-1]) for device in devices}, reverse=True):
            require_gpu(ordinal)
            infos.append(memory_info()[0])
        return infos

    def once():
        with SessionPool(devices, plan) as pool:
            assert len(list(pool.map(made(20)))) == 20
        with pytest.raises(ClosedError):
            pool.run({})

    once()
    before = free()
    for _ in range(5):
        once()
    for left, start in zip(free(), before, strict=True):
        assert start - left < 32 << 20


def test_a_gpu_that_does_not_exist(plan):
    with pytest.raises(CudaError, match=r"^cuda:99: "):
        SessionPool([0, 99], plan)


def test_a_process_may_end_with_a_pool_open(plan):
    code = (
        "import numpy as np, sys; from trt_native import SessionPool;"
        "pool = SessionPool([0, 0], sys.argv[1]);"
        "print(pool.run({'x': np.ones((1, 3, 8, 8), np.float32)})['y'].shape[0]);"
        "waiting = [pool.submit({'x': np.ones((1, 3, 8, 8), np.float32)}) for _ in range(9)]"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(plan)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "1", "")
