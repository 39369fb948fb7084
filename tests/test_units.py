"""Sizes and durations as text."""

from __future__ import annotations

import pytest

from trt_native.errors import SpecError
from trt_native.units import format_bytes, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GiB", 8 * 1024**3),
        ("512 mib", 512 * 1024**2),
        ("2GB", 2_000_000_000),
        ("1.5kib", 1536),
        ("4096", 4096),
        (7, 7),
    ],
)
def test_sizes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "8 GiBs", "-1", "1e9", "8,5GiB", "0x10", "9" * 400])
def test_bad_sizes(text):
    with pytest.raises(SpecError, match="not a size"):
        parse_bytes(text)


def test_format_bytes_keeps_at_least_one_unit():
    assert [format_bytes(n) for n in (0, 1023, 1024, 1536 * 1024, 5 * 1024**4)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
        "5.0 TiB",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("0.5s", 0.5),
        ("15m", 900),
        ("1h30m", 5400),
        (" 1H 30M 1S ", 5401),
        ("30d", 2592000),
        ("2m5", 125),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0h", "-1s", "h", "1w", "30m1h", "1e3", "inf", "1:30"])
def test_bad_durations(text):
    with pytest.raises(SpecError, match="not a duration"):
        parse_duration(text)
