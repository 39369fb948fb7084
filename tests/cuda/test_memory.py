from __future__ import annotations

import gc
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from trt_native.cuda import PinnedPool, copy_host, memory
from trt_native.errors import CudaError


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
