"""Refitting up to the point where a GPU is needed; tests/gpu/test_refit_gpu.py goes on."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.passes import pass_records
from onnx import numpy_helper
from typer.testing import CliRunner

from trt_native import BuildConfig, Precision, ProfileSpec, build_plan, refit_plan
from trt_native.backends import rtx
from trt_native.backends.registry import load_backend
from trt_native.builder.build import lower, prepare, refit_record
from trt_native.calibration.caches import CalibrationCache
from trt_native.cli.app import app
from trt_native.config import CalibrationRunner, IoPrecision, QuantizationSpec
from trt_native.cuda import gpu_info
from trt_native.errors import (
    BuildError,
    CalibrationError,
    CudaError,
    PlanError,
    SpecError,
    TrtNativeError,
    UnsupportedError,
)
from trt_native.graph.onnx_file import read_model
from trt_native.graph.refit_signature import refit_signature

pytestmark = pytest.mark.backend
PROFILE = ProfileSpec.parse(["batch=1:2:4"])


def as_refittable(model, config, backend="auto", **options):
    """A plan as a machine with a GPU would have built it, as far as its manifest shows."""
    plan = build_plan(model, config, backend=backend)
    prepared = prepare(model, config, backend=backend)
    with lower(prepared) as lowered:
        weights = asdict(refit_signature(read_model(lowered.path)))
    options = {**plan.manifest.options, **(options or {"refit": True})}
    manifest = dataclasses.replace(plan.manifest, options=options, refit=weights)
    return dataclasses.replace(plan, manifest=manifest)


def changed(path, edit, source=None):
    """A copy of the model with its weights edited: ``edit(name, array)`` gives the new one."""
    model = onnx.load(source)
    for weight in model.graph.initializer:
        array = edit(weight.name, numpy_helper.to_array(weight))
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, path)
    return path


def reaches_the_gpu(plan, model, **options):
    """All checks passed: what is missing is a GPU, or a plan that TensorRT can refit."""
    with pytest.raises((CudaError, PlanError)) as caught:
        refit_plan(plan, model, **options)
    if gpu_info() is None:
        assert isinstance(caught.value, CudaError)
    else:
        assert "no refitter" in str(caught.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model = tiny_models.norm(tmp_path_factory.mktemp("refit") / "m.onnx")
    return model, as_refittable(model, BuildConfig(profiles=(PROFILE,)))


def test_new_values_fit(made, tmp_path):
    model, plan = made
    reaches_the_gpu(plan, model)
    reaches_the_gpu(plan, changed(tmp_path / "n.onnx", lambda _, a: a * 2, model))


def test_dimensions_may_have_other_names(made, tmp_path):
    model, plan = made
    other = onnx.load(model)
    for value in (*other.graph.input, *other.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(other, tmp_path / "n.onnx")
    reaches_the_gpu(plan, tmp_path / "n.onnx")


@pytest.mark.parametrize(
    ("make", "profiles"),
    [
        (tiny_models.reshape_by_input, [ProfileSpec.parse(["n=2:8:32"], ["shape=1x2:2x4:4x8"])]),
        (
            tiny_models.conv,
            [ProfileSpec.parse([f"batch={n}", "height=8", "width=8"]) for n in "12"],
        ),
        (tiny_models.conv, [ProfileSpec.parse(["batch=1", "height=8", "width=8"])]),
        (tiny_models.conv, [ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"])] * 2),
        (tiny_models.coupled, [ProfileSpec.parse(["batch=1:2:4", "frames=3"])]),
        (tiny_models.external_weights, []),
    ],
    ids=range(6),
)
def test_profiles_of_every_kind(tmp_path, make, profiles):
    model = make(tmp_path / "m.onnx")
    reaches_the_gpu(as_refittable(model, BuildConfig(profiles=tuple(profiles))), model)


def test_the_plan_was_rewritten_and_so_is_the_model(made):
    _, plan = made
    kinds = {name: text.split()[0] for name, text in plan.manifest.refit["weights"].items()}
    assert kinds == {"w": "float16", "scale": "float32", "bias": "float32"}


def test_split_weights_are_refitted(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    model = tiny_models.norm(tmp_path / "m.onnx")
    config = BuildConfig(profiles=(PROFILE,), precision=Precision.FP32)
    plan = as_refittable(model, config, backend="rtx")
    old = plan.manifest.refit["weights"]
    assert set(old) == {"w__split", "scale", "bias"}
    new = changed(tmp_path / "n.onnx", lambda name, a: a * 3 if name == "w" else a, model)
    again = as_refittable(new, config, backend="rtx").manifest.refit["weights"]
    assert {name for name in old if old[name] != again[name]} == {"w__split"}
    reaches_the_gpu(plan, new)
    whole = as_refittable(
        model, dataclasses.replace(config, compute_capabilities=("7.5",)), backend="rtx"
    )
    assert set(whole.manifest.refit["weights"]) == {"w", "scale", "bias"}
    reaches_the_gpu(whole, new)


@pytest.mark.parametrize(
    "config",
    [
        BuildConfig(profiles=(PROFILE,), precision=Precision.FP32),
        BuildConfig(profiles=(PROFILE,), precision=Precision.BF16),
        BuildConfig(profiles=(PROFILE,), io_precision=IoPrecision.FP16),
        BuildConfig(profiles=(PROFILE,), keep_fp32=("/matmul",), tf32=False),
        BuildConfig(profiles=(PROFILE,), precision=Precision.INT8_WEIGHTS),
        BuildConfig(
            profiles=(PROFILE,),
            precision=Precision.INT8_WEIGHTS,
            quantization=QuantizationSpec(ops=("MatMul",), min_coverage=0.5),
        ),
        BuildConfig(profiles=(PROFILE,), precision=Precision.INT4_WEIGHTS),
    ],
    ids=range(7),
)
def test_every_way_of_rewriting_is_repeated(tmp_path, config):
    model = tiny_models.norm(tmp_path / "m.onnx", width=32)
    plan = as_refittable(model, config)
    reaches_the_gpu(plan, changed(tmp_path / "n.onnx", lambda _, a: a * 2, model))


def test_sample_inputs_show_the_magnitudes_of_the_new_model_too(tmp_path):
    model = tiny_models.norm(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 16), np.float32))
    spec = QuantizationSpec(
        calibration_data=str(tmp_path / "x.npz"), calibration_runner=CalibrationRunner.REFERENCE
    )
    config = BuildConfig(profiles=(PROFILE,), precision=Precision.FP16, quantization=spec)
    plan = as_refittable(model, config)
    assert pass_records(plan.manifest)["autocast"]["measured"]["batches"] == 1
    reaches_the_gpu(plan, changed(tmp_path / "n.onnx", lambda _, a: a * 2, model))
    (tmp_path / "x.npz").unlink()
    with pytest.raises(CalibrationError, match="no such calibration data"):
        refit_plan(plan, model)


def test_int4_weights_are_fitted_again(tmp_path):
    model = tiny_models.norm(tmp_path / "m.onnx", width=32)
    x = np.random.default_rng(0).standard_normal((20, 32), np.float32)
    np.savez(tmp_path / "x.npz", x=x * np.where(np.arange(32) % 5, 1, 30).astype(np.float32))
    spec = QuantizationSpec(
        calibration_data=str(tmp_path / "x.npz"), calibration_runner=CalibrationRunner.REFERENCE
    )
    config = BuildConfig(profiles=(PROFILE,), precision=Precision.INT4_WEIGHTS, quantization=spec)
    plan = as_refittable(model, config)
    assert pass_records(plan.manifest)["quantize"]["calibration"]["method"] == "awq"
    reaches_the_gpu(plan, changed(tmp_path / "n.onnx", lambda _, a: a * 2, model))
    (tmp_path / "x.npz").unlink()
    with pytest.raises(CalibrationError, match="no such calibration data"):
        refit_plan(plan, model)


def test_int8_needs_the_ranges_of_the_new_model(tmp_path):
    model = tiny_models.norm(tmp_path / "m.onnx")
    cache = tmp_path / "ranges.cache"
    scales = {"x": 0.5, "n": 0.25, "m": 1.0, "y": 0.5}
    CalibrationCache("TRT-101600-EntropyCalibration2", scales).save(cache)
    spec = QuantizationSpec(calibration_cache=cache)
    config = BuildConfig(profiles=(PROFILE,), precision=Precision.INT8, quantization=spec)
    plan = as_refittable(model, config)
    with pytest.raises(SpecError, match="give a calibration cache of the new model too"):
        refit_plan(plan, model)
    reaches_the_gpu(plan, model, calibration_cache=cache)
    calibrated = {**plan.manifest.precision, "calibrated": {"by": "TensorRT 10.16"}}
    manifest = dataclasses.replace(plan.manifest, precision=calibrated)
    with pytest.raises(UnsupportedError, match="found by TensorRT's calibrator"):
        refit_plan(dataclasses.replace(plan, manifest=manifest), model, calibration_cache=cache)


def test_all_weights_that_do_not_fit_are_listed(made, tmp_path):
    model, plan = made
    other = onnx.load(model)
    kinds = {w.name: w for w in other.graph.initializer}
    weights = np.arange(256, dtype=np.float32).reshape(16, 16, 1)
    kinds["w"].CopyFrom(numpy_helper.from_array(weights, "w"))
    kinds["bias"].name = other.graph.node[0].input[2] = "beta"
    onnx.save(other, tmp_path / "n.onnx")
    with pytest.raises(SpecError, match="do not fit the plan") as caught:
        refit_plan(plan, tmp_path / "n.onnx")
    text = str(caught.value)
    assert "'w' is float16 16x16x1 in n.onnx, the plan needs float16 16x16" in text
    assert "'bias' (float32 16) is missing in n.onnx" in text
    assert "'beta' (float32 16) is unknown to the plan" in text


def test_another_interface_is_told_before_shapes_are_resolved(made, tmp_path):
    _, plan = made
    with pytest.raises(SpecError, match="not of the plan's architecture") as caught:
        refit_plan(plan, tiny_models.conv(tmp_path / "c.onnx"))
    assert caught.value.problems == (
        "input x: float32(batch, 3, height, width) does not have the plan's shape batch x 16",
        "output y: float32(batch, 8, height, width) does not have the plan's shape batch x 16",
    )


def test_a_stripped_plan_takes_its_own_weights_alone(made, tmp_path):
    model, plan = made
    options = {**plan.manifest.options, "strip_weights": True}
    both = dataclasses.replace(plan.manifest, options=options)
    alone = dataclasses.replace(
        plan.manifest, options={k: v for k, v in options.items() if k != "refit"}
    )
    new = changed(tmp_path / "n.onnx", lambda name, a: a * 2 if name == "w" else a, model)
    reaches_the_gpu(dataclasses.replace(plan, manifest=both), new)
    reaches_the_gpu(dataclasses.replace(plan, manifest=alone), model)
    with pytest.raises(SpecError, match="built as refittable too") as caught:
        refit_plan(dataclasses.replace(plan, manifest=alone), new)
    assert caught.value.problems == ("'w'",)


def test_patterns_name_weights_of_the_model(made):
    """Also where the graph that TensorRT parses has other weights, made of them."""
    model, _ = made
    pytest.importorskip("tensorrt_rtx")
    config = BuildConfig(profiles=(PROFILE,), precision=Precision.FP32)
    prepared = prepare(model, config, backend="rtx")
    with lower(prepared) as lowered:
        record = refit_record(prepared, lowered, read_model(lowered.path))
    marked = record.marking(("w", "b?as"))
    assert marked.marked == {"w__split", "bias"}
    assert marked.unmarked(frozenset({"w__split", "scale", "bias"})) == ["scale"]
    with pytest.raises(
        SpecError, match=r"pattern 'scales' .* matches none of the model's 3; close:"
    ):
        record.marking(("w", "scales"))


@pytest.mark.parametrize("fixed", [False, True])
def test_scales_of_instance_norms_are_marked_where_builds_need_it(tmp_path, monkeypatch, fixed):
    model = tiny_models.group_norm_between_products(tmp_path / "m.onnx")
    pytest.importorskip("tensorrt_rtx")
    backend = load_backend("rtx")
    assert not backend.capabilities.fixed_norm_scales
    capabilities = dataclasses.replace(backend.capabilities, fixed_norm_scales=fixed)
    monkeypatch.setattr(backend, "capabilities", capabilities)
    monkeypatch.setattr(rtx, "gpu_info", object)  # it is not asked for more
    requests = []

    def stop(request, *_):
        requests.append(request)
        raise BuildError("stopped")

    monkeypatch.setattr(backend, "build", stop)
    with pytest.raises(BuildError, match="stopped"):
        build_plan(model, BuildConfig(precision="fp32", refit_weights="norm.w*"), backend=backend)
    assert requests[0].refit_weights == {"norm.weight"} | (set() if fixed else {"ones"})


def test_weights_that_are_not_marked_are_kept(made, tmp_path):
    model, plan = made
    with_marks = {**plan.manifest.refit, "marked": ["w"]}
    plan = dataclasses.replace(plan, manifest=dataclasses.replace(plan.manifest, refit=with_marks))
    reaches_the_gpu(
        plan, changed(tmp_path / "w.onnx", lambda n, a: a * 2 if n == "w" else a, model)
    )
    others = changed(tmp_path / "n.onnx", lambda n, a: a + 2, model)
    with pytest.raises(SpecError, match="weights that the plan was built to keep") as caught:
        refit_plan(plan, others)
    assert caught.value.problems == ("'bias'", "'scale'")


@pytest.mark.parametrize(
    "refit",
    [
        {"sources": {"w": {"weight": 1, "split": {}}}, "rewritten": {}, "constants": []},
        {"sources": {"v": {"weight": "w"}}, "rewritten": {}, "constants": []},
        {"sources": [], "rewritten": {}, "constants": []},
        {"rewritten": {}},
        {"marked": 1},
    ],
)
def test_records_nobody_wrote(made, refit):
    model, plan = made
    manifest = dataclasses.replace(plan.manifest, refit={**plan.manifest.refit, **refit})
    with pytest.raises(PlanError, match="malformed manifest: refit"):
        refit_plan(dataclasses.replace(plan, manifest=manifest), model)


def test_plans_that_cannot_be_refitted(made):
    model, plan = made
    bare = dataclasses.replace(plan.manifest, options={})
    old = dataclasses.replace(plan.manifest, refit=None)
    for manifest, message in (
        (None, "has no manifest"),
        (bare, "not built as refittable"),
        (old, "did not record the weights"),
    ):
        with pytest.raises(PlanError, match=message):
            refit_plan(dataclasses.replace(plan, manifest=manifest), model)


def test_a_plan_of_another_version_is_refused_before_the_work(made):
    model, plan = made
    data = bytearray(plan.data)
    data[25] += 1
    with pytest.raises(PlanError, match="cannot be refitted here: the plan was built by"):
        refit_plan(dataclasses.replace(plan, data=bytes(data)), model)


@pytest.mark.parametrize(
    "options",
    [
        {"refit": True, "precision": "fp15"},
        {"refit": True, "novelty": 1},
        {"refit": True, "profiles": [{"dims": {"batch": "4:2"}}]},
        {"refit": True, "profiles": 7},
        {"refit": True, "quantization": {"ops": ["Cat"]}, "precision": "int8-weights"},
    ],
)
def test_options_nobody_wrote(made, options):
    model, plan = made
    manifest = dataclasses.replace(plan.manifest, options=options)
    with pytest.raises(TrtNativeError):
        refit_plan(dataclasses.replace(plan, manifest=manifest), model)


def command(*arguments):
    result = CliRunner().invoke(app, ["refit", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_bad_input_of_the_command_leaves_nothing(made, tmp_path):
    model, plan = made
    source = plan.save(tmp_path / "m.plan")
    target = tmp_path / "out" / "n.plan"
    target.parent.mkdir()
    empty = tmp_path / "empty.onnx"
    empty.touch()
    for arguments, message in (
        ((tmp_path / "none.plan", "--from", model, "-o", target), "none.plan"),
        ((source, "--from", tmp_path / "none.onnx", "-o", target), "none.onnx"),
        ((source, "--from", empty, "-o", target), "is empty"),
        ((source, "--from", source, "-o", target), "not an ONNX file"),
        ((model, "--from", model, "-o", target), "not a TensorRT plan"),
        ((source, "--from", model, "-o", tmp_path), "it is a folder"),
        ((source, "--from", model, "-o", target / "x"), "cannot write"),
        ((source, "--from", model, "-o", target, "--calibration-cache", empty), "has no effect"),
    ):
        result = command(*arguments)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert message in result.stderr
    assert list(target.parent.iterdir()) == []
