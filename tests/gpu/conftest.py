"""Fixtures of the tests that need a GPU."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def exact_fp32():
    """PyTorch without TF32, as a reference of FP32."""
    torch = pytest.importorskip("torch")
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    matmul.allow_tf32 = conv.allow_tf32 = False
    yield
    matmul.allow_tf32, conv.allow_tf32 = before
