"""The description of an array in device memory; tests/gpu reads it through PyTorch."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from helpers.fake_gpu import Memory

from trt_native.cuda import DeviceArray


@pytest.mark.parametrize(
    ("dtype", "typestr"),
    [
        (np.float32, "<f4"),
        (np.float16, "<f2"),
        (np.int64, "<i8"),
        (np.bool_, "|b1"),
        (ml_dtypes.bfloat16, "|V2"),
        (ml_dtypes.float8_e4m3fn, "|V1"),
    ],
)
def test_the_interface_is_numpys(dtype, typestr):
    memory = Memory(6 * np.dtype(dtype).itemsize)
    array = DeviceArray(memory, (2, 3), dtype)
    expected = np.zeros((2, 3), dtype)
    assert array.nbytes == expected.nbytes
    assert array.__cuda_array_interface__ == {
        "shape": (2, 3),
        "typestr": typestr,
        "data": (memory.handle, False),
        "strides": None,
        "stream": None,
        "version": 3,
    }


def test_an_empty_array_has_no_address():
    array = DeviceArray(Memory(0), (0, 3), np.float32)
    assert array.__cuda_array_interface__["data"] == (0, False)
    assert array.numpy().shape == (0, 3)


def test_the_device():
    array = DeviceArray(Memory(4), (1,), np.float32, ordinal=3)
    assert array.__dlpack_device__() == (2, 3)
    assert repr(array) == "DeviceArray(1 float32, cuda:3)"
