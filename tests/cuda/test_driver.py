from __future__ import annotations

import pytest

from trt_native.errors import CudaError


@pytest.mark.parametrize(("code", "sticky"), [(0, False), (2, False), (700, True), (719, True)])
def test_errors_after_which_the_gpu_is_lost(code, sticky):
    assert CudaError("x", code=code).sticky is sticky
