"""NumPy's files, as NumPy reads and writes them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from trt_native.arrays import is_float, load_arrays, open_arrays, save_arrays
from trt_native.errors import SpecError


def test_numpy_reads_written_files(tmp_path, rng):
    arrays = {
        "file": rng.standard_normal((2, 3)),  # a keyword of numpy.savez
        "a/b": np.array(3),
        "half": rng.standard_normal(4).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 2), np.int8),
    }
    path = tmp_path / "a.npz"
    save_arrays(path, arrays)
    with np.load(path) as loaded:
        assert loaded.files == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array.astype(loaded[name].dtype))
        assert loaded["half"].dtype == np.float32
    for name, array in load_arrays(path).items():
        np.testing.assert_array_equal(array, arrays[name].astype(array.dtype))
    with open_arrays(path) as opened:
        assert opened.names == tuple(arrays)
        np.testing.assert_array_equal(opened["file"], arrays["file"])


def test_one_array(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    np.testing.assert_array_equal(load_arrays(tmp_path / "a.npy"), np.arange(3))
    with (
        pytest.raises(SpecError, match="one array without a name"),
        open_arrays(tmp_path / "a.npy"),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "not a NumPy file, or damaged"),
        (b"hello", "not a NumPy file, or damaged"),
        (b"PK\x03\x04hello", "not a NumPy file, or damaged"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=message):
        load_arrays(path)
    with pytest.raises(SpecError, match=message), open_arrays(path):
        pass


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([object()], object))
    with pytest.raises(SpecError, match="not a NumPy file, or damaged"):
        load_arrays(tmp_path / "a.npz")


def test_a_member_that_is_not_an_array(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("text.txt", "hello")
    with pytest.raises(SpecError, match=r"'text.txt' is not an array"):
        load_arrays(tmp_path / "a.npz")


def test_floating_point_types():
    assert is_float(np.dtype(ml_dtypes.float8_e4m3fn))
    assert is_float(np.dtype(np.float16))
    assert not is_float(np.dtype(np.int64))
    assert not is_float(np.dtype(bool))
