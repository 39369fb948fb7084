from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.fake_gpu import FakeEngine

from trt_native.errors import ClosedError, SpecError
from trt_native.runtime import EngineSessionPool


def test_each_thread_has_a_session_of_its_own(gpu, rows):
    batches = [rows(1 + i % 5) for i in range(32)]
    with EngineSessionPool(FakeEngine(gpu), 2, cuda_graphs=0) as pool:
        with pool.session() as first, pool.session() as second:
            assert first is not second
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda x: pool.run({"x": x})["y"], batches))
    for x, y in zip(batches, found, strict=True):
        np.testing.assert_array_equal(y, 2 * x)


def test_a_closed_pool(gpu):
    pool = EngineSessionPool(FakeEngine(gpu), 1)
    pool.close()
    pool.close()
    for _ in range(2):
        with pytest.raises(ClosedError, match="pool is closed"), pool.session():
            pass


def test_a_pool_of_no_sessions(gpu):
    with pytest.raises(SpecError, match="a pool of 0 sessions"):
        EngineSessionPool(FakeEngine(gpu), 0)
