"""Plans built for real by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import traceback
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import text_models, tiny_models
from helpers.miscompiled_models import CASES, readable
from helpers.passes import pass_records
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, IoPrecision, Plan, Precision, ProfileSpec, build_plan
from trt_native.backends.base import BuildResult
from trt_native.backends.registry import load_backend
from trt_native.backends.rtx import RtxBackend
from trt_native.builder.build import _described, build_prepared, decide, lower, prepare
from trt_native.config import CalibrationRunner, QuantizationSpec
from trt_native.errors import BuildError, ModelError, SpecError, UnsupportedError
from trt_native.graph.dims import write_limits
from trt_native.plans.manifest import PlanTensor

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend

DIMS = ("batch=1:2:4", "height=8:8:16", "width=8")


def config(*dims, **options):
    profiles = (ProfileSpec.parse(dims),) if dims else ()
    return BuildConfig(profiles=profiles, **options)


def build(path, *dims, **options):
    return build_plan(path, config(*dims, **options), backend="rtx")


def test_outputs_of_data_dependent_shape_are_noted(tmp_path):
    path = tiny_models.reshape_by_input(tmp_path / "reshape.onnx")
    profile = ProfileSpec.parse(["n=2:8:32"], ["shape=1x2:2x4:4x8"])
    plan = build_plan(path, BuildConfig(profiles=profile), backend="rtx")
    assert [t.values != () for t in plan.manifest.inputs] == [False, True]
    assert [t.data_dependent for t in plan.manifest.tensors] == [False, False, False]

    # TensorRT-RTX has no operator with such an output: the tensors are those of TensorRT 10.
    path = tiny_models.save(
        tmp_path / "nonzero.onnx",
        [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Relu", ["x"], ["y"])],
        [tiny_models.tensor("x", TensorProto.FLOAT, ["batch", 4])],
        [
            tiny_models.tensor("n", TensorProto.INT64, [2, "count"]),
            tiny_models.tensor("y", TensorProto.FLOAT, ["batch", 4]),
        ],
    )
    tensors = (
        PlanTensor("x", "input", "float32", (-1, 4)),
        PlanTensor("n", "output", "int64", (2, -1)),
        PlanTensor("y", "output", "float32", (-1, 4)),
    )
    prepared = prepare(path, config("batch=1:3:6"), backend="rtx")
    result = BuildResult(memoryview(b""), "", tensors, {})
    described = {tensor.name: tensor for tensor in _described(result, prepared)}
    assert {name: t.data_dependent for name, t in described.items()} == {
        "x": False,
        "n": True,
        "y": False,
    }
    assert described["n"].describe_type() == "int64 (data-dependent shape)"


def test_the_manifest_tells_what_the_plan_is(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    plan = build(path, *DIMS, precision=Precision.FP32)
    manifest = plan.manifest
    assert manifest.plan_sha256 == hashlib.sha256(plan.data).hexdigest()
    assert manifest.plan_bytes == len(plan.data) == plan.header.declared_bytes
    assert manifest.backend == "rtx"
    assert plan.header.mismatch("TensorRT-RTX", manifest.backend_version) is None
    assert manifest.model["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    (x,), (y,) = manifest.inputs, manifest.outputs
    assert (x.name, x.dtype, x.shape) == ("x", "float32", (-1, 3, -1, 8))
    assert x.dims == ("batch", None, "height", "width")
    assert [str(r) for r in x.profiles] == ["1x3x8x8:2x3x8x8:4x3x16x8"]
    assert (y.name, y.shape, y.profiles) == ("y", (-1, 8, -1, 8), ())
    assert manifest.precision == {"requested": "fp32", "applied": "fp32", "tf32": False}
    assert manifest.passes == (
        {
            "name": "split_fp32_products",
            "nodes": {"Conv": 1},
            "summary": "FP32 matrix products emulated with split operands: 1",
        },
    )
    assert manifest.options["precision"] == "fp32"
    assert set(manifest.seconds) == {"parse", "build", "total"}


def test_the_manifest_keeps_what_our_export_noted(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    model = onnx.load(path)
    for key in ("trt_native.config", "another_tool"):
        model.metadata_props.add(key=key, value=f"{key} é")
    onnx.save(model, path)
    plan = build(path, *DIMS)
    noted = {"trt_native.config": "trt_native.config é"}
    assert plan.manifest.metadata == noted
    assert Plan.load(plan.save(tmp_path / "m.plan")).manifest.metadata == noted


def test_a_saved_plan_loads_with_an_equal_manifest(tmp_path):
    plan = build(tiny_models.conv(tmp_path / "m.onnx"), *DIMS)
    loaded = Plan.load(plan.save(tmp_path / "m.plan"))
    assert loaded.manifest == plan.manifest
    assert loaded.data == bytes(plan.data)


def test_an_fp32_model_becomes_fp16_by_default(tmp_path):
    manifest = build(tiny_models.norm(tmp_path / "m.onnx"), "batch=1:2:4").manifest
    assert manifest.precision["requested"] == "auto"
    assert manifest.precision["applied"] == "fp16"
    kept = pass_records(manifest)["autocast"]["kept"]
    assert kept["statistics"] == {"LayerNormalization": 1, "Softmax": 1}
    # The types of inputs and outputs are the model's, unless asked otherwise.
    assert [t.dtype for t in manifest.tensors] == ["float32", "float32"]


@pytest.mark.parametrize(
    ("options", "split"),
    [
        ({"precision": Precision.FP32}, {"MatMul": 1}),
        ({"precision": Precision.FP32, "tf32": True}, None),
        ({"precision": Precision.TF32}, None),
        ({}, None),
        ({"tf32": False}, {}),
        ({"tf32": False, "keep_fp32": ("/matmul",)}, {"MatMul": 1}),
    ],
    ids=str,
)
def test_products_are_split_where_tf32_is_off(tmp_path, options, split):
    plan = build(tiny_models.norm(tmp_path / "m.onnx"), "batch=1:2:4", **options)
    assert pass_records(plan.manifest).get("split_fp32_products", {}).get("nodes") == split
    # TensorRT could take the way to BF16 and back for nothing; its kernels have it.
    rounds = b"= __myln_cast<__myln_bf16, __myln_float>(" in bytes(plan.data)
    assert rounds == bool(split)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_group_norms_of_one_group_are_given_as_instance_norms(tmp_path, kind):
    norms = [
        helper.make_node("GroupNormalization", ["x", "one", "zero"], ["a"], num_groups=1),
        helper.make_node("GroupNormalization", ["a", "one", "zero"], ["y"], num_groups=2),
    ]
    constants = {
        name: np.full(4, value, helper.tensor_dtype_to_np_dtype(kind))
        for name, value in (("one", 1), ("zero", 0))
    }
    path = tiny_models.save(
        tmp_path / "m.onnx",
        norms,
        [tiny_models.tensor("x", kind, ["batch", 4, 8, 8])],
        [tiny_models.tensor("y", kind, ["batch", 4, 8, 8])],
        constants,
        opset=21,
    )
    before = path.read_bytes()
    records = pass_records(build(path, "batch=1:2:4").manifest)
    assert records["parser_workarounds"]["nodes"] == {"GroupNormalization": 1}
    assert path.read_bytes() == before
    planned = decide(path, config("batch=1:2:4"), backend="rtx")
    assert pass_records(planned)["parser_workarounds"] == records["parser_workarounds"]
    other = tiny_models.conv(tmp_path / "other.onnx")
    assert "parser_workarounds" not in pass_records(build(other, *DIMS).manifest)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_what_tensorrt_parses_is_valid_and_means_the_same(tmp_path, name, precision):
    case = CASES[name]()
    if case.expected[0].dtype == np.float16:
        pytest.skip("the model is in FP16")
    path = tmp_path / "m.onnx"
    onnx.save(case.model, path)
    prepared = prepare(path, config(*case.dims, precision=precision), backend=load_backend("rtx"))
    with lower(prepared) as lowered:
        model = onnx.load(lowered.path)
    records = pass_records(lowered)
    done = next(
        records[one]
        for one in ("lower_operators", "lower_recurrent", "parser_workarounds")
        if one in records
    )
    assert done["nodes"] == {case.operator: 1}
    onnx.checker.check_model(model, full_check=True)
    if precision is not Precision.FP16 or case.operator == "GlobalLpPool":
        return  # the reference lacks BF16 in places, and this operator; FP32 is for TF32
    found = ReferenceEvaluator(readable(model)).run(None, case.inputs)
    for f, e in zip(found, case.expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=5e-3, atol=5e-3)


def test_statistics_stay_in_fp32_where_nodes_are_rewritten(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceLogSumExp", ["a", "axes"], ["b"], name="/head/logsumexp"),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    path = tiny_models.save(
        tmp_path / "m.onnx",
        nodes,
        [tiny_models.tensor("x", TensorProto.FLOAT, [1, 4])],
        [tiny_models.tensor("y", TensorProto.FLOAT, [1, 4])],
        {"axes": np.array([1])},
    )
    x = np.array([[1000, 1000.5, 999.5, 2]], np.float32)
    expected = x - np.logaddexp.reduce(x.astype(np.float64), 1, keepdims=True)
    for options in ({}, {"keep_fp32": ("/head/logsumexp",)}):
        prepared = prepare(path, config(**options), backend=load_backend("rtx"))
        with lower(prepared) as lowered:
            (found,) = ReferenceEvaluator(onnx.load(lowered.path)).run(None, {"x": x})
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_products_are_left_alone_for_gpus_without_tf32(tmp_path):
    path = tiny_models.norm(tmp_path / "m.onnx")
    plan = build(path, "batch=1", precision=Precision.FP32, compute_capabilities=("7.5",))
    assert "split_fp32_products" not in pass_records(plan.manifest)
    both = {"compute_capabilities": ("7.5", "8.6")}
    with pytest.raises(UnsupportedError, match=r"capability 7\.5 has neither.*allow TF32"):
        decide(path, config("batch=1", precision=Precision.FP32, **both), backend="rtx")
    plan = build(path, "batch=1", precision=Precision.TF32, **both)
    assert plan.manifest.compute_capabilities == ("7.5", "8.6")
    copying = tiny_models.coupled(tmp_path / "c.onnx")
    dims = ("batch=2", "frames=3")
    build(copying, *dims, precision=Precision.FP32, **both)


def test_products_are_left_to_a_backend_that_has_fp32(tmp_path):
    class Exact(RtxBackend):
        def _capabilities(self):
            return dataclasses.replace(super()._capabilities(), exact_fp32=True)

    path = tiny_models.norm(tmp_path / "m.onnx")
    options = config("batch=1:2:4", precision=Precision.FP32)
    plan = build_plan(path, options, backend=Exact(tensorrt_rtx))
    assert "split_fp32_products" not in pass_records(plan.manifest)
    assert decide(path, options, backend=Exact(tensorrt_rtx)).passes == ()


def test_tensors_inside_the_model_keep_their_names_where_products_are_split(tmp_path):
    path = tiny_models.norm(tmp_path / "m.onnx")
    options = config("batch=1:2:4", precision=Precision.FP32)
    plan = build_plan(path, options, backend="rtx", extra_outputs=("n", "m"))
    assert [t.name for t in plan.manifest.outputs] == ["y", "n", "m"]


def test_branches_by_fixed_inputs_and_shapes_are_taken(tmp_path):
    """As speech models have them: by the sample rate, and by the extent of an unnamed axis."""
    inner = """If (c) <then_branch = s () => (float[p, q] d) { d = Neg (x) },
        else_branch = e () => (float[p, q] b) { b = Abs (x) }>"""
    graph = text_models.model(
        f"""(float[1, n] x, int64 rate) => (float[p, q] y) {{
            s = Shape (x) e = Gather (s, one) c = Equal (e, eight) r = Equal (rate, high)
            y = If (r) <then_branch = t () => (float[p, q] a) {{ a = {inner} }},
                        else_branch = g () => (float[p, q] f) {{ f = Exp (x) }}> }}""",
        one=np.int64(1), eight=np.int64(8), high=np.int64(16000),
    )  # fmt: skip
    graph.graph.inputs[0].shape = ir.Shape([1, None])
    path = tmp_path / "m.onnx"
    onnx.save(ir.to_proto(graph), path)
    manifest = build(path, "x_1=8", fixed_inputs={"rate": 16000}).manifest
    assert [tensor.name for tensor in manifest.tensors] == ["x", "y"]
    assert manifest.options["fixed_inputs"] == ["rate=16000"]
    records = pass_records(manifest)
    assert records["fix_inputs"]["inputs"]["rate"]["value"] == 16000
    assert records["fold_shapes"]["nodes"] == {"If": 2}


@pytest.mark.parametrize(
    ("precision", "name", "opset"),
    [(Precision.FP32, "split_fp32_products", 13), (Precision.BF16, "autocast", 22)],
    ids=str,
)
def test_models_of_old_opsets_are_raised(tmp_path, precision, name, opset):
    path = tiny_models.conv(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 7
    onnx.save(model, path)
    manifest = build(path, *DIMS, precision=precision).manifest
    (record,) = (record for record in manifest.passes if record["name"] == name)
    assert record["raised"] == {"opset": opset, "nodes": {}}
    assert f"raised to opset {opset}" in record["summary"]


def test_products_of_an_opset_that_is_too_old_are_refused_in_fp32(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 6
    onnx.save(model, path)
    with pytest.raises(UnsupportedError, match="allow TF32"):
        decide(path, config(*DIMS, precision=Precision.FP32), backend="rtx")


@pytest.mark.parametrize(
    ("options", "types"),
    [
        ({"io_precision": IoPrecision.FP16}, ["float16", "float16"]),
        ({"precision": Precision.BF16}, ["float32", "float32"]),
        ({"precision": Precision.TF32}, ["float32", "float32"]),
    ],
    ids=str,
)
def test_input_and_output_types(tmp_path, options, types):
    manifest = build(tiny_models.norm(tmp_path / "m.onnx"), "batch=1", **options).manifest
    assert [t.dtype for t in manifest.tensors] == types


def test_a_graph_with_reduced_types_stays_as_it_is(tmp_path):
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")],
        [tiny_models.tensor("x", onnx.TensorProto.FLOAT16, [2])],
        [tiny_models.tensor("y", onnx.TensorProto.FLOAT16, [2])],
    )
    manifest = build(path).manifest
    assert manifest.precision["applied"] == "as in the model"
    assert [t.dtype for t in manifest.tensors] == ["float16", "float16"]
    assert build(path, precision=Precision.FP16).manifest.precision["applied"] == "as in the model"
    with pytest.raises(SpecError, match="already has float16 types"):
        build(path, precision=Precision.FP32)
    with pytest.raises(SpecError, match="keep_fp32: no effect"):
        build(path, keep_fp32=("relu",))


def test_products_in_fp32_next_to_an_fp16_value_are_reduced_on_request(tmp_path):
    make, kind = onnx.helper.make_node, onnx.TensorProto
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [
            make("MatMul", ["x", "w"], ["a"], name="product"),
            make("Cast", ["a"], ["b"], name="down", to=kind.FLOAT16),
            make("Cast", ["b"], ["y"], name="up", to=kind.FLOAT),
        ],
        [tiny_models.tensor("x", kind.FLOAT, [2, 8])],
        [tiny_models.tensor("y", kind.FLOAT, [2, 8])],
        {"w": np.eye(8, dtype=np.float32)},
    )
    assert build(path).manifest.precision["applied"] == "as in the model"
    manifest = build(path, precision=Precision.FP16).manifest
    assert manifest.precision["applied"] == "fp16"
    (record,) = (one for one in manifest.passes if one["name"] == "autocast")
    assert record["reduced"]["MatMul"] == 1


def test_sample_inputs_choose_what_stays_in_fp32(tmp_path):
    """Squares that a product reads stay in FP32 by rule, and not where data shows them small."""
    make, kind = onnx.helper.make_node, onnx.TensorProto
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [
            make("MatMul", ["x", "w"], ["a"], name="first"),
            make("Mul", ["a", "a"], ["q"], name="square"),
            make("Softmax", ["mask_row"], ["s"], name="masked"),
            make("Add", ["q", "s"], ["b"], name="add"),
            make("MatMul", ["b", "w"], ["y"], name="second"),
        ],
        [tiny_models.tensor("x", kind.FLOAT, [2, 8])],
        [tiny_models.tensor("y", kind.FLOAT, [2, 8])],
        {
            "w": np.random.default_rng(0).standard_normal((8, 8), np.float32),
            "mask_row": np.array([[0, 1, 2, 3, -np.inf, 5, 6, 7]], np.float32),
        },
    )

    def record(scale):
        np.savez(tmp_path / "x.npz", x=np.full((2, 8), scale, np.float32))
        spec = QuantizationSpec(
            calibration_data=str(tmp_path / "x.npz"), calibration_runner=CalibrationRunner.REFERENCE
        )
        plan = build(path, precision=Precision.FP16, quantization=spec)
        return next(one for one in plan.manifest.passes if one["name"] == "autocast")

    assert "MatMul" not in record(1.0)["kept"].get("range", {})
    assert record(1.0)["measured"]["batches"] == 1
    loud = record(100.0)
    assert loud["kept"]["range"]["MatMul"] == 1
    assert set(loud["overflows"]) == {"q", "b", "y"}
    assert "measured too large for FP16: 3 (q " in loud["summary"]


def test_sample_inputs_for_a_graph_with_reduced_types_are_refused(tmp_path):
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")],
        [tiny_models.tensor("x", onnx.TensorProto.FLOAT16, [2])],
        [tiny_models.tensor("y", onnx.TensorProto.FLOAT16, [2])],
    )
    np.savez(tmp_path / "x.npz", x=np.ones(2, np.float16))
    spec = QuantizationSpec(calibration_data=str(tmp_path / "x.npz"))
    with pytest.raises(SpecError, match="calibration_data: no effect, because the types of"):
        build(path, quantization=spec)


def test_coupled_dimensions_stay_consistent(tmp_path):
    path = tiny_models.coupled(tmp_path / "m.onnx")
    manifest = build(path, "batch=1:2:2", "frames=1:16:16", precision=Precision.FP32).manifest
    ranges = {t.name: str(t.profiles[0]) for t in manifest.inputs}
    assert ranges == {"x": "1x1x4:2x16x4:2x16x4", "z": "1x4:32x4:32x4"}


def test_fixing_every_dimension_gives_a_static_plan(tmp_path):
    path = tiny_models.coupled(tmp_path / "m.onnx")
    manifest = build(path, "batch=2", "frames=3", precision=Precision.FP32).manifest
    assert [t.shape for t in manifest.tensors] == [(2, 3, 4), (6, 4), (6, 4)]


def test_several_profiles(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    specs = tuple(
        ProfileSpec.parse([f"batch={n}", "height=8", "width=8:8:16"]) for n in ("1", "2:4:8")
    )
    plan = build_plan(path, BuildConfig(profiles=specs), backend="rtx")
    (x,) = plan.manifest.inputs
    assert [str(r) for r in x.profiles] == ["1x3x8x8:1x3x8x8:1x3x8x16", "2x3x8x8:4x3x8x8:8x3x8x16"]
    assert x.shape == (-1, 3, 8, -1)


def test_profiles_of_single_shapes(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    shapes = ("batch=1", "batch=2", "x=4x3x16x8")
    plan = build(path, *DIMS, add_opt_shape_profiles=True, fast_at=shapes)
    (x,) = plan.manifest.inputs
    assert [str(r) for r in x.profiles] == [
        "1x3x8x8:2x3x8x8:4x3x16x8", "2x3x8x8", "1x3x8x8", "4x3x16x8",
    ]  # fmt: skip
    assert plan.manifest.options["add_opt_shape_profiles"] is True
    assert plan.manifest.options["fast_at"] == list(shapes)


def test_an_input_that_is_a_shape(tmp_path):
    path = tiny_models.reshape_by_input(tmp_path / "m.onnx")
    spec = ProfileSpec.parse(["n=2:8:32"], ["shape=1x2:2x4:4x8"])
    plan = build_plan(path, BuildConfig(profiles=(spec,), precision=Precision.FP32), backend="rtx")
    (_, shape) = plan.manifest.inputs
    assert [str(r) for r in shape.values] == ["1x2:2x4:4x8"]


def test_the_temporary_rewritten_model_is_gone_afterwards(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    build(tiny_models.norm(tmp_path / "m.onnx"), "batch=1")
    assert list(scratch.iterdir()) == []


def test_decisions_without_a_build(tmp_path):
    path = tiny_models.coupled(tmp_path / "m.onnx")
    planned = decide(path, config("batch=1:2:2", "frames=16", workspace_bytes=2**20), backend="rtx")
    assert planned.fixed == {"x": (None, 16, 4), "z": (None, 4)}
    assert planned.precision.applied is Precision.FP16
    assert planned.precision.strongly_typed
    assert [record["name"] for record in planned.passes] == ["autocast"]
    assert planned.workspace_bytes == 2**20


def test_errors_come_before_tensorrt_is_asked(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    with pytest.raises(SpecError, match="dimension 'width' has no range"):
        build(path, "batch=1", "height=8")
    with pytest.raises(UnsupportedError, match="version_compatible is not supported: the package"):
        build(path, *DIMS, version_compatible=True)
    with pytest.raises(ModelError, match="No such file"):
        build(Path("none.onnx"))
    with pytest.raises(UnsupportedError, match="no backend 'cuda'"):
        build_plan(path, backend="cuda")


def test_node_patterns_that_match_nothing_are_an_error(tmp_path):
    path = tiny_models.norm(tmp_path / "m.onnx")
    with pytest.raises(SpecError, match="/matmull"):
        build(path, "batch=1", keep_fp32=("/matmull",))
    manifest = build(path, "batch=1", keep_fp32=("/matmul",)).manifest
    assert pass_records(manifest)["autocast"]["kept"]["keep_fp32"] == {"MatMul": 1}


def test_a_failed_build_leaves_nothing_to_the_garbage_collector(tmp_path):
    """Freed in a call to the log, TensorRT's builder waits forever for the lock of that call."""
    path = tiny_models.conv(tmp_path / "m.onnx", shape=(1, 3, 8, 8), operator="NoSuchOperator")
    with pytest.raises(BuildError) as raised:
        build(path, precision=Precision.FP32)
    frames = [frame for frame, _ in traceback.walk_tb(raised.value.__traceback__)]
    assert "build" in {frame.f_code.co_name for frame in frames}
    held = [type(value) for frame in frames for value in frame.f_locals.values()]
    assert not [kind for kind in held if kind.__module__.startswith("tensorrt_rtx")]


def test_a_manifest_tells_what_a_plan_was_built_with():
    import dataclasses

    from helpers import made_plans

    from trt_native.config import CalibrationMethod, IoPrecision, QuantizationSpec
    from trt_native.errors import PlanError
    from trt_native.plans.manifest import Manifest

    def recorded(options):
        options = json.loads(json.dumps(options))
        golden = Manifest.from_json(made_plans.GOLDEN)
        return dataclasses.replace(golden, options=options).build_config()

    for config in (
        BuildConfig(),
        BuildConfig(
            profiles=(
                ProfileSpec.parse(["n=1:2:4", "m=3"], ["x=1x3:2x3:4x3"]),
                ProfileSpec.parse(["n=8"]),
            ),
            precision=Precision.INT8,
            io_precision=IoPrecision.FP16,
            keep_fp32=("*/norm*", "op:Resize"),
            quantization=QuantizationSpec(
                calibration_cache=Path("a.calib"),
                calibration_method=CalibrationMethod.MSE,
                ops=("Conv",),
                min_coverage=0.5,
            ),
            workspace_bytes=2**30,
            optimization_level=4,
            tf32=False,
            compute_capabilities=("8.6", "8.9"),
            timing_cache=Path("t.cache"),
        ),
    ):
        assert recorded(config.options()) == config
    for options in ({"speed": 1}, {"precision": "fast"}, {"profiles": [{"sizes": {}}]}):
        with pytest.raises(PlanError, match="malformed manifest: options: "):
            recorded(options)


@pytest.mark.parametrize("replace", [False, True], ids=["written", "replaced"])
def test_weights_that_change_during_a_build_are_an_error(tmp_path, replace):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    prepared = prepare(path, config(precision=Precision.FP32), backend=load_backend("rtx"))
    weights = tmp_path / "weights.bin"
    data = np.frombuffer(weights.read_bytes(), np.float32) + 1
    written = tmp_path / "other" if replace else weights
    written.write_bytes(data.tobytes())
    written.replace(weights)
    with pytest.raises(ModelError, match=r"weights\.bin changed while the plan was built"):
        build_prepared(prepared)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_sparse_constants_are_built_as_dense_ones(tmp_path, precision):
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [3.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [2])
    constant = helper.make_sparse_tensor(values, indices, [4])
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Constant", [], ["w"], sparse_value=constant),
            helper.make_node("Add", ["x", "w"], ["y"], name="add"),
        ],
        [tiny_models.tensor("x", TensorProto.FLOAT, [4])],
        [tiny_models.tensor("y", TensorProto.FLOAT, [4])],
    )
    prepared = prepare(path, config(precision=precision), backend=load_backend("rtx"))
    with lower(prepared) as lowered:
        x = np.ones(4, np.float32)
        (found,) = ReferenceEvaluator(onnx.load(lowered.path)).run(None, {"x": x})
    np.testing.assert_array_equal(found, [1, 1, 4, 1])
    assert build(path, precision=precision).manifest.outputs[0].shape == (4,)


ISLAND = """<ir_version: 10, opset_import: ["": 18]> g (float[2,4] x) => (float[2,4] y)
    <float[4,4] w> { h = Cast<to = 10> (x) r = Relu (h) s = Cast<to = 1> (r) y = MatMul (s, w) }"""
ALL_FP16 = """<ir_version: 10, opset_import: ["": 18]> g (float16[2,4] x) => (float[2,4] y)
    <float16[4,4] w> { m = MatMul (x, w) f = Cast<to = 1> (m) y = Softmax (f) }"""


def island(path, text, kind=np.float32):
    proto = onnx.parser.parse_model(text)
    weight = onnx.numpy_helper.from_array(np.eye(4).astype(kind), "w")
    proto.graph.initializer.append(weight)
    del proto.graph.value_info[:]
    onnx.save(proto, path)
    return path


def test_a_type_that_a_part_of_the_model_has_can_be_requested_for_the_rest(tmp_path):
    path = island(tmp_path / "m.onnx", ISLAND)
    requested = decide(path, config(precision=Precision.FP16), backend="rtx")
    assert requested.precision.applied is Precision.FP16
    assert decide(path, config(), backend="rtx").precision.applied is None
    other = island(tmp_path / "other.onnx", ALL_FP16, np.float16)
    assert decide(other, config(precision=Precision.FP16), backend="rtx").precision.applied is None


def test_limits_in_the_metadata_of_a_model_are_enforced(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    proto = onnx.load(path)
    helper.set_model_props(proto, write_limits({"batch": 3}))
    onnx.save(proto, path)
    with pytest.raises(SpecError, match="'batch' reaches 4, but the model has at most 3"):
        decide(path, config(*DIMS), backend="rtx")
    assert build(path, "batch=1:2:3", *DIMS[1:]).manifest.model["metadata"] == {
        "trt_native.max.batch": "3"
    }


def test_the_longest_names_are_whole_in_the_manifest(tmp_path):
    name = "h" * 3990
    path = tiny_models.dense(tmp_path / "m.onnx", width=8, layers=1, name=name)
    plan = build(path, "batch=1:2:4", precision=Precision.FP16)
    assert [tensor.name for tensor in plan.manifest.tensors] == [f"{name}0", f"{name}1"]
    assert len(plan.summary()) < 2000
    assert len(repr(plan)) < 2000
    path = tiny_models.dense(tmp_path / "m.onnx", width=8, layers=1, name="h" * 70_000)
    with pytest.raises(UnsupportedError, match="no names of more than 4,000 characters"):
        build(path, "batch=1:2:4")
