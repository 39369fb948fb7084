"""Guarantees of the runtime: kinds of arrays, streams, graphs, threads, memory, errors."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import subprocess
import sys
import textwrap
import threading

import ml_dtypes
import numpy as np
import pytest
from cuda.bindings import driver
from helpers import tiny_models
from onnx import TensorProto, helper

from trt_native import (
    ActivationMemory,
    BuildConfig,
    Engine,
    EngineSessionPool,
    Precision,
    ProfileSpec,
    Session,
    build_plan,
)
from trt_native.cuda import DeviceBuffer, Stream, memory_info
from trt_native.cuda.driver import check
from trt_native.errors import ClosedError, CudaError, SpecError

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.backend]

F = TensorProto.FLOAT


def affine(path, dtype=F, scalar=F):
    """y = relu(x) * 2 + s, over (n, 64): exact in every type."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Mul", ["r", "two"], ["d"]),
        helper.make_node("Add", ["d", "s"], ["y"]),
    ]
    two = np.array(2, helper.tensor_dtype_to_np_dtype(dtype))
    return tiny_models.save(
        path,
        nodes,
        [tiny_models.tensor("x", dtype, ["n", 64]), tiny_models.tensor("s", scalar, [])],
        [tiny_models.tensor("y", dtype, ["n", 64])],
        {"two": two},
    )


def expected(x, s):
    return np.maximum(x, 0) * np.float32(2) + np.float32(s)


@pytest.fixture(autouse=True)
def _reasons(caplog):
    """Shows why a run went without a CUDA graph, where a test fails."""
    caplog.set_level("DEBUG", "trt_native.runtime")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = affine(tmp_path_factory.mktemp("plan") / "m.onnx")
    return build_plan(
        path, BuildConfig(profiles=(ProfileSpec.parse(["n=1:8:512"]),), precision=Precision.FP32)
    )


@pytest.fixture
def session(plan):
    with Session(plan) as session:
        yield session


def draw(rng, n):
    return rng.standard_normal((n, 64), np.float32)


def on_gpu(array):
    return torch.from_numpy(np.array(array)).cuda()


# Values under replay


@pytest.mark.parametrize("graphs", [0, 1, 32])
def test_changing_numpy_inputs_and_shapes(plan, rng, graphs):
    kept = []
    with Session(plan, cuda_graphs=graphs) as session:
        for i in range(60):
            x, s = draw(rng, (2, 2, 4, 7)[i % 4]), np.array(i, np.float32)
            y = session.run({"x": x, "s": s})["y"]
            kept.append((y, expected(x, i)))
        # One for each shape, and one for the first before the buffers grew.
        assert session.graph_count == min(graphs, 4)
    for found, reference in kept:  # results stay what they are, also after the session
        np.testing.assert_array_equal(found, reference)


@pytest.mark.parametrize("graphs", [0, 2, 32])
def test_changing_torch_inputs_and_shapes(plan, rng, graphs):
    stream = torch.cuda.Stream()
    with Session(plan, cuda_graphs=graphs) as session:
        for context in (torch.cuda.stream(stream), torch.cuda.stream(torch.cuda.default_stream())):
            with context:
                for i in range(40):
                    x, s = draw(rng, (2, 2, 4, 7)[i % 4]), np.float32(i)
                    y = session.run({"x": on_gpu(x), "s": on_gpu(s)})["y"]
                    assert y.is_cuda
                    np.testing.assert_array_equal(y.cpu().numpy(), expected(x, i))
        assert (session.graph_count > 0) == (graphs > 0)


def test_a_graph_reads_the_same_address_again(session, rng):
    x, s = on_gpu(draw(rng, 4)), on_gpu(np.float32(1))
    y = torch.empty_like(x)
    for _ in range(5):
        x.copy_(on_gpu(draw(rng, 4)))
        result = session.run({"x": x, "s": s}, out={"y": y})
        assert result["y"] is y
        np.testing.assert_array_equal(y.cpu().numpy(), expected(x.cpu().numpy(), 1))
    assert session.graph_count == 1


# Kinds of arrays


def test_results_are_of_the_kind_of_the_inputs(session, rng):
    x = draw(rng, 3)
    s = np.float32(0.5)
    y = expected(x, s)
    assert isinstance(session.run({"x": x, "s": s})["y"], np.ndarray)
    found = session.run({"x": torch.from_numpy(x), "s": torch.tensor(s)})["y"]
    assert (type(found), found.device.type) == (torch.Tensor, "cpu")
    np.testing.assert_array_equal(found.numpy(), y)
    mixed = session.run({"x": on_gpu(x), "s": s})["y"]
    np.testing.assert_array_equal(mixed.cpu().numpy(), y)
    back = session.run({"x": on_gpu(x), "s": s}, device="cpu")["y"]
    assert back.device.type == "cpu"
    np.testing.assert_array_equal(back.numpy(), y)
    there = session.run({"x": x, "s": s}, device="cuda")["y"]
    np.testing.assert_array_equal(there.numpy(), y)
    np.testing.assert_array_equal(torch.as_tensor(there, device="cuda").cpu().numpy(), y)
    np.testing.assert_array_equal(torch.from_dlpack(there).cpu().numpy(), y)
    again = session.run({"x": there, "s": s})["y"]
    np.testing.assert_array_equal(again.numpy(), expected(y, s))


class OnlyInterface:
    def __init__(self, tensor):
        self.tensor = tensor

    @property
    def __cuda_array_interface__(self):
        return self.tensor.__cuda_array_interface__


class OnlyDlpack:
    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize("kind", [OnlyInterface, OnlyDlpack])
def test_foreign_arrays(session, rng, kind):
    x = draw(rng, 3)
    for _ in range(3):
        y = session.run({"x": kind(on_gpu(x)), "s": kind(on_gpu(np.float32(3)))})["y"]
        np.testing.assert_array_equal(y.numpy(), expected(x, 3))


def test_cupy_arrays_come_back_as_cupy_arrays(session, rng):
    cupy = pytest.importorskip("cupy")
    x = draw(rng, 3)
    for _ in range(3):
        y = session.run({"x": cupy.asarray(x), "s": cupy.asarray(np.float32(3))})["y"]
        assert isinstance(y, cupy.ndarray)
        np.testing.assert_array_equal(cupy.asnumpy(y), expected(x, 3))


def test_output_buffers_on_the_host(session, rng):
    x, y = draw(rng, 5), np.empty((5, 64), np.float32)
    assert session.run({"x": x, "s": np.float32(1)}, out={"y": y})["y"] is y
    np.testing.assert_array_equal(y, expected(x, 1))
    with pytest.raises(SpecError, match=r"'y' has the shape 5x64, its buffer 4x64"):
        session.run({"x": x, "s": np.float32(1)}, out={"y": y[:4]})


def test_what_must_be_cast_is_refused_or_cast(session, rng):
    wide = on_gpu(draw(rng, 8))
    s = on_gpu(np.float32(0))
    cases = {
        "is not contiguous": on_gpu(rng.standard_normal((64, 4), np.float32)).T,
        "not a multiple of 256": wide.reshape(-1)[1:257].reshape(4, 64),
        "needs float32, found float64": wide.double(),
    }
    for message, x in cases.items():
        with pytest.raises(SpecError, match=message):
            session.run({"x": x, "s": s})
        y = session.run({"x": x, "s": s}, cast=True)["y"]
        np.testing.assert_array_equal(y.cpu().numpy(), expected(x.float().cpu().numpy(), 0))
    y = session.run({"x": draw(rng, 2).astype(np.float64), "s": np.float64(0)}, cast=True)["y"]
    assert y.dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.INT64, "int64"),
    ],
)
def test_types(tmp_path, rng, kind, name):
    path = affine(tmp_path / "m.onnx", kind, kind)
    spec = ProfileSpec.parse(["n=1:2:4"])
    x = rng.integers(-9, 9, (3, 64)).astype(name)
    reference = np.maximum(x.astype(np.float64), 0) * 2 + 1
    with Session(build_plan(path, BuildConfig(profiles=(spec,)))) as session:
        y = session.run({"x": x, "s": np.array(1, name)})["y"]
        assert y.dtype == np.dtype(name)
        np.testing.assert_array_equal(y.astype(np.float64), reference)
        dtype = getattr(torch, name)
        tensor = torch.tensor(x.astype(np.float64), dtype=dtype)
        for device in ("cuda", "cpu"):
            y = session.run(
                {"x": tensor.to(device), "s": torch.tensor(1, dtype=dtype, device=device)}
            )["y"]
            assert (y.dtype, y.device.type) == (dtype, device)
            np.testing.assert_array_equal(y.double().cpu().numpy(), reference)


def test_float8(tmp_path, rng):
    kind = TensorProto.FLOAT8E4M3FN
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one"], ["f"]),
        helper.make_node("Mul", ["f", "two"], ["y"]),
    ]
    path = tiny_models.save(
        tmp_path / "m.onnx",
        nodes,
        [tiny_models.tensor("x", kind, [2, 64])],
        [tiny_models.tensor("y", F, [2, 64])],
        {"one": np.float32(1), "two": np.float32(2)},
        opset=19,
    )
    x = rng.integers(-8, 8, (2, 64)).astype(ml_dtypes.float8_e4m3fn)
    with Session(build_plan(path, BuildConfig(precision=Precision.FP32))) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], x.astype(np.float32) * 2)


def test_empty_tensors(tmp_path):
    path = affine(tmp_path / "m.onnx")
    spec = ProfileSpec.parse(["n=0:2:4"])
    with Session(build_plan(path, BuildConfig(profiles=(spec,)))) as session:
        y = session.run({"x": np.zeros((0, 64), np.float32), "s": np.float32(1)})["y"]
        assert y.shape == (0, 64)
        y = session.run({"x": torch.zeros((0, 64), device="cuda"), "s": on_gpu(np.float32(1))})["y"]
        assert tuple(y.shape) == (0, 64)


def test_an_output_whose_shape_only_the_run_determines(plan, rng, monkeypatch):
    """TensorRT-RTX builds no such operator, but asks an output allocator whoever sets one."""
    from trt_native.runtime.execution import ExecutionContext

    monkeypatch.setattr(ExecutionContext, "_output_shape", lambda self, tensor: (-1, 64))
    with Session(plan) as session:
        for n in (3, 8, 3):
            x = draw(rng, n)
            for _ in range(2):
                y = session.run({"x": x, "s": np.float32(1)})["y"]
                np.testing.assert_array_equal(y, expected(x, 1))
            y = session.run({"x": on_gpu(x), "s": on_gpu(np.float32(1))})["y"]
            assert y.is_cuda
            np.testing.assert_array_equal(y.cpu().numpy(), expected(x, 1))
        assert session.graph_count == 0


# Streams


@pytest.mark.parametrize("given", [True, False])
def test_the_run_waits_for_a_slow_producer(session, rng, given):
    s = on_gpu(np.float32(1))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(4):
        values = on_gpu(draw(rng, 16))
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            x = torch.full((16, 64), -1.0, device="cuda")
            torch.cuda._sleep(400_000_000)
            x.copy_(values)
            if given:
                y = session.run({"x": x, "s": s}, stream=stream)["y"]
                event = stream.record_event()
                assert not event.query(), "it did not wait for the producer on the host"
                event.synchronize()
            else:
                y = session.run({"x": x, "s": s})["y"]
            np.testing.assert_array_equal(y.cpu().numpy(), expected(values.cpu().numpy(), 1))


@pytest.mark.parametrize("cast", [False, True])
def test_inputs_that_are_let_go_of_are_read_before_others_take_their_place(session, rng, cast):
    s = on_gpu(np.float32(1))
    stream = torch.cuda.Stream()
    for _ in range(3):  # the kernels are compiled, and a graph is captured
        x = on_gpu(draw(rng, 16))
        session.run({"x": x.double() if cast else x, "s": s}, stream=stream, cast=cast)
    busy = 0
    for _ in range(6):
        values = draw(rng, 16)
        x = on_gpu(values).double() if cast else on_gpu(values)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(400_000_000)
        y = session.run({"x": x, "s": s}, stream=stream, cast=cast)["y"]
        del x
        others = [torch.full((16, 64), -1.0, device="cuda") for _ in range(8)]
        busy += not stream.query()
        stream.synchronize()
        np.testing.assert_array_equal(y.cpu().numpy(), expected(values, 1))
        del others
    assert busy, "every run waited on the host, so that nothing was let go of too early"


def test_what_a_captured_stream_cannot_take(session, rng):
    x, s = draw(rng, 16), np.float32(1)
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    with Stream() as stream:
        for _ in range(2):  # as new inputs, and as known ones
            check(driver.cuStreamBeginCapture(stream.handle, mode))
            with pytest.raises(CudaError, match="being captured into a CUDA graph"):
                session.run({"x": x, "s": s}, stream=stream)
            check(driver.cuGraphDestroy(check(driver.cuStreamEndCapture(stream.handle))[0]))
            for _ in range(3):
                found = session.run({"x": x, "s": s})["y"]
                np.testing.assert_array_equal(found, expected(x, s))


def test_results_on_a_stream_reach_a_consumer_there(session, rng):
    x = draw(rng, 64)
    with Stream() as stream:
        y = session.run({"x": x, "s": np.float32(1)}, stream=stream)["y"]
        stream.synchronize()
        np.testing.assert_array_equal(y, expected(x, 1))


def test_runs_on_different_streams_do_not_meet(session, rng):
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for i in range(40):
        x = draw(rng, 512)
        tensor = on_gpu(x)
        torch.cuda.synchronize()
        stream = streams[i % 4]
        y = session.run({"x": tensor, "s": on_gpu(np.float32(i))}, stream=stream)["y"]
        results.append((tensor, y, expected(x, i)))
    torch.cuda.synchronize()
    for _, found, reference in results:
        np.testing.assert_array_equal(found.cpu().numpy(), reference)


# Asynchronous


def test_submit(session, rng):
    inputs = [{"x": draw(rng, 1 + i % 9), "s": np.float32(i)} for i in range(30)]
    pending = [session.submit(arrays) for arrays in inputs]
    for i in reversed(range(30)):
        y = pending[i].result()["y"]
        assert pending[i].done()
        np.testing.assert_array_equal(y, expected(inputs[i]["x"], i))


def test_a_submitted_array_may_be_changed_at_once(session, rng):
    x = draw(rng, 512)
    reference = expected(x, 1)
    pending = session.submit({"x": x, "s": np.float32(1)})
    x[...] = 0
    np.testing.assert_array_equal(pending.result()["y"], reference)


def test_submitted_torch_tensors(session, rng):
    for i in range(10):
        x = draw(rng, 4)
        y = session.submit({"x": on_gpu(x), "s": on_gpu(np.float32(i))}).result()["y"]
        np.testing.assert_array_equal(y.cpu().numpy(), expected(x, i))


def test_awaiting(session, rng):
    x = draw(rng, 4)

    async def one():
        return await session.submit({"x": x, "s": np.float32(2)})

    np.testing.assert_array_equal(asyncio.run(one())["y"], expected(x, 2))


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_map_keeps_the_order(session, rng, depth):
    inputs = [{"x": draw(rng, 1 + i % 5), "s": np.float32(i)} for i in range(40)]
    found = list(session.map(iter(inputs), depth=depth))
    assert len(found) == 40
    for i, outputs in enumerate(found):
        np.testing.assert_array_equal(outputs["y"], expected(inputs[i]["x"], i))


@pytest.mark.parametrize("depth", [1, 5])
def test_map_passes_an_error_on_after_the_results_before_it(session, rng, depth):
    inputs = [{"x": draw(rng, 2), "s": np.float32(i)} for i in range(3)]
    inputs.append({"x": draw(rng, 2)})
    results = session.map(inputs, depth=depth)
    for i in range(3):
        np.testing.assert_array_equal(next(results)["y"], expected(inputs[i]["x"], i))
    with pytest.raises(SpecError, match="'s' is missing"):
        next(results)


@pytest.mark.parametrize("rows", [1, 8192])
def test_map_lets_arrays_be_filled_again(tmp_path, rows):
    """Small ones, and those large enough to be copied by several threads."""
    profile = ProfileSpec.parse(["n=1:8:8192"])
    config = BuildConfig(profiles=(profile,), precision=Precision.FP32)
    x = np.empty((rows, 64), np.float32)

    def batches():
        for i in range(12):
            x[...] = i
            yield {"x": x, "s": np.float32(1)}

    with Session(build_plan(affine(tmp_path / "m.onnx"), config)) as session:
        for i, outputs in enumerate(session.map(batches())):
            np.testing.assert_array_equal(outputs["y"], expected(np.full_like(x, i), 1))
            x[...] = -1  # nor are the caller's own changes seen
        assert i == 11


def test_map_may_be_left(session, rng):
    x = draw(rng, 3)
    for _ in range(20):
        next(session.map([{"x": x, "s": np.float32(i)} for i in range(9)]))
    found = list(session.map([{"x": x, "s": np.float32(i)} for i in range(9)]))
    for i, outputs in enumerate(found):
        np.testing.assert_array_equal(outputs["y"], expected(x, i))


# Many sessions


def test_threads_with_sessions_of_one_engine(plan, rng):
    inputs = [[draw(rng, 1 + (i + j) % 9) for j in range(50)] for i in range(8)]
    results = [[] for _ in range(8)]
    with Engine(plan) as engine:

        def work(i):
            with Session(engine) as session:
                for x in inputs[i]:
                    results[i].append(session.run({"x": x, "s": np.float32(i)})["y"])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i in range(8):
        for x, y in zip(inputs[i], results[i], strict=True):
            np.testing.assert_array_equal(y, expected(x, i))


def test_a_pool(plan, rng):
    with Engine(plan) as engine:
        with EngineSessionPool(engine, 2) as pool:
            results = {}

            def work(i):
                x = np.full((3, 64), i, np.float32)
                results[i] = pool.run({"x": x, "s": np.float32(i)})["y"]

            threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for i in range(16):
            np.testing.assert_array_equal(results[i], np.full((3, 64), 3 * i, np.float32))
        with pytest.raises(ClosedError, match="pool is closed"):
            pool.run({})


def test_a_session_in_two_threads_says_so(session):
    found = []

    def other():
        try:
            session.run({})
        except SpecError as error:
            found.append(error.message)

    with session._guard:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "used by another thread" in found[0]


def test_sessions_that_share_memory(plan, rng):
    with Engine(plan) as engine, ActivationMemory(engine) as memory:
        assert memory.nbytes == engine.activation_bytes
        with (
            Session(engine, activation_memory=memory) as one,
            Session(engine, activation_memory=memory) as two,
        ):
            for i in range(10):
                x = draw(rng, 512)
                pending = one.submit({"x": x, "s": np.float32(i)})
                y = two.run({"x": x, "s": np.float32(i)})["y"]
                np.testing.assert_array_equal(y, expected(x, i))
                np.testing.assert_array_equal(pending.result()["y"], y)


def test_streamed_weights(tmp_path, rng):
    weight = rng.standard_normal((512, 512), np.float32)
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [tiny_models.tensor("x", F, [4, 512])],
        [tiny_models.tensor("y", F, [4, 512])],
        {"w": weight},
    )
    plan = build_plan(path, BuildConfig(precision=Precision.FP32, weight_streaming=True))
    x = rng.standard_normal((4, 512), np.float32)
    with Session(plan) as session:
        whole = session.run({"x": x})["y"]
    np.testing.assert_allclose(whole, x @ weight, rtol=0.01, atol=0.1)
    with Engine(plan, weight_budget_bytes=0) as engine, Session(engine) as session:
        for _ in range(3):
            np.testing.assert_array_equal(session.run({"x": x})["y"], whole)
    with pytest.raises(SpecError, match="weight budget"):
        Engine(plan, weight_budget_bytes=1 << 50)


# Memory


def test_ten_thousand_calls_take_no_more_memory(session, rng):
    x, s = draw(rng, 32), np.float32(1)
    tensor, scalar = on_gpu(x), on_gpu(s)

    def calls(count):
        for _ in range(count):
            session.run({"x": x, "s": s})
            session.run({"x": tensor, "s": scalar})
            session.submit({"x": x, "s": s})
        session.run({"x": x, "s": s})
        gc.collect()
        torch.cuda.synchronize()

    calls(200)
    free, host = memory_info()[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls(3400)
    assert memory_info()[0] >= free
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host
    assert grown < 4096, f"{grown} KiB more on the host"


def test_results_that_are_kept_are_not_overwritten(session, rng):
    x = draw(rng, 8)
    kept = [session.run({"x": x, "s": np.float32(i)})["y"] for i in range(20)]
    for i, y in enumerate(kept):
        np.testing.assert_array_equal(y, expected(x, i))
    view = kept[3][2:4]
    del kept
    gc.collect()
    for i in range(20):
        session.run({"x": x, "s": np.float32(100 + i)})
    np.testing.assert_array_equal(view, expected(x, 3)[2:4])


def test_the_runtime_cache_is_kept_next_to_the_plan(plan, tmp_path, rng):
    path = plan.save(tmp_path / "m.plan")
    kept = tmp_path / "m.plan.cache"
    x = draw(rng, 4)
    with Session(path) as session:
        session.run({"x": x, "s": np.float32(1)})
    if session.engine.backend.name != "rtx":
        assert not kept.exists()
        return
    content = kept.read_bytes()
    with Session(path) as session:
        session.run({"x": x, "s": np.float32(1)})
    assert kept.read_bytes() == content, "nothing was compiled again"
    foreign = b"\xff" * 100
    for broken in (content[:-1], b"", foreign, content.replace(b"gpu", b"cpu", 1)):
        kept.write_bytes(broken)
        with Session(path) as session:
            y = session.run({"x": x, "s": np.float32(1)})["y"]
            np.testing.assert_array_equal(y, expected(x, 1))
        left = kept.read_bytes()[:200]
        assert left == (foreign if broken == foreign else content[:200]), "another's file is kept"


# Errors


def test_too_little_memory_is_an_error_with_numbers():
    with Stream() as stream, pytest.raises(CudaError, match=r"1024\.0 TiB.* are free"):
        DeviceBuffer().reserve(1 << 50, stream)


def run_python(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **variables},
    )


@pytest.fixture
def saved(plan, tmp_path):
    return plan.save(tmp_path / "m.plan")


SETUP = """
import sys, numpy as np
from trt_native import Session
session = Session(sys.argv[1] if len(sys.argv) > 1 else __import__("os").environ["PLAN"])
inputs = {"x": np.ones((4, 64), np.float32), "s": np.float32(1)}
"""


def test_the_process_ends_silently_with_live_sessions(saved):
    code = SETUP + "session.run(inputs)\np = session.submit(inputs)\nprint('done')"
    result = run_python(code, PLAN=str(saved))
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
    noise = [line for line in result.stderr.splitlines() if "unsupported cc" not in line]
    assert not noise


def test_a_lost_gpu_is_reported_once_and_the_session_is_broken(saved):
    code = SETUP + textwrap.dedent("""
        from trt_native.errors import CudaError
        class Wild:
            __cuda_array_interface__ = {"shape": (4, 64), "typestr": "<f4",
                "data": (0x7f0000000000, False), "strides": None, "version": 3}
        for _ in range(2):
            try:
                session.run({"x": Wild(), "s": inputs["s"]})
            except CudaError as error:
                print(error.sticky, error.message)
        session.close()
        session.close()
        """)
    result = run_python(code, PLAN=str(saved))
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first.startswith("True")
    assert "broken" not in first
    assert "the session is broken since an earlier error" in second


def test_closing_waits_for_work_in_flight(plan, rng):
    x = draw(rng, 512)
    for how in (lambda s: s.close(), lambda s: None):
        session = Session(plan)
        pending = [session.submit({"x": x, "s": np.float32(i)}) for i in range(8)]
        how(session)
        del session
        gc.collect()
        for i, item in enumerate(pending):
            np.testing.assert_array_equal(item.result()["y"], expected(x, i))


def test_layers_are_timed(session, rng):
    times = session.profile_layers({"x": draw(rng, 4), "s": np.float32(1)}, iterations=5)
    assert times
    assert all(len(values) == 5 and min(values) >= 0 for values in times.values())
