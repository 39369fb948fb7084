from __future__ import annotations

import json
from pathlib import Path

import pytest

from trt_native.config import (
    BuildConfig,
    CalibrationMethod,
    CalibrationRunner,
    HardwareCompatibility,
    IoPrecision,
    Precision,
    ProfilingVerbosity,
    QuantizationSpec,
    as_config,
)
from trt_native.errors import SpecError, UnsupportedError
from trt_native.shapes import ProfileSpec


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


def test_best_is_not_a_precision_of_one_plan():
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
        ({"workspace_bytes": 0}, "at least 1 MiB$"),
        ({"workspace_bytes": 8}, "at least 1 MiB; 8GiB?"),
        ({"workspace_bytes": 4096}, "at least 1 MiB; 4096MiB?"),
        ({"workspace_bytes": 2**63}, "at least 1 MiB$"),
        ({"precision": Precision.TF32, "tf32": False}, "contradicts"),
        ({"compute_capabilities": ("sm89",)}, "write it as"),
    ],
)
def test_a_build_config_checks_itself(options, message):
    with pytest.raises(SpecError, match=message):
        BuildConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp17"}, "precision: 'fp17' is none of: auto, fp32"),
        ({"precision": None}, "precision: None is none of"),
        ({"io_precision": "fp8"}, "io_precision: 'fp8' is none of: keep, fp32, fp16"),
        ({"break_fusions": 3}, "break_fusions: not a list of texts: 3"),
        ({"keep_fp32": {"a": 1}}, "keep_fp32: not a list of texts: "),
        ({"workspace_bytes": "8 apples"}, "workspace_bytes: not a size: '8 apples'"),
        ({"refit": "yes"}, "refit: neither True nor False: 'yes'"),
        ({"timing_cache": 3}, "timing_cache: not a text: 3"),
        ({"profiles": "batch=4"}, "profiles: not a list of ProfileSpec: 'batch=4'"),
        ({"quantization": None}, "quantization: not a QuantizationSpec: None"),
        ({"workspace_bytes": 2.0**30}, "workspace_bytes: not a whole number"),
        ({"optimization_level": True}, "optimization_level: not a whole number: True"),
        ({"max_aux_streams": "2"}, "max_aux_streams: not a whole number: '2'"),
    ],
    ids=str,
)
def test_values_of_other_types(options, message):
    with pytest.raises(SpecError, match=message) as caught:
        BuildConfig(**options)
    assert caught.value.options == tuple(options)


def test_a_plan_for_another_system_carries_no_lean_runtime():
    options = {"runtime_platform": "windows_amd64", "version_compatible": True}
    with pytest.raises(SpecError, match="cannot carry its lean runtime") as caught:
        BuildConfig(**options)
    assert caught.value.options == ("runtime_platform", "exclude_lean_runtime")
    found = BuildConfig(**options, exclude_lean_runtime=True)
    assert found.options()["runtime_platform"] == "windows_amd64"
    assert BuildConfig.from_options(found.options()) == found


def test_choices_may_be_texts_and_tuples_lists():
    spec = {"calibration_data": "d", "calibration_method": "MSE", "calibration_runner": "engine"}
    given = BuildConfig(
        precision="int8",
        io_precision="fp32",
        keep_fp32=["*/norm"],
        hardware_compatibility="ampere-plus",
        profiling_verbosity="none",
        quantization=QuantizationSpec(**spec, ops=["Conv"]),
    )
    assert given.precision is Precision.INT8
    assert given.io_precision is IoPrecision.FP32
    assert given.hardware_compatibility is HardwareCompatibility.AMPERE_PLUS
    assert given.profiling_verbosity is ProfilingVerbosity.NONE
    assert given.quantization.calibration_method is CalibrationMethod.MSE
    assert given.quantization.calibration_runner is CalibrationRunner.ENGINE
    assert (given.keep_fp32, given.quantization.ops) == (("*/norm",), ("Conv",))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"keep_fp32": "op:Gemm"}, {"keep_fp32": ("op:Gemm",)}),
        ({"workspace_bytes": "8GiB"}, {"workspace_bytes": 8 * 2**30}),
        ({"timing_cache": "t.cache"}, {"timing_cache": Path("t.cache")}),
        ({"fixed_inputs": "sr=16000"}, {"fixed_inputs": ("sr=16000",)}),
        ({"fast_at": "batch=2"}, {"fast_at": ("batch=2",)}),
        ({"fast_at": {"batch": 2, "x": (1, 8)}}, {"fast_at": ("batch=2,x=1x8",)}),
        ({"fast_at": [{"batch": 2}, "batch=4"]}, {"fast_at": ("batch=2", "batch=4")}),
        ({"compute_capabilities": "8.9"}, {"compute_capabilities": ("8.9",)}),
        ({"compute_capabilities": 12.0}, {"compute_capabilities": ("12.0",)}),
        ({"compute_capabilities": (8, 9)}, {"compute_capabilities": ("8.9",)}),
        ({"compute_capabilities": [(8, 6), 8.9]}, {"compute_capabilities": ("8.6", "8.9")}),
        (
            {"profiles": {"dims": {"b": "1:2:4"}}},
            {"profiles": (ProfileSpec.parse(["b=1:2:4"]),)},
        ),
        (
            {"profiles": ProfileSpec.parse(["b=4"])},
            {"profiles": (ProfileSpec.parse(["b=4"]),)},
        ),
        (
            {"precision": "int8-weights", "quantization": {"ops": "Conv,Gemm"}},
            {
                "precision": Precision.INT8_WEIGHTS,
                "quantization": QuantizationSpec(ops=("Conv", "Gemm")),
            },
        ),
    ],
    ids=str,
)
def test_values_as_they_are_typed(given, meant):
    assert BuildConfig(**given) == BuildConfig(**meant) == as_config(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workspace": "8GiB"}, "no option workspace; did you mean workspace_bytes?"),
        ({"precison": "fp16"}, "no option precison; did you mean precision?"),
        ({"min_coverage": 0.5}, r"one of quantization=QuantizationSpec\(min_coverage=...\)"),
        ({"zzz": 1}, "BuildConfig has no option zzz$"),
    ],
    ids=str,
)
def test_unknown_names(options, message):
    with pytest.raises(SpecError, match=message):
        BuildConfig(**options)
    with pytest.raises(SpecError, match="by name"):
        BuildConfig("fp16")
    with pytest.raises(SpecError, match="not a BuildConfig: 'fp16'"):
        as_config("fp16")


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
    marked = BuildConfig(refit_weights="*.bias").options()
    assert marked == {"refit": True, "refit_weights": ["*.bias"]}
    assert BuildConfig.from_options(marked) == BuildConfig(refit_weights=("*.bias",))
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
