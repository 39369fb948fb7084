"""TensorRT's calibration cache, byte for byte, and the JSON file next to it."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from dataclasses import replace

import pytest
from helpers import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from trt_native.calibration.caches import CalibrationCache, Provenance, TensorRange, cache_header
from trt_native.errors import CalibrationError, SpecError
from trt_native.graph.onnx_file import hash_files, read_model

HEADER = "TRT-101601-EntropyCalibration2"
TEXT = (
    b"TRT-8601-EntropyCalibration2\n"
    b"latents: 3c010a14\n"
    b"/down/conv: 0: output: 4000890a\n"
    b"(Unnamed Layer* 9) [Constant]_output: 3f800000\n"
    b"\xc3\xa9tage\x0b\xe2\x80\xa8: 00000001\n"
    b": 3f000000\n"
)


def provenance(**changes):
    return replace(
        Provenance(
            producer="trt-native 0.1.0",
            model={
                "file": "m.onnx",
                "bytes": 3,
                "sha256": "a" * 64,
                "external": [{"file": "w", "bytes": 1, "sha256": "b" * 64}],
            },
            method="entropy",
            runner="onnx.reference",
            batches=2,
            shapes={"x": ("1x3x8x8", "2x3x8x8")},
            ranges={"x": TensorRange(amax=2.0, threshold=1.27), "a": TensorRange(0.5, 0.5)},
            skipped={"z": "holds nothing but zeros"},
            created="2025-01-01T00:00:00+00:00",
        ),
        **changes,
    )


def test_bytes_go_round(tmp_path):
    path = tmp_path / "m.calib"
    path.write_bytes(TEXT)
    cache = CalibrationCache.load(path)
    assert cache.header == "TRT-8601-EntropyCalibration2"
    assert cache.scales == {
        "latents": struct.unpack(">f", bytes.fromhex("3c010a14"))[0],
        "/down/conv: 0: output": struct.unpack(">f", bytes.fromhex("4000890a"))[0],
        "(Unnamed Layer* 9) [Constant]_output": 1.0,
        "étage\x0b\u2028": 2.0**-149,
        "": 0.5,
    }
    assert cache.provenance is None
    cache.save(tmp_path / "again.calib")
    assert (tmp_path / "again.calib").read_bytes() == TEXT


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))
SCALES = st.floats(0, exclude_min=True, width=32, allow_infinity=False)


@given(st.dictionaries(NAMES, SCALES))
def test_every_cache_goes_round(scales):
    cache = CalibrationCache(HEADER, scales)
    assert CalibrationCache.parse(cache.to_bytes()) == cache
    assert list(CalibrationCache.parse(cache.to_bytes()).scales) == list(scales)


def test_a_missing_last_line_end_is_added():
    assert CalibrationCache.parse(TEXT[:-1]).to_bytes() == TEXT


def test_a_cache_without_entries():
    assert CalibrationCache.parse(f"{HEADER}\n".encode()).scales == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"b: 7fc00000", "line 3: scale of 'b' is not finite"),
        (b"b: ffc00001", "line 3: scale of 'b' is not finite"),
        (b"b: 7f800000", "line 3: scale of 'b' is not finite"),
        (b"b: 00000000", "line 3: scale of 'b' is not above 0"),
        (b"b: 80000000", "line 3: scale of 'b' is not above 0"),
        (b"b: bf800000", "line 3: scale of 'b' is not above 0"),
        (b"b: 3F800000", "line 3: 'b: 3F800000' is not a name"),
        (b"b: 3f8000", "line 3"),
        (b"b: 3f8000000", "line 3"),
        (b"b: 0x3f8000", "line 3"),
        (b"b:3f800000", "line 3"),
        (b"b: 3f800000\r", "line 3"),
        (b"b: 3f800000 ", "line 3"),
        (b"", "line 3: ''"),
        (b"a: 3f800000", "line 3: a second scale of 'a'"),
        (b"\xff: 3f800000", "it is not text"),
    ],
)
def test_a_damaged_line(line, message, tmp_path):
    path = tmp_path / "m.calib"
    path.write_bytes(f"{HEADER}\na: 3f800000\n".encode() + line + b"\nc: 3f800000\n")
    with pytest.raises(CalibrationError, match=message) as caught:
        CalibrationCache.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"hello\n", b"a: 3f800000\n", b"TRT-\n", b"\x08\x0a\x12" * 50]
)
def test_what_is_no_cache(content):
    with pytest.raises(CalibrationError, match="not a calibration cache"):
        CalibrationCache.parse(content)


def test_every_truncation_is_an_error_or_whole_entries():
    entries = list(CalibrationCache.parse(TEXT).scales)
    for length in range(len(TEXT)):
        try:
            found = list(CalibrationCache.parse(TEXT[:length]).scales)
        except CalibrationError:
            continue
        assert found == entries[: len(found)]
        assert TEXT[length:].startswith(b"\n") or TEXT[:length].endswith(b"\n") or not found


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("a", math.nan, "not finite"),
        ("a", 0.0, "not above 0"),
        ("a", -1.0, "not above 0"),
        ("a", 0.1, "not a float32"),
        ("a", 1e39, "not a float32"),
        ("a\nb", 1.0, "line ends"),
    ],
)
def test_what_a_cache_cannot_hold(name, scale, message):
    with pytest.raises(CalibrationError, match=message):
        CalibrationCache(HEADER, {name: scale})


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("10.16.1", "TRT-101601-EntropyCalibration2"),
        ("10.16.1.11", "TRT-101601-EntropyCalibration2"),
        ("10.3.0", "TRT-100300-EntropyCalibration2"),
        ("10.9", "TRT-100900-EntropyCalibration2"),
        ("8.6.1", "TRT-8601-EntropyCalibration2"),
    ],
)
def test_headers(version, expected):
    assert cache_header(version) == expected


def test_header_of_the_min_max_calibrator():
    assert cache_header("10.16.1", "MinMaxCalibration") == "TRT-101601-MinMaxCalibration"


@pytest.mark.parametrize("version", ["", "ten", "10", "10.", "10.x", "v10.1", "11.0.0"])
def test_versions_without_a_header(version):
    with pytest.raises(SpecError, match=r"not a version of TensorRT|10 was the last"):
        cache_header(version)


def test_another_header_keeps_the_entries():
    cache = replace(CalibrationCache.parse(TEXT), header=HEADER)
    assert cache.to_bytes() == HEADER.encode() + TEXT[TEXT.index(b"\n") :]
    with pytest.raises(CalibrationError, match="header"):
        replace(cache, header="hello")


def test_scales_are_float32_of_threshold_over_127():
    cache = CalibrationCache.from_ranges(
        HEADER, provenance(ranges={"x": TensorRange(1.0, 2048.5 / 2048)})
    )
    assert cache.to_bytes() == f"{HEADER}\nx: 3c010a14\n".encode()
    assert cache.threshold("x") == pytest.approx(2048.5 / 2048, rel=1e-7)
    assert cache.amax("x") == 1.0
    assert cache.amax("y") is None
    assert CalibrationCache.parse(cache.to_bytes()).amax("x") is None


@pytest.mark.parametrize("bound", [1e-44, 1e41, math.inf, math.nan])
def test_ranges_without_a_scale(bound):
    with pytest.raises(CalibrationError, match="the range of 'x'"):
        CalibrationCache.from_ranges(HEADER, provenance(ranges={"x": TensorRange(bound, bound)}))


def test_provenance_goes_round(tmp_path):
    path = tmp_path / "m.calib"
    cache = CalibrationCache.from_ranges(HEADER, provenance())
    cache.save(path)
    assert sorted(os.listdir(tmp_path)) == ["m.calib", "m.calib.json"]
    assert CalibrationCache.load(path) == cache
    data = json.loads((tmp_path / "m.calib.json").read_text())
    assert next(iter(data)) == "schema"
    assert data["ranges"]["x"] == {"amax": 2.0, "threshold": 1.27}
    # Another TensorRT's header does not make other scales.
    replaced = path.read_bytes().replace(b"TRT-101601", b"TRT-8601")
    path.write_bytes(replaced)
    assert CalibrationCache.load(path).provenance == cache.provenance


def test_saving_without_provenance_removes_a_stale_one(tmp_path):
    path = CalibrationCache.from_ranges(HEADER, provenance()).save(tmp_path / "m.calib")
    CalibrationCache.parse(TEXT).save(path)
    assert os.listdir(tmp_path) == ["m.calib"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "schema 'list'"),
        ('{"schema": 99}', "schema 99, this version reads 1"),
        ('{"schema": 1}', "malformed provenance: KeyError: 'producer'"),
    ],
)
def test_damaged_provenance(content, message, tmp_path):
    path = CalibrationCache.from_ranges(HEADER, provenance()).save(tmp_path / "m.calib")
    (tmp_path / "m.calib.json").write_text(content)
    with pytest.raises(CalibrationError, match=message) as caught:
        CalibrationCache.load(path)
    assert "delete it or calibrate again" in str(caught.value)


@pytest.mark.parametrize("field", ["model", "shapes", "ranges"])
@pytest.mark.parametrize("value", [None, 3, {"x": 3}])
def test_malformed_fields_of_provenance(field, value):
    data = {**provenance().to_json(), field: value}
    with pytest.raises(CalibrationError, match="malformed provenance"):
        Provenance.from_json(data)


def test_provenance_of_other_scales(tmp_path):
    path = CalibrationCache.from_ranges(HEADER, provenance()).save(tmp_path / "m.calib")
    path.write_bytes(TEXT)
    with pytest.raises(CalibrationError, match=r"not those that m\.calib\.json describes"):
        CalibrationCache.load(path)


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    path = CalibrationCache.from_ranges(HEADER, provenance()).save(tmp_path / "m.calib")
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CalibrationError, match="No space left on device; no partial file"):
        CalibrationCache.parse(TEXT).save(path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(CalibrationError, match=r"cannot read .*: No such file"):
        CalibrationCache.load(tmp_path / "m.calib")
    with pytest.raises(CalibrationError, match=r"cannot write .*: No such file"):
        CalibrationCache.parse(TEXT).save(tmp_path / "missing" / "m.calib")


def test_a_cache_of_another_model(tmp_path):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    files = hash_files(path, read_model(path))
    cache = CalibrationCache.from_ranges(HEADER, provenance(model=files))
    cache.check_model(files)
    moved = path.rename(tmp_path / "n.onnx")
    cache.check_model(hash_files(moved, read_model(moved)))
    CalibrationCache.parse(TEXT).check_model(files)
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    with pytest.raises(CalibrationError, match=r"made for another model: m\.onnx"):
        cache.check_model(hash_files(moved, read_model(moved)))
