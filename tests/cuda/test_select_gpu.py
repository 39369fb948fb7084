"""Selection of a process's GPU, on a driver with some number of them."""

from __future__ import annotations

import os

import pytest

from trt_native.cuda import device_ordinal, driver, select_gpu
from trt_native.errors import CudaError, SpecError


class Driver:
    """What cuda.h says of cuInit and cuDeviceGetCount, with CUDA_VISIBLE_DEVICES."""

    def __init__(self, count):
        self.count, self.visible = count, None

    def cuInit(self, flags):  # noqa: N802
        assert flags == 0
        listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        self.visible = [int(word) for word in listed if word.isdigit() and int(word) < self.count]
        return (0 if self.visible else 100,)

    def cuDeviceGetCount(self):  # noqa: N802
        return (3, 0) if self.visible is None else (0, len(self.visible))


@pytest.fixture
def made(monkeypatch):
    def make(count, visible=None):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # also removes it afterwards
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        found = Driver(count)
        monkeypatch.setattr(driver, "bindings", lambda: found)
        return found

    return make


@pytest.mark.parametrize(
    ("count", "visible", "device", "selected"),
    [(2, None, "cuda:1", 1), (2, None, "0", 0), (4, "3,1", "cuda:1", 1), (4, "3,1", 0, 3)],
)
def test_the_gpu_is_the_only_one(made, count, visible, device, selected):
    found = made(count, visible)
    select_gpu(device)
    assert found.visible == [selected]


@pytest.mark.parametrize(
    ("count", "visible", "device", "message"),
    [
        (2, None, "cuda:2", r"cannot select cuda:2: there is no such GPU; nvidia-smi -L"),
        (4, "3,1", "2", r"no such GPU among those of CUDA_VISIBLE_DEVICES=3,1"),
        (4, "", "0", r"no such GPU among those of CUDA_VISIBLE_DEVICES="),
    ],
)
def test_a_gpu_that_is_not_there(made, count, visible, device, message):
    made(count, visible)
    with pytest.raises(CudaError, match=message):
        select_gpu(device)


def test_too_late(made):
    made(2).visible = [0, 1]
    with pytest.raises(CudaError, match="uses CUDA already"):
        select_gpu(1)


def test_device_names():
    assert [device_ordinal(d) for d in ("cuda", "cuda:3", "12", 1)] == [0, 3, 12, 1]
    for bad in ("", "cpu", "cuda:", "cuda:x", "-1", "1.0", True, None, "cuda:1 "):
        with pytest.raises(SpecError, match="give cuda:N or N"):
            device_ordinal(bad)
