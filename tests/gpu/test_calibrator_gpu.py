"""Calibration batches in GPU memory, where TensorRT's calibrator reads them."""

from __future__ import annotations

import numpy as np
import pytest

from trt_native.backends.trt10_calibrator import DeviceUploader

pytestmark = pytest.mark.gpu


def read_back(address, like):
    from cuda.bindings import driver

    array = np.empty_like(like)
    # A plain copy: it sees what was complete before, so the uploader must have waited.
    (code,) = driver.cuMemcpyDtoH(array.ctypes.data, address, array.nbytes)
    assert int(code) == 0
    return array


def test_every_batch_is_there_when_the_upload_returns(rng):
    batches = [
        {
            "latents": rng.standard_normal((2, 13, 16, 64, 64), np.float32),
            "timestep": np.array([2**40 + i], np.int64),
            "mask": rng.integers(0, 2, 7).astype(bool),
        }
        for i in range(4)
    ]
    uploader = DeviceUploader()
    try:
        addresses = [uploader.upload(batches[0])]
        for batch in batches:
            addresses.append(uploader.upload(dict(reversed(batch.items()))))
            for name, array in batch.items():
                found = read_back(addresses[-1][name], array)
                np.testing.assert_array_equal(found, array)
        assert all(found == addresses[0] for found in addresses), "one buffer for each input"
        assert len(set(addresses[0].values())) == 3
    finally:
        uploader.close()
    uploader.close()
