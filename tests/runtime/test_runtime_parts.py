"""The parts of a session that need no GPU: keys, events, staging memory, kinds of arrays."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

from trt_native.backends.registry import load_backend
from trt_native.cuda import Event, GpuInfo, PinnedPool, copy_host, memory, stream_handle
from trt_native.errors import CudaError, SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.runtime.execution import _signature
from trt_native.runtime.fast_path import input_signature
from trt_native.runtime.graph_cache import GraphCache
from trt_native.runtime.input_checks import (
    check_operands,
    check_outputs,
    choose_profile,
    host_values,
    native_order,
)
from trt_native.runtime.runtime_cache import RuntimeCacheFile
from trt_native.runtime.tensor_views import TensorView, read, torch_from_host
from trt_native.shapes import ShapeRange


class FakeGraph:
    def __init__(self):
        self.closed = False

    def close(self):
        self.closed = True


# Graphs


def test_a_key_is_worth_a_graph_when_it_comes_back():
    graphs = GraphCache(2)
    assert not graphs.seen_before("a")
    assert graphs.seen_before("a")
    graphs.add("a", FakeGraph())
    assert not graphs.seen_before("a"), "once the graph is dropped, the key starts anew"


def test_the_graph_not_used_for_longest_goes():
    graphs = GraphCache(2)
    made = {key: FakeGraph() for key in "abc"}
    assert graphs.add("a", made["a"]) is None
    assert graphs.add("b", made["b"]) is None
    assert graphs.find("a") is made["a"]
    assert graphs.add("c", made["c"]) is made["b"]
    assert graphs.find("b") is None
    assert len(graphs) == 2
    graphs.close()
    assert (made["a"].closed, made["c"].closed, len(graphs)) == (True, True, 0)


def test_keys_that_never_come_back_take_no_memory():
    graphs = GraphCache(2)
    for key in range(1000):
        assert not graphs.seen_before(key)
    assert len(graphs._sights) == 8
    assert graphs.seen_before(999)
    assert not graphs.seen_before(0)


def test_no_graphs():
    graphs = GraphCache(0)
    assert not any(graphs.seen_before("a") for _ in range(3))


# Profiles


def tensor(*profiles, name="x", shape=(-1, 3)):
    ranges = tuple(ShapeRange.parse(text) for text in profiles)
    return PlanTensor(name, "input", "float32", shape, (), ranges)


@pytest.mark.parametrize(("batch", "profile"), [(1, 1), (2, 1), (3, 2), (9, 0), (17, None)])
def test_the_tightest_profile_that_allows_the_shapes(batch, profile):
    x = tensor("1x3:8x3:16x3", "1x3:1x3:2x3", "1x3:2x3:4x3")
    fixed = PlanTensor("t", "input", "int64", (1,))
    assert choose_profile((x, fixed), 3, {"x": (batch, 3), "t": (1,)}) == profile


def test_of_two_profiles_up_to_the_same_size_the_narrower_is_the_tightest():
    x = tensor("1x3:2x3:2x3", "2x3:2x3:2x3")
    assert [choose_profile((x,), 2, {"x": (batch, 3)}) for batch in (1, 2)] == [0, 1]


# Arrays


def test_kinds_of_arrays():
    torch = pytest.importorskip("torch")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for value, kind in ((array, "numpy"), (np.float32(1), "numpy"), (torch.tensor(array), "torch")):
        operand = read(value)
        assert (operand.kind, operand.dtype, operand.on_device) == (kind, "float32", False)
        np.testing.assert_array_equal(operand.host, np.asarray(value))
    for name in ("bfloat16", "float8_e4m3fn"):
        value = torch.tensor([1.5, -2.0], dtype=getattr(torch, name))
        operand = read(value)
        assert operand.dtype == name
        np.testing.assert_array_equal(operand.host.astype(np.float32), [1.5, -2.0])
        back = torch_from_host(operand.host)
        assert back.dtype == value.dtype
        assert back.data_ptr() == value.data_ptr(), "no copy"


class OnDevice:
    def __init__(self, shape, strides=None, dtype="<f4", pointer=512, **more):
        interface = {"shape": shape, "typestr": dtype, "data": (pointer, False), "version": 3}
        self.__cuda_array_interface__ = {**interface, "strides": strides, **more}


def test_arrays_that_are_described_by_an_interface():
    operand = read(OnDevice((2, 3), stream=7))
    assert (operand.kind, operand.shape, operand.dtype) == ("foreign", (2, 3), "float32")
    assert (operand.pointer, operand.producer) == (512, 7)
    assert operand.contiguous
    assert operand.aligned
    assert read(OnDevice((2, 3), (12, 4))).contiguous
    assert not read(OnDevice((2, 3), (4, 8))).contiguous
    assert read(OnDevice((0, 3), (4, 8))).contiguous, "nothing lies there"
    assert not read(OnDevice((2, 3), pointer=520)).aligned


def test_what_is_no_array():
    with pytest.raises(SpecError, match="list is no array"):
        read([1, 2])


def test_casting():
    torch = pytest.importorskip("torch")
    found = read(np.array([1.7], np.float64)).converted("int64")
    assert (found.dtype, found.host.tolist()) == ("int64", [1])
    found = read(torch.tensor([1.7])).converted("bfloat16")
    assert found.host.dtype == ml_dtypes.bfloat16
    with pytest.raises(SpecError, match="cannot be cast here"):
        read(OnDevice((2,))).converted("float16")


def test_output_buffers_are_checked_all_at_once():
    outputs = (
        PlanTensor("y", "output", "float32", (-1,)),
        PlanTensor("n", "output", "int64", (2,)),
    )
    frozen = np.zeros(2, np.int64)
    frozen.flags.writeable = False
    given = {"y": np.zeros((4, 2), np.float64), "n": frozen, "q": np.zeros(1)}
    with pytest.raises(SpecError) as caught:
        check_outputs(outputs, {"y": (4,), "n": (2,)}, {k: read(v) for k, v in given.items()})
    for part in (
        "'q' is not an output",
        "'y' is float32, its buffer float64",
        "'y' has the shape 4, its buffer 4x2",
        "'n': its buffer is read-only",
    ):
        assert part in str(caught.value)
    with pytest.raises(SpecError, match=r"'y': its buffer is not contiguous"):
        check_outputs(outputs, {"y": (4,)}, {"y": read(np.zeros(8, np.float32)[::2])})
    with pytest.raises(SpecError, match="'y': its buffer is not in this machine's byte order"):
        check_outputs(outputs, {"y": (4,)}, {"y": read(np.zeros(4, ">f4"))})
    with pytest.raises(SpecError, match="its shape depends on data"):
        check_outputs(outputs, {"y": (-1,)}, {"y": read(np.zeros(4, np.float32))})


def test_values_that_are_read_on_the_host_are_in_its_byte_order():
    given = np.array([[1, 2], [3, 4]], ">i8")
    values = native_order(given.T)
    assert values.dtype.isnative
    assert values.flags.c_contiguous
    assert values.tolist() == [[1, 3], [2, 4]]
    told = [
        host_values({"n": read(np.array(n, dtype))}, frozenset("n"))
        for n, dtype in ((1, ">i8"), (1, "<i8"), (1 << 56, "<i8"))
    ]
    assert told[0] == told[1] != told[2]


def test_arrays_on_another_gpu_are_refused():
    x = PlanTensor("x", "input", "float32", (4,))
    y = PlanTensor("y", "output", "float32", (4,))

    def on(ordinal):
        return TensorView("torch", None, (4,), "float32", pointer=256, ordinal=ordinal)

    for ordinal in (0, None):  # None: an array that does not tell
        assert check_operands((x,), 1, {"x": on(ordinal)}, frozenset(), ordinal=0) == 0
        check_outputs((y,), {"y": (4,)}, {"y": on(ordinal)}, 0)
    with pytest.raises(SpecError, match="'x' is on GPU 1, the engine on GPU 0: copy it there"):
        check_operands((x,), 1, {"x": on(1)}, frozenset(), ordinal=0)
    with pytest.raises(SpecError, match="'y' is on GPU 0, the engine on GPU 1: copy it there"):
        check_outputs((y,), {"y": (4,)}, {"y": on(0)}, 1)
    assert _signature({"x": on(0)}, frozenset()) != _signature({"x": on(1)}, frozenset())


def test_streams_by_whatever_stands_for_them():
    class Protocol:
        def __cuda_stream__(self):
            return (0, 5)

    class Torch:
        cuda_stream = 6

    class Cupy:
        ptr = 7

    assert [stream_handle(s) for s in (4, Protocol(), Torch(), Cupy())] == [4, 5, 6, 7]
    with pytest.raises(SpecError, match="str is no CUDA stream"):
        stream_handle("0")


# Inputs that were run before


def test_arrays_that_are_checked_alike_have_one_key(rng):
    x = rng.standard_normal((2, 3), np.float32)
    key = input_signature({"x": x, "n": np.int64(4).reshape(1)})
    assert key is not None
    assert input_signature({"x": np.ones((3, 2), np.float32).T, "n": np.zeros(1, np.int64)}) == key
    others = [
        {"x": x},
        {"y": x, "n": np.zeros(1, np.int64)},
        {"x": x[:1], "n": np.zeros(1, np.int64)},
        {"x": x, "n": np.zeros(1, np.int32)},
        {"x": x.astype(">f4"), "n": np.zeros(1, np.int64)},
        {"n": np.zeros(1, np.int64), "x": x},
    ]
    keys = {key, *map(input_signature, others)}
    assert None not in keys
    assert len(keys) == 1 + len(others)


def test_what_has_no_key(rng, tmp_path):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal(4, np.float32)
    kept = np.memmap(tmp_path / "x", np.float32, "w+", shape=4)
    for inputs in (
        {},
        {"x": torch.zeros(4)},
        {"x": x, "y": torch.zeros(4)},
        {"x": torch.zeros(4), "y": x},
        {"x": x, "y": [1.0]},
        {"x": [1.0]},
        {"x": kept},
        {"x": np.float32(1)},
    ):
        assert input_signature(inputs) is None, inputs


# Events


def test_an_event_that_was_reached_is_not_asked_again(driver):
    event = Event()
    assert event.done(), "never recorded"
    event.hold(7)
    event.synchronize()
    assert driver.log == []
    event.record(7)
    assert not event.done()
    event.hold(8)
    driver.reached = True
    assert event.done()
    event.hold(8)
    event.synchronize()
    assert driver.log == ["record", "query", "hold", "query"]
    event.record(7)
    event.hold(8)
    event.synchronize()
    event.synchronize()
    assert driver.log[4:] == ["record", "hold", "wait"]


def test_a_recording_has_passed_when_it_was_seen_or_another_followed(driver):
    event = Event()
    first = event.record(7)
    assert not event.passed(first)
    event.synchronize()
    assert event.passed(first)
    second = event.record(7)
    assert event.passed(first)
    assert not event.passed(second)
    event.synchronize()
    assert event.passed(first)
    assert event.passed(second)


# Host memory


@pytest.fixture(params=["PyTorch's threads", "own threads"])
def copying(request, monkeypatch):
    """Whose threads copy on the host."""
    monkeypatch.setattr(memory, "_copy_threads", lambda: 4)
    torch, copiers = pytest.importorskip("torch"), memory._copiers
    copiers.cache_clear()
    known = torch.get_num_threads()
    torch.set_num_threads(2)
    if request.param == "own threads":
        monkeypatch.delitem(sys.modules, "torch")
    yield request.param
    torch.set_num_threads(known)
    copiers.cache_clear()


@pytest.mark.parametrize("shape", [(0,), (3,), (1 << 21, 3)])
@pytest.mark.parametrize("target", ["float32", "float16"])
def test_copies_on_the_host(rng, shape, target, copying):
    source = rng.standard_normal(shape, np.float32)
    found = np.empty(shape, target)
    copy_host(found, source)
    np.testing.assert_array_equal(found, source.astype(target))
    strided = np.empty(shape[::-1], target)
    copy_host(strided, source.T)
    np.testing.assert_array_equal(strided, source.T.astype(target))


@pytest.mark.parametrize("count", [1 << 22, (1 << 22) + 1])
@pytest.mark.parametrize("dtype", ["bool", "bfloat16", "float8_e4m3fn", "int64", ">f4"])
def test_copies_are_exact_whatever_the_type(rng, count, dtype, copying, monkeypatch):
    kind = np.dtype(dtype)
    source = rng.integers(0, 256, count * kind.itemsize, np.uint8).view(kind)
    found = np.zeros(count, kind)
    if copying == "PyTorch's threads":
        monkeypatch.setattr(memory, "_copiers", lambda: pytest.fail("not by PyTorch"))
    copy_host(found, source)
    np.testing.assert_array_equal(found.view(np.uint8), source.view(np.uint8))


@pytest.mark.parametrize("copying", ["PyTorch's threads"], indirect=True)
def test_copies_are_made_while_pytorch_only_pretends_to(rng, copying):
    fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
    source = rng.standard_normal(1 << 21, np.float32)
    found = np.zeros_like(source)
    with fake_tensor.FakeTensorMode():
        copy_host(found, source)
    np.testing.assert_array_equal(found, source)


def test_copies_are_made_while_another_thread_imports_pytorch():
    code = """
        import importlib, threading
        import numpy as np
        from trt_native.cuda import copy_host, memory

        memory._copy_threads = lambda: 2
        source, found = np.arange(1 << 18), np.zeros(1 << 18, int)
        importing = threading.Thread(target=importlib.import_module, args=("torch",))
        importing.start()
        while importing.is_alive():
            found[:] = 0
            copy_host(found, source)
            assert np.array_equal(found, source)
    """
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_copied_too(rng, copying):
    source = rng.standard_normal(1 << 21, np.float32)
    source.flags.writeable = False
    found = np.empty_like(source)
    copy_host(found, source)
    np.testing.assert_array_equal(found, source)


def test_lent_memory_is_not_lent_twice(blocks):
    made, _ = blocks
    pool = PinnedPool()
    first, second = pool.lend(100), pool.lend(100)
    assert first.address != second.address
    assert pool.lent_bytes == 2 * 4096
    address = first.address
    del first
    assert pool.lend(4096).address == address
    assert len(made) == 2


def test_an_array_or_a_view_of_it_keeps_its_memory(blocks):
    pool = PinnedPool()
    array = pool.lend(24).array((2, 3), np.float32)
    array[...] = 7
    view = array.T[1:]
    del array
    gc.collect()
    other = pool.lend(24).array((2, 3), np.float32)
    other[...] = 8
    np.testing.assert_array_equal(view, 7)
    assert pool.lent_bytes == 2 * 4096
    del view, other
    gc.collect()
    assert pool.lent_bytes == 0


def test_memory_of_other_sizes_goes_before_there_is_none(blocks, monkeypatch):
    made, freed = blocks
    pool = PinnedPool()
    allocate = pool._allocate
    del_later = pool.lend(10 << 20)
    address = del_later.address
    del del_later

    def scarce(size):
        if not freed:
            raise CudaError("there is no more", code=2)
        return allocate(size)

    monkeypatch.setattr(pool, "_allocate", scarce)
    assert pool.lend(1).address in made
    assert freed == [address]


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 4097, (1 << 21) - 1, (1 << 21) + 1, 3 << 30])
def test_lent_blocks_are_of_few_sizes(nbytes):
    size = memory._block_size(nbytes)
    assert size >= max(nbytes, 1)
    assert size % 4096 == 0
    assert size - nbytes <= max(4096, nbytes / 16)
    octave = {memory._block_size(n) for n in range(1 << 20, 1 << 21, 997)}
    assert len(octave) <= 17


def test_a_closed_pool_frees_what_comes_back(blocks):
    _, freed = blocks
    pool = PinnedPool()
    kept, idle = pool.lend(10), pool.lend(10)
    address = idle.address
    del idle
    pool.close()
    assert freed == [address]
    address = kept.address
    del kept
    assert freed[1:] == [address]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "bool", "int64"])
def test_lent_memory_takes_every_type(blocks, dtype):
    array = PinnedPool().lend(100).array((2, 3), dtype)
    array[...] = 1
    assert (array.dtype, array.shape) == (np.dtype(dtype), (2, 3))
    np.testing.assert_array_equal(array.astype(np.float32), 1)
    assert array.flags.c_contiguous


# Kept kernels


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


def test_a_plan_that_is_no_file_keeps_no_kernels():
    backend, gpu = load_backend("rtx"), GpuInfo("NVIDIA L4", "8.9", "13.0", 1, 1)
    assert RuntimeCacheFile.of(Plan(b""), backend, gpu) is None


# Errors


@pytest.mark.parametrize(("code", "sticky"), [(0, False), (2, False), (700, True), (719, True)])
def test_errors_after_which_the_gpu_is_lost(code, sticky):
    assert CudaError("x", code=code).sticky is sticky
