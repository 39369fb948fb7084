"""Backends of this machine."""

from __future__ import annotations

import pytest

from trt_native.backends.registry import load_backend
from trt_native.errors import UnsupportedError

__all__ = ["backend_or_skip"]


def backend_or_skip(name="auto"):
    """The backend; the test is skipped, with the reason, where it cannot be loaded."""
    try:
        return load_backend(name)
    except UnsupportedError as error:
        pytest.skip(error.message)
