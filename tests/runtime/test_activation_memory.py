from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import fake_gpu

from trt_native.errors import ClosedError, SpecError
from trt_native.runtime import ActivationMemory, Session
from trt_native.runtime.activation_memory import StreamSerializer


def test_runs_on_different_streams_wait_for_each_other(driver):
    serializer = StreamSerializer()
    serializer.acquire(7)
    assert driver.log == [], "nothing has run"
    serializer.release(7)
    serializer.acquire(8)
    assert driver.log == ["record", "hold"]
    serializer.release(8)
    serializer.synchronize()
    assert driver.log[2:] == ["record", "wait"]


def test_a_long_lived_stream_is_ordered_by_itself(driver):
    serializer = StreamSerializer()
    for _ in range(3):
        serializer.acquire(7, long_lived=True)
        serializer.release(7, long_lived=True)
    assert driver.log == []
    serializer.acquire(8)
    assert driver.log == ["record", "hold"]


def test_a_handle_may_be_another_streams_by_now(driver):
    serializer = StreamSerializer()
    serializer.release(7)
    serializer.acquire(7)
    assert driver.log == ["record", "hold"]


def engine(nbytes, ordinal=0):
    return SimpleNamespace(activation_bytes=nbytes, ordinal=ordinal)


def test_the_memory_fits_the_largest_engine(gpu):
    with ActivationMemory(engine(10), engine(20)) as memory:
        assert memory.nbytes == 20
        memory.check(engine(20))
        with pytest.raises(SpecError, match=r"of 20 B.* needs 21 B"):
            memory.check(engine(21))
        with pytest.raises(SpecError, match=r"on GPU 0, .*on GPU 1"):
            memory.check(engine(1, ordinal=1))
    memory.close()
    with pytest.raises(ClosedError, match="is closed"):
        memory.check(engine(1))


@pytest.mark.parametrize("engines", [(), (engine(1), engine(1, ordinal=1))])
def test_engines_of_one_gpu_are_needed(engines):
    with pytest.raises(SpecError, match="all on one GPU"):
        ActivationMemory(*engines)


def test_memory_for_the_shapes_that_are_run(gpu, rows):
    created = []

    class Engine(fake_gpu.FakeEngine):
        def create_context(self, *, user_managed=False):
            created.append((user_managed, super().create_context()))
            return created[-1][1]

    with Session(Engine(gpu), activation_memory="shapes") as session:
        ((user_managed, context),) = created
        assert user_managed
        assert session.activation_bytes == 0
        sizes = []
        for count in (2, 2, 1, 4, 2, 2):
            x = rows(count)
            for _ in range(3):
                np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
            assert context.memory[1] >= 1000 * count
            sizes.append(session.activation_bytes)
        assert sizes == [2000, 2000, 2000, 4000, 4000, 4000]
        assert session.graph_count > 0
        session.run({"x": rows(8)})
        assert session.activation_bytes == 8000
        assert session.graph_count == 0, "they were captured with the memory that was freed"


def test_memory_that_is_no_choice(gpu):
    with pytest.raises(SpecError, match="activation memory 'all': give an ActivationMemory"):
        Session(fake_gpu.FakeEngine(gpu), activation_memory="all")
