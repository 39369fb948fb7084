"""Fixtures for what needs no GPU."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from helpers import fake_gpu
from helpers.fake_driver import blocks, driver

from trt_native.runtime import Session, tensor_views

__all__ = ["blocks", "driver", "gpu", "rows", "session", "torch_cuda"]


@pytest.fixture
def gpu(monkeypatch):
    """A GPU in ordinary memory: its driver, whose ``log`` has the work put on streams."""
    return fake_gpu.install(monkeypatch)


@pytest.fixture
def torch_cuda(monkeypatch):
    """PyTorch with CUDA tensors in ordinary memory."""
    torch = fake_gpu.fake_torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    tensor_views.torch_dtype.cache_clear()
    yield torch
    tensor_views.torch_dtype.cache_clear()


@pytest.fixture
def session(gpu):
    """A session whose engine computes ``y = 2 * x``."""
    with Session(fake_gpu.FakeEngine(gpu)) as session:
        yield session


@pytest.fixture
def rows(rng):
    """Makes arrays of so many rows of 3 numbers."""
    return lambda count=2: rng.standard_normal((count, 3), np.float32)
