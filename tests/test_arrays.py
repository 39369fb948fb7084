"""NumPy's files, as NumPy reads and writes them."""

from __future__ import annotations

import io
import mmap
import zipfile

import ml_dtypes
import numpy as np
import pytest

from trt_native import arrays as arrays_module
from trt_native.arrays import is_float, open_array, open_arrays, save_arrays
from trt_native.errors import CalibrationError, SpecError


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
    with open_arrays(path) as opened:
        assert list(opened) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(opened[name].read(), array.astype(opened[name].dtype))


ARRAYS = [
    np.float32(1.5),
    np.arange(24).reshape(2, 3, 4),
    np.asfortranarray(np.arange(24.0).reshape(4, 3, 2)),
    np.zeros((3, 0), np.int8),
    np.array(["ab", "c"]),
    np.array([True, False]),
    np.arange(6, dtype=">i4").reshape(3, 2),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{np.shape(a)}{a.dtype}")
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_wrote(tmp_path, monkeypatch, array, write):
    monkeypatch.setattr(arrays_module, "_PIECE", 16)  # a few elements
    np.save(tmp_path / "a.npy", array)
    write(tmp_path / "a.npz", a=array)
    with open_array(tmp_path / "a.npy") as one, open_arrays(tmp_path / "a.npz") as several:
        for stored in (one, several["a"]):
            assert (stored.shape, stored.dtype) == (array.shape, array.dtype)
            assert stored.placeholder().shape == array.shape
            np.testing.assert_array_equal(stored.read(), array, strict=True)
            flat = [element for piece in stored.pieces() for element in piece]
            np.testing.assert_array_equal(flat, array.ravel("K"))
            for number in range(len(array) if array.ndim else 0):
                row = stored.row(number)
                np.testing.assert_array_equal(row.read(), array[number, ...], strict=True)


def test_only_what_is_read_is_inflated(tmp_path, inflated):
    arrays = {name: np.zeros((64, 1 << 14), np.float32) for name in ("used", "header", "other")}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with open_arrays(tmp_path / "a.npz") as opened:
        assert (inflated, list(opened)) == ({}, list(arrays))
        assert opened["header"].nbytes == 4 << 20
        opened["used"].read()
    assert list(inflated) == ["header.npy", "used.npy"]
    assert inflated["header.npy"] < 200
    assert 4 << 20 < inflated["used.npy"] < (4 << 20) + 200


def test_rows_are_inflated_once(tmp_path, inflated):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros((64, 1 << 14), np.float32))
    with open_arrays(tmp_path / "a.npz") as opened:
        stacked = opened["a"]
        for number in range(3, 10):
            assert stacked.row(number).read().shape == (1 << 14,)
    assert 7 << 16 < inflated["a.npy"] < (10 << 16) + 200


def test_an_npy_file_is_mapped_and_not_written_to(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(5, np.float32))
    with open_array(tmp_path / "a.npy") as stored:
        mapped = stored.read()
    owner = mapped
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    mapped += 1
    np.testing.assert_array_equal(mapped, np.ones(5, np.float32))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.zeros(5))


def header_only(shape, descr="<f4"):
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            header_only((2**40, 2**20)),
            "of float32 1099511627776x1048576 (4194304.0 TiB) is declared, but the file has 0 B of"
            " it; write it again",
        ),
        (header_only((-2, -2)) + bytes(16), "is declared, but"),
        (header_only((2**40, 0)), None),
        (header_only((3,)) + bytes(8), "float32 3 (12 B) is declared, but the file has 8 B of it"),
        (header_only((3,), "|O") + bytes(24), "it holds Python objects"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "version (3, 0) of its header is not known"),
        (b"\x93NUMPY\x01\x00\x05\x00nope!", "not a NumPy file, or damaged"),
        (b"", "not a NumPy file, or damaged"),
        (b"hello", "not a NumPy file, or damaged"),
    ],
)
def test_headers_that_cannot_be(tmp_path, data, message):
    (tmp_path / "a.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", data)
    if message is None:
        with open_array(tmp_path / "a.npy") as stored:
            assert stored.read().shape == (2**40, 0)
        return
    with pytest.raises(SpecError) as caught, open_array(tmp_path / "a.npy"):
        pass
    assert message in str(caught.value)
    with open_arrays(tmp_path / "a.npz", CalibrationError) as opened:
        with pytest.raises(CalibrationError) as caught:
            opened["a"]
        if data[:6] == b"\x93NUMPY":
            assert message in str(caught.value)
        else:
            assert caught.value.message == f"{tmp_path / 'a.npz'}: 'a' is not an array"


def test_what_does_not_fit_the_memory_is_refused(tmp_path, monkeypatch, inflated):
    np.savez(tmp_path / "a.npz", a=np.zeros(4000, np.float32))
    monkeypatch.setattr(arrays_module, "_physical_memory", lambda: 8192)
    with open_arrays(tmp_path / "a.npz") as opened:
        with pytest.raises(SpecError, match=r"float32 4000 \(15.6 KiB\) does not fit the 8.0 KiB"):
            opened["a"].read()
        assert inflated["a.npy"] < 200
        assert sum(map(len, opened["a"].pieces())) == 4000


def test_damaged_values(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(4000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with (
        pytest.raises(SpecError, match="not a NumPy file, or damaged"),
        open_arrays(tmp_path / "a.npz") as opened,
    ):
        opened["a"].read()


def test_kinds_of_files_are_told_apart(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    with (
        pytest.raises(SpecError, match="one array without a name"),
        open_arrays(tmp_path / "a.npy"),
    ):
        pass
    with pytest.raises(SpecError, match="several arrays by name"), open_array(tmp_path / "a.npz"):
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
    with pytest.raises(SpecError, match=message), open_arrays(path):
        pass


def test_members_that_are_not_arrays_or_have_one_name(tmp_path):
    stored = io.BytesIO()
    np.save(stored, np.arange(3))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("text.txt", "hello")
        archive.writestr("a.npy", stored.getvalue())
    with open_arrays(tmp_path / "a.npz") as opened:
        np.testing.assert_array_equal(opened["a"].read(), np.arange(3))
        with pytest.raises(SpecError, match=r"'text.txt' is not an array"):
            opened["text.txt"]
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("a", stored.getvalue())
    with (
        pytest.raises(SpecError, match="two arrays in it have the same name"),
        open_arrays(tmp_path / "a.npz"),
    ):
        pass


def test_floating_point_types():
    assert is_float(np.dtype(ml_dtypes.float8_e4m3fn))
    assert is_float(np.dtype(np.float16))
    assert not is_float(np.dtype(np.int64))
    assert not is_float(np.dtype(bool))
