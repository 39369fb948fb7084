from __future__ import annotations

import numpy as np
import pytest

from trt_native.cuda import require_gpu
from trt_native.errors import CudaError


def pytest_collection_modifyitems(items):
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    try:
        require_gpu()
    except CudaError as error:
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=error.message))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
