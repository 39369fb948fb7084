from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from trt_native.errors import SpecError
from trt_native.runtime.tensor_views import read, torch_from_host


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
    with pytest.raises(SpecError, match=r"expected a NumPy array, .*, got list"):
        read([1, 2])


def test_casting():
    torch = pytest.importorskip("torch")
    found = read(np.array([1.7], np.float64)).converted("int64")
    assert (found.dtype, found.host.tolist()) == ("int64", [1])
    found = read(torch.tensor([1.7])).converted("bfloat16")
    assert found.host.dtype == ml_dtypes.bfloat16
    with pytest.raises(SpecError, match="cannot be cast here"):
        read(OnDevice((2,))).converted("float16")
