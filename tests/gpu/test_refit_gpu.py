"""Refitted plans against plans built from the same weights, on a GPU."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.tolerances import FP32_PRODUCTS
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from typer.testing import CliRunner

from trt_native import BuildConfig, Plan, Precision, ProfileSpec, Session, build_plan, refit_plan
from trt_native.cli.app import app
from trt_native.errors import BuildError, PlanError, SpecError

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

PROFILE = ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"])
X = np.random.default_rng(1).standard_normal((2, 3, 8, 8), np.float32)


def config(**options):
    return BuildConfig(
        profiles=(PROFILE,), **{"precision": Precision.FP32, "tf32": False, **options}
    )


def other_weights(source, path, factor=-0.5):
    """The model of another checkpoint."""
    model = onnx.load(source)
    for weight in model.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype == np.float32:
            array = (array[::-1] * np.float32(factor)).copy()
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, path)
    return path


def results(plan, inputs):
    with Session(plan) as session:
        return session.run(inputs)


def assert_same_as_built(refitted, model, options, inputs, reference_tolerance, tolerance=1e-6):
    """Check a plan's outputs against a plan built from the model, and against the model."""
    found = results(refitted, inputs)
    built = results(build_plan(model, options), inputs)
    expected = ReferenceEvaluator(str(model)).run(None, inputs)
    for (name, array), reference in zip(found.items(), expected, strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(array, built[name], rtol=0, atol=tolerance * scale)
        error = np.linalg.norm(array - reference) / np.linalg.norm(reference)
        assert error <= reference_tolerance, f"{name}: {error}"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refit")
    old = tiny_models.conv(folder / "old.onnx")
    return old, other_weights(old, folder / "new.onnx")


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [(Precision.FP32, FP32_PRODUCTS), (Precision.FP16, 2e-3), (Precision.BF16, 2e-2)],
    ids=str,
)
def test_new_weights_give_what_a_build_gives(models, precision, tolerance):
    old, new = models
    options = config(precision=precision, refit=True, tf32=None)
    if precision is Precision.FP32:
        options = dataclasses.replace(options, tf32=False)
    plan = build_plan(old, options)
    refitted = refit_plan(plan, new)
    assert not np.array_equal(results(plan, {"x": X})["y"], results(refitted, {"x": X})["y"])
    assert_same_as_built(refitted, new, options, {"x": X}, tolerance)


def test_a_refitted_plan_can_be_refitted_again_and_back(models, tmp_path):
    old, new = models
    plan = build_plan(old, config(refit=True))
    there = refit_plan(plan, new)
    path = there.save(tmp_path / "there.plan")
    back = refit_plan(path, old)
    assert_same_as_built(back, old, config(refit=True), {"x": X}, FP32_PRODUCTS)
    assert back.manifest.refit == plan.manifest.refit
    assert back.manifest.refitted_from["plan_sha256"] == there.manifest.plan_sha256


def test_several_kinds_of_layers(tmp_path):
    """LayerNormalization, MatMul and Softmax, rewritten to FP16 with FP32 statistics."""
    old = tiny_models.norm(tmp_path / "old.onnx")
    new = other_weights(old, tmp_path / "new.onnx")
    options = BuildConfig(profiles=(ProfileSpec.parse(["batch=1:2:4"]),), refit=True)
    x = np.random.default_rng(2).standard_normal((2, 16), np.float32)
    refitted = refit_plan(build_plan(old, options), new)
    assert_same_as_built(refitted, new, options, {"x": x}, 5e-3)


def test_external_weights(tmp_path):
    old = tiny_models.external_weights(tmp_path / "old.onnx")
    (tmp_path / "new").mkdir()
    new = tiny_models.external_weights(tmp_path / "new" / "new.onnx")
    weights = np.fromfile(tmp_path / "new" / "weights.bin", np.float32)
    (weights[::-1] * np.float32(0.5)).tofile(tmp_path / "new" / "weights.bin")
    options = BuildConfig(precision=Precision.FP32, tf32=False, refit=True)
    x = np.random.default_rng(3).standard_normal((1, 64), np.float32)
    assert_same_as_built(
        refit_plan(build_plan(old, options), new), new, options, {"x": x}, FP32_PRODUCTS
    )


def test_stripped_plans_are_smaller_and_get_their_weights_back(tmp_path):
    model = tiny_models.dense(tmp_path / "m.onnx", width=512, layers=2)
    weight_bytes = sum(numpy_helper.to_array(w).nbytes for w in onnx.load(model).graph.initializer)
    batch = ProfileSpec.parse(["batch=2"])
    options = BuildConfig(profiles=(batch,), precision=Precision.FP32, tf32=False)
    full = build_plan(model, options)
    stripped = build_plan(model, dataclasses.replace(options, strip_weights=True))
    assert len(stripped.data) < len(full.data) - weight_bytes / 2
    with pytest.raises(PlanError, match="its weights were left out"), Session(stripped):
        pass
    refitted = refit_plan(stripped, model)
    assert len(refitted.data) > len(stripped.data) + weight_bytes / 2
    assert "strip_weights" not in refitted.manifest.options
    x = np.random.default_rng(4).standard_normal((2, 512), np.float32)
    assert_same_as_built(refitted, model, options, {"h0": x}, FP32_PRODUCTS, 1e-5)


def test_a_stripped_plan_takes_other_weights_if_built_for_that(models):
    old, new = models
    options = config(strip_weights=True, refit=True)
    with pytest.raises(SpecError, match="built as refittable too"):
        refit_plan(build_plan(old, config(strip_weights=True)), new)
    refitted = refit_plan(build_plan(old, options), new)
    assert_same_as_built(refitted, new, config(), {"x": X}, FP32_PRODUCTS, 1e-5)


def test_int8_weights_are_quantized_again(tmp_path):
    model = tiny_models.dense(tmp_path / "old.onnx", width=64, layers=2)
    new = other_weights(model, tmp_path / "new.onnx")
    batch = ProfileSpec.parse(["batch=2"])
    options = BuildConfig(profiles=(batch,), precision=Precision.INT8_WEIGHTS, refit=True)
    x = np.random.default_rng(5).standard_normal((2, 64), np.float32)
    try:
        plan = build_plan(model, options)
    except BuildError as error:  # TensorRT-RTX 1.6 fails to serialize such an engine
        pytest.skip(f"this TensorRT builds no refittable plan with INT8 weights: {error.details}")
    try:
        refitted = refit_plan(plan, new)
    except PlanError as error:  # scales may be a fixed part of the plan; then it must say so
        assert "fixed part" in str(error)  # noqa: PT017
        assert error.details  # noqa: PT017
        return
    assert_same_as_built(refitted, new, options, {"h0": x}, 5e-2)


def test_names_that_do_not_match_are_all_listed(models, tmp_path):
    old, _ = models
    model = onnx.load(old)
    model.graph.initializer[0].name = model.graph.node[1].input[1] = "filter"
    onnx.save(model, tmp_path / "n.onnx")
    plan = build_plan(old, config(refit=True, precision=Precision.TF32, tf32=True))
    with pytest.raises(SpecError) as caught:
        refit_plan(plan, tmp_path / "n.onnx")
    assert "'kernel' (float32 8x3x3x3) is missing in n.onnx" in str(caught.value)
    assert "'filter' (float32 8x3x3x3) is unknown to the plan" in str(caught.value)


def test_another_architecture_is_refused(models, tmp_path):
    old, _ = models
    plan = build_plan(old, config(refit=True))
    with pytest.raises(SpecError, match=r"the graph of m\.onnx is another"):
        refit_plan(plan, tiny_models.conv(tmp_path / "m.onnx", operator="Sigmoid"))


def test_a_plan_that_is_not_refittable_says_so(models):
    """A manifest that claims more than the engine has."""
    old, new = models
    fixed, refittable = (build_plan(old, config(refit=refit)) for refit in (False, True))
    manifest = dataclasses.replace(
        fixed.manifest, options=refittable.manifest.options, refit=refittable.manifest.refit
    )
    with pytest.raises(PlanError):
        refit_plan(dataclasses.replace(fixed, manifest=manifest), new)


def test_the_commands(models, tmp_path):
    old, new = models
    stripped, full, refitted = (tmp_path / f"{n}.plan" for n in ("stripped", "full", "refitted"))
    shapes = ["--dim", "batch=2", "--dim", "height=8", "--dim", "width=8", "--precision", "fp32"]
    for arguments in (
        ["build", old, "-o", stripped, *shapes, "--strip-weights", "--refit", "--no-tf32"],
        ["refit", stripped, "--from", old, "-o", full],
        ["refit", full, "--from", new, "-o", refitted, "--json"],
    ):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.stderr
    written = json.loads((tmp_path / "refitted.plan.json").read_text())
    assert written["model"]["file"] == new.name
    assert written["refitted_from"]["model"]["file"] == old.name
    (expected,) = ReferenceEvaluator(str(new)).run(None, {"x": X})
    np.testing.assert_allclose(
        results(Plan.load(refitted), {"x": X})["y"],
        expected,
        atol=FP32_PRODUCTS * np.abs(expected).max(),
    )
    result = CliRunner().invoke(app, ["run", str(stripped), "--random", "0"])
    assert result.exit_code == 1
    assert "its weights were left out" in result.stderr
