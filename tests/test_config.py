from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_native.config import (
    BuildConfig,
    HardwareCompatibility,
    IoPrecision,
    Precision,
    ProfilingVerbosity,
    QuantizationSpec,
)
from trt_native.errors import SpecError, UnsupportedError
from trt_native.shapes import DimRange, ProfileSpec, ShapeRange, parse_shape
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


@pytest.mark.parametrize(
    ("text", "shape"),
    [("1x3x8x8", (1, 3, 8, 8)), ("scalar", ()), ("", ()), ("0x4", (0, 4)), ("2,3", (2, 3))],
)
def test_shapes(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["1x-3", "1xx3", "axb", "1x3x", "1.5x2"])
def test_bad_shapes(text):
    with pytest.raises(SpecError, match="not a shape"):
        parse_shape(text)


@given(st.lists(st.tuples(*[st.integers(0, 99)] * 3).map(sorted), min_size=1, max_size=5))
def test_ranges_survive_their_text(axes):
    low, best, high = (tuple(axis[i] for axis in axes) for i in range(3))
    shapes = ShapeRange(low, best, high)
    assert ShapeRange.parse(str(shapes)) == shapes
    dim = DimRange(*axes[0])
    assert DimRange.parse(str(dim)) == dim


@given(st.text(max_size=12))
def test_parsers_answer_any_text_with_a_value_or_a_spec_error(text):
    for parse in (DimRange.parse, ShapeRange.parse, parse_bytes, parse_shape, Precision.parse):
        with contextlib.suppress(SpecError, UnsupportedError):
            parse(text)


@pytest.mark.parametrize("text", ["2:1:3", "1:4:3", "1:2", "1:2:3:4", "a", "-1", ""])
def test_bad_dim_ranges(text):
    with pytest.raises(SpecError):
        DimRange.parse(text)


def test_a_shape_range_needs_one_rank_and_order_on_every_axis():
    with pytest.raises(SpecError, match="ranks differ"):
        ShapeRange.parse("1x3:2x3:2x3x3")
    with pytest.raises(SpecError, match="not ordered"):
        ShapeRange.parse("1x3:2x2:2x3")


def test_contains():
    shapes = ShapeRange.parse("1x3:2x3:4x3")
    assert shapes.contains((1, 3))
    assert shapes.contains((4, 3))
    assert not shapes.contains((5, 3))
    assert not shapes.contains((2, 4))
    assert not shapes.contains((2,))


def test_profile_entries_are_checked_together():
    with pytest.raises(SpecError) as caught:
        ProfileSpec.parse(dims=["batch=2:1:1", "frames", "h=1:2:3"], shapes=["x=1y2"])
    assert "batch" in str(caught.value)
    assert "'frames'" in str(caught.value)
    assert "x: " in str(caught.value)
    assert "h" not in caught.value.details


def test_the_name_of_an_expression_may_hold_an_equals_sign():
    spec = ProfileSpec.parse(dims=["a==b=1:2:3"])
    assert spec.dims == {"a==b": DimRange(1, 2, 3)}


def test_later_profile_entries_win():
    first = ProfileSpec.parse(dims=["a=1", "b=2"], shapes=["x=1x1"])
    later = ProfileSpec.parse(dims=["b=3"])
    merged = first.overridden_by(later)
    assert merged.dims == {"a": DimRange(1, 1, 1), "b": DimRange(3, 3, 3)}
    assert merged.shapes == first.shapes


def test_precisions():
    assert Precision.parse("FP16") is Precision.FP16
    assert HardwareCompatibility.parse("ampere-plus") is HardwareCompatibility.AMPERE_PLUS
    with pytest.raises(SpecError, match="none of: auto, fp32, tf32, fp16, bf16"):
        Precision.parse("half")


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("INT8", Precision.INT8),
        ("fp8", Precision.FP8),
        ("int8-weights", Precision.INT8_WEIGHTS),
        ("int8_weights", Precision.INT8_WEIGHTS),
    ],
)
def test_quantized_precisions(text, precision):
    assert Precision.parse(text) is precision
    assert precision.quantized
    assert str(precision) == text.lower().replace("_", "-")


def test_best_is_no_precision_of_one_plan():
    with pytest.raises(UnsupportedError, match="a choice between plans: use trt_native"):
        Precision.parse("best")


@pytest.mark.parametrize("name", ["int4", "FP4"])
def test_precisions_that_nothing_is_quantized_to_are_refused_by_name(name):
    with pytest.raises(UnsupportedError, match=f"precision {name} is not available"):
        Precision.parse(name)


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("int8", {"min_coverage": 1.5}, "minimum coverage 1.5: it is a share from 0 to 1"),
        (
            "int8",
            {"ops": ("Conv", "Relu")},
            "operators to quantize: Relu; choose from Conv, MatMul",
        ),
        (
            "int8",
            {"calibration_cache": "x", "calibration_runner": "engine"},
            "no effect without calibration data",
        ),
        (
            "int8",
            {"calibration_data": "x", "calibration_memory_bytes": 0},
            "memory of 0 bytes: it must be positive",
        ),
        ("fp16", {"exclude": ("x",), "ops": ("Conv",)}, "ops, exclude: no effect at precision"),
        (
            "int8-weights",
            {"calibration_cache": "x"},
            "no effect at precision int8-weights, which needs no",
        ),
    ],
)
def test_a_quantization_that_contradicts_itself(precision, options, message):
    with pytest.raises(SpecError, match=message):
        BuildConfig(precision=Precision(precision), quantization=QuantizationSpec(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 6}, "0 to 5"),
        ({"max_aux_streams": -1}, "negative"),
        ({"workspace_bytes": 0}, "positive"),
        ({"precision": Precision.TF32, "tf32": False}, "contradicts"),
        ({"compute_capabilities": ("sm89",)}, "write it as"),
    ],
)
def test_a_build_config_checks_itself(options, message):
    with pytest.raises(SpecError, match=message):
        BuildConfig(**options)


def test_tf32_is_allowed_except_in_fp32():
    assert BuildConfig().allows_tf32
    assert BuildConfig(precision=Precision.TF32).allows_tf32
    assert not BuildConfig(precision=Precision.FP32).allows_tf32
    assert BuildConfig(precision=Precision.FP32, tf32=True).allows_tf32


def test_options_lists_only_what_was_chosen():
    profile = ProfileSpec.parse(dims=["batch=1:2:2"])
    config = BuildConfig(profiles=(profile,), precision=Precision.FP16, refit=True)
    assert config.options() == {
        "profiles": [{"dims": {"batch": "1:2:2"}, "shapes": {}}],
        "precision": "fp16",
        "refit": True,
    }
    assert BuildConfig().options() == {}
    spec = QuantizationSpec(calibration_cache=Path("m.calib"), exclude=("a*",))
    assert BuildConfig(precision=Precision.FP8, quantization=spec).options() == {
        "precision": "fp8",
        "quantization": {"calibration_cache": "m.calib", "exclude": ["a*"]},
    }


def test_options_are_read_back():
    config = BuildConfig(
        profiles=(
            ProfileSpec.parse(["batch=1:2:4"], ["x=1x3:2x3:4x3"]),
            ProfileSpec.parse(["b=8"]),
        ),
        precision=Precision.INT8,
        io_precision=IoPrecision.FP16,
        keep_fp32=("*/norm*", "op:Resize"),
        quantization=QuantizationSpec(
            calibration_cache=Path("a b/c.cache"), ops=("MatMul",), exclude=("x",), min_coverage=0.5
        ),
        workspace_bytes=1 << 30,
        optimization_level=2,
        tf32=False,
        refit=True,
        compute_capabilities=("8.6", "8.9"),
        timing_cache=Path("t"),
        profiling_verbosity=ProfilingVerbosity.NONE,
    )
    options = json.loads(json.dumps(config.options()))
    assert BuildConfig.from_options(options) == config
    assert BuildConfig.from_options({}) == BuildConfig()


@pytest.mark.parametrize(
    "options", [{"novelty": 1}, {"precision": "fp15"}, {"profiles": 3}, {"workspace_bytes": "x"}]
)
def test_options_that_cannot_be_read(options):
    with pytest.raises(SpecError):
        BuildConfig.from_options(options)
