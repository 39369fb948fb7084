from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

torch = pytest.importorskip("torch", reason="needs trt-native[export]")

import trt_native  # noqa: E402
from trt_native import export  # noqa: E402
from trt_native.errors import ExportError, ModelError, SpecError, UnsupportedError  # noqa: E402
from trt_native.export import export_latentsync, export_module  # noqa: E402
from trt_native.models.latentsync import (  # noqa: E402
    MotionConfig,
    UNet,
    UNetConfig,
    load_checkpoint,
    load_into,
)

DATA = Path(__file__).parent / "data"
# One transformer and one motion module on either way, so that an export takes seconds.
TINY = UNetConfig(
    sample_size=8,
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    block_out_channels=(32, 64),
    layers_per_block=1,
    cross_attention_dim=24,
    attention_head_dim=4,
    motion_module_resolutions=(1,),
    motion_module_kwargs=MotionConfig(num_attention_heads=4),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they bring in models this small, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(path, **inputs):
    return ReferenceEvaluator(str(path)).run(None, inputs)


def relative_l2(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def check_strictly(path):
    onnx.checker.check_model(str(path), full_check=True)


class Affine(torch.nn.Module):
    """x @ weight^T + bias, summed with the other input."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x, other):
        return self.linear(x) + other


def affine_inputs():
    return torch.randn(2, 5, 4), torch.randn(2, 5, 3)


AFFINE_DIMS = {"x": {0: "batch", 1: "length"}, "other": {0: "batch", 1: "length"}}


# Any module --------------------------------------------------------------------------------------


def test_dimensions_have_the_names_given_and_are_dynamic(tmp_path):
    module, path = Affine(), tmp_path / "affine.onnx"
    report = export_module(module, affine_inputs(), path=path, dynamic=AFFINE_DIMS)
    check_strictly(path)
    assert [str(spec) for spec in (*report.inputs, *report.outputs)] == [
        "x: float32(batch, length, 4)",
        "other: float32(batch, length, 3)",
        "output: float32(batch, length, 3)",
    ]
    x, other = torch.randn(1, 7, 4), torch.randn(1, 7, 3)
    (found,) = run(path, x=x.numpy(), other=other.numpy())
    np.testing.assert_allclose(found, module(x, other).detach(), rtol=1e-5, atol=1e-6)
    assert (report.path, report.external_data, report.opset) == (path, None, 18)
    assert (report.parameters, report.total_bytes) == (15, path.stat().st_size)
    assert json.loads(json.dumps(report.to_dict()))["inputs"][0]["name"] == "x"


def test_without_dynamic_all_is_static(tmp_path):
    report = export_module(Affine(), affine_inputs(), path=tmp_path / "a.onnx")
    assert [spec.shape for spec in report.inputs] == [(2, 5, 4), (2, 5, 3)]


def test_inputs_by_name_and_names_of_ones_own(tmp_path):
    x, other = affine_inputs()
    report = export_module(
        Affine(),
        {"other": other, "x": x},
        path=tmp_path / "a.onnx",
        input_names=["left", "right"],
        output_names=["sum"],
        dynamic={"left": {0: "n"}, "right": {0: "n"}},
    )
    assert [(spec.name, spec.shape) for spec in (*report.inputs, *report.outputs)] == [
        ("left", ("n", 5, 4)),
        ("right", ("n", 5, 3)),
        ("sum", ("n", 5, 3)),
    ]


class Flattening(torch.nn.Module):
    def forward(self, video, audio):
        return video.flatten(0, 1) * audio.sum(1, keepdim=True)


def test_product_of_dimensions(tmp_path):
    path = tmp_path / "f.onnx"
    dims = {"video": {0: "batch", 1: "frames"}, "audio": {0: "batch*frames"}}
    inputs = torch.randn(2, 3, 4), torch.randn(6, 5)
    report = export_module(Flattening(), inputs, path=path, dynamic=dims)
    assert report.inputs[1].shape == ("batch*frames", 5)
    assert report.outputs[0].shape == ("batch*frames", 4)
    video, audio = torch.randn(1, 4, 4), torch.randn(4, 5)
    (found,) = run(path, video=video.numpy(), audio=audio.numpy())
    np.testing.assert_allclose(found, Flattening()(video, audio), rtol=1e-5, atol=1e-6)


class Pooling(torch.nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0], 2, -1) if x.shape[1] == 6 else x


class Multiplying(torch.nn.Module):
    def forward(self, a, b):
        return a @ b


@pytest.mark.parametrize(
    ("module", "inputs", "dims", "message"),
    [
        (
            Pooling(),
            (torch.ones(2, 6),),
            {"x": {0: "n", 1: "width"}},
            r"width \(axis 1 of x\) is always 6",
        ),
        (
            Multiplying(),
            (torch.ones(2, 3), torch.ones(3, 4)),
            {"a": {1: "inner"}, "b": {0: "rows"}},
            "rows is always equal to inner",
        ),
    ],
)
def test_dimensions_that_the_module_fixes_are_named(tmp_path, module, inputs, dims, message):
    with pytest.raises(ExportError, match=message):
        export_module(module, inputs, path=tmp_path / "m.onnx", dynamic=dims)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamic": {"y": {0: "n"}}}, "'y' is not an input"),
        ({"dynamic": {"x": {3: "n"}}}, "x has 3 axes, no axis 3"),
        ({"dynamic": {"x": {0: "n", 1: "n"}}}, "n is both 2 and 5"),
        ({"dynamic": {"x": {0: "n-1"}}}, "'n-1' is neither a name nor a product"),
        ({"dynamic": {"x": {0: "n", 1: "n*n"}}}, r"n\*n is 5 in the examples, .* give 4"),
        ({"inputs": (torch.ones(1, 5, 4), torch.ones(3))}, "batch needs an example of 2 or more"),
        ({"inputs": (torch.ones(2, 4),)}, "do not fit Affine.forward: .*'other'"),
        ({"inputs": (torch.ones(2, 4), 1.0)}, "inputs must be tensors.*: other"),
        ({"input_names": ["x"]}, "input_names needs 2 different names"),
        ({"input_names": ["x", "x"]}, "input_names needs 2 different names"),
        ({"output_names": ["y", "z"]}, "output_names needs 1 different names"),
    ],
)
def test_requests_that_do_not_fit(tmp_path, changes, message):
    dims = {"x": {0: "batch"}} if "inputs" in changes else {}
    arguments = {"inputs": affine_inputs(), "dynamic": dims, **changes}
    inputs = arguments.pop("inputs")
    with pytest.raises(SpecError, match=message) as caught:
        export_module(Affine(), inputs, path=tmp_path / "a.onnx", **arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_folder_must_exist(tmp_path):
    with pytest.raises(SpecError, match="folder is missing"):
        export_module(Affine(), affine_inputs(), path=tmp_path / "no" / "a.onnx")


class Unsupported(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.eig(x)[0].real


class Failing(torch.nn.Module):
    def forward(self, x):
        raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Unsupported(), "torch cannot translate the module to ONNX.*eig"),
        (Failing(), "torch cannot trace Failing: ZeroDivisionError: on purpose"),
    ],
)
def test_failure_is_told_and_leaves_nothing_behind(tmp_path, capfd, module, message):
    with pytest.raises(ExportError, match=message) as caught:
        export_module(module, (torch.ones(3, 3),), path=tmp_path / "m.onnx")
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left")])
def test_interrupted_writing_leaves_the_earlier_file(tmp_path, monkeypatch, interruption):
    def save(_model, path, **_kwargs):
        Path(path).write_bytes(b"half")
        raise interruption

    path = tmp_path / "a.onnx"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(export.ir, "save", save)
    expected = ExportError if isinstance(interruption, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export_module(Affine(), affine_inputs(), path=path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [
        ("a.onnx", b"earlier")
    ]


def test_weights_beyond_the_limit_go_to_one_file_beside(tmp_path, monkeypatch):
    module, path, data = torch.nn.Linear(64, 64), tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    x = torch.randn(2, 64)
    monkeypatch.setattr(export, "_MAX_INLINE_BYTES", 1000)
    report = export_module(module, (x,), path=path)
    assert sorted(tmp_path.iterdir()) == [path, data]
    assert report.external_data == data
    assert report.total_bytes == path.stat().st_size + data.stat().st_size > 64 * 64 * 4
    check_strictly(path)
    np.testing.assert_allclose(
        run(path, input=x.numpy())[0], module(x).detach(), rtol=1e-4, atol=1e-5
    )

    monkeypatch.undo()  # the next export fits into one file: the old weights go
    assert export_module(module, (x,), path=path).external_data is None
    assert list(tmp_path.iterdir()) == [path]
    check_strictly(path)


def test_the_real_limit_is_that_of_protobuf():
    assert 1.9e9 < export._MAX_INLINE_BYTES < 2**31 - 10**7


def test_file_says_who_wrote_it_and_nothing_about_this_machine(tmp_path):
    path = tmp_path / "a.onnx"
    export_module(Affine(), affine_inputs(), path=path, metadata={"note": "hello"})
    model = onnx.load(path)
    assert (model.producer_name, model.producer_version) == ("trt-native", trt_native.__version__)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"note": "hello"}
    content = path.read_bytes()
    assert b"test_export" not in content
    assert str(Path.cwd()).encode() not in content


def test_nodes_are_named_after_their_modules(tmp_path):
    path = tmp_path / "a.onnx"
    export_module(Affine(), affine_inputs(), path=path)
    names = {node.op_type: node.name for node in onnx.load(path).graph.node}
    assert names["MatMul"] == "linear/MatMul"


def test_weights_of_linear_layers_are_stored_as_they_are_multiplied(tmp_path):
    path, module = tmp_path / "a.onnx", Affine()
    export_module(module, affine_inputs(), path=path)
    graph = onnx.load(path).graph
    assert Counter(node.op_type for node in graph.node) == {"MatMul": 1, "Add": 2}
    stored = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    np.testing.assert_array_equal(stored["linear.weight.T"], module.linear.weight.detach().T)


def test_export_is_quiet_and_restores_the_module(tmp_path, capfd):
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)).train()
    module[0].eval()
    level = logging.getLogger("torch.onnx").level
    export_module(module, (torch.ones(2, 4),), path=tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
    assert [part.training for part in (module, *module)] == [True, False, True]
    assert not module._forward_pre_hooks
    assert logging.getLogger("torch.onnx").level == level
    assert "Dropout" not in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}


def test_opset_of_ones_choice(tmp_path):
    report = export_module(Affine(), affine_inputs(), path=tmp_path / "a.onnx", opset=20)
    assert report.opset == 20
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == 20


@pytest.mark.parametrize("missing", ["torch", "onnxscript"])
def test_missing_packages_are_named(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UnsupportedError, match=rf"{missing}.*pip install 'trt-native\[export\]'"):
        export_latentsync(tmp_path / "m.onnx", config="small", random_seed=0)


# The LatentSync U-Net ----------------------------------------------------------------------------


def example(batch, frames, height, width, tokens=50):
    generator = torch.Generator().manual_seed(batch + frames)
    return {
        "latents": torch.randn(batch, 13, frames, height, width, generator=generator),
        "timestep": torch.tensor([321]),
        "encoder_hidden_states": torch.randn(batch * frames, tokens, 24, generator=generator),
    }


def as_arrays(inputs, dtype=np.float32):
    return {
        name: tensor.numpy().astype(dtype) if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in inputs.items()
    }


@pytest.fixture(scope="module")
def tiny():
    unet = UNet(TINY).eval()
    unet.init_random(5)
    return unet


@pytest.fixture(scope="module")
def tiny_onnx(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    export_latentsync(path, config=TINY, random_seed=5)
    return path


@pytest.fixture(scope="module")
def tiny_fp16_onnx(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny16.onnx"
    export_latentsync(path, config=TINY, random_seed=5, precision="fp16")
    return path


def specs(path):
    model = onnx.load(path)

    def shape(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    return {
        value.name: (TensorProto.DataType.Name(value.type.tensor_type.elem_type), shape(value))
        for value in (*model.graph.input, *model.graph.output)
    }


@pytest.mark.parametrize(
    ("fixture", "dtype"), [("tiny_onnx", "FLOAT"), ("tiny_fp16_onnx", "FLOAT16")]
)
def test_contract_of_the_exported_unet(request, fixture, dtype):
    path = request.getfixturevalue(fixture)
    check_strictly(path)
    assert specs(path) == {
        "latents": (dtype, ["batch", 13, "frames", "height", "width"]),
        "timestep": ("INT64", [1]),
        "encoder_hidden_states": (dtype, ["batch*frames", 50, 24]),
        "noise_pred": (dtype, ["batch", 4, "frames", "height", "width"]),
    }


@pytest.mark.parametrize("extents", [(1, 1, 8, 8), (2, 16, 8, 12), (1, 5, 9, 7), (3, 2, 16, 10)])
def test_exported_unet_at_other_shapes(tiny, tiny_onnx, extents):
    inputs = example(*extents)
    with torch.no_grad():
        expected = tiny(**inputs)
    (found,) = run(tiny_onnx, **as_arrays(inputs))
    assert found.shape == tuple(expected.shape)
    assert relative_l2(found, expected) <= 1e-4


def test_fp16_export_at_another_shape(tiny, tiny_fp16_onnx):
    inputs = example(1, 5, 10, 8)
    with torch.no_grad():
        expected = tiny(**inputs)
    (found,) = run(tiny_fp16_onnx, **as_arrays(inputs, np.float16))
    assert found.dtype == np.float16
    assert relative_l2(found, expected) <= 5e-3


def test_fp16_export_keeps_statistics_in_fp32(tiny_fp16_onnx):
    model = onnx.shape_inference.infer_shapes(onnx.load(tiny_fp16_onnx))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    types |= {w.name: w.data_type for w in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        found.setdefault(node.op_type, set()).add(types[node.input[0]])
    for operator in ("Softmax", "ReduceMean", "LayerNormalization", "Sin", "Cos"):
        assert found[operator] == {TensorProto.FLOAT}, operator
    for operator in ("Conv", "MatMul", "Gemm", "Resize", "Erf"):
        assert found[operator] == {TensorProto.FLOAT16}, operator


def test_unet_has_one_layout_and_no_operators_that_fail_to_run(tiny_onnx):
    graph = onnx.load(tiny_onnx).graph
    operators = Counter(node.op_type for node in graph.node)
    assert not {"InstanceNormalization", "GroupNormalization", "BatchNormalization"} & set(
        operators
    )
    producers = {name: node.op_type for node in graph.node for name in node.output}
    around = [producers.get(node.input[0]) for node in graph.node if node.op_type == "Conv"]
    reshaped = [operator for operator in around if operator in ("Transpose", "Reshape")]
    # What enters the U-Net, and what leaves the two kinds of attention blocks for proj_out.
    assert len(reshaped) == 1 + sum("proj_out/Conv" in node.name for node in graph.node)


def test_bf16_export(tmp_path, tiny):
    import ml_dtypes

    path = tmp_path / "tiny.onnx"
    static = {"batch": 1, "frames": 2, "height": 8, "width": 8}
    report = export_latentsync(path, config=TINY, random_seed=5, precision="bf16", static=static)
    check_strictly(path)
    assert report.opset == 22
    assert {spec.name: spec.dtype for spec in (*report.inputs, *report.outputs)} == {
        "latents": "bfloat16",
        "timestep": "int64",
        "encoder_hidden_states": "bfloat16",
        "noise_pred": "bfloat16",
    }
    inputs = example(1, 2, 8, 8)
    with torch.no_grad():
        expected = tiny(**inputs)
    (found,) = run(path, **as_arrays(inputs, ml_dtypes.bfloat16))
    assert relative_l2(found, expected) <= 4e-2


def test_some_extents_static(tmp_path):
    path = tmp_path / "tiny.onnx"
    config = UNetConfig.from_mapping({**TINY.to_dict(), "use_motion_module": False})
    export_latentsync(path, config=config, random_seed=0, static={"batch": 2, "width": 8})
    found = specs(path)
    assert found["latents"][1] == [2, 13, "frames", "height", 8]
    assert found["encoder_hidden_states"][1] == ["2*frames", 50, 24]


def test_without_audio_there_is_no_audio_input(tmp_path):
    path = tmp_path / "tiny.onnx"
    config = UNetConfig.from_mapping({**TINY.to_dict(), "add_audio_layer": False})
    static = {"batch": 1, "frames": 1, "height": 8, "width": 8}
    export_latentsync(path, config=config, random_seed=0, static=static)
    assert set(specs(path)) == {"latents", "timestep", "noise_pred"}


def save_checkpoint(path, config, **header):
    unet = UNet(config)
    unet.init_random(9)
    torch.save({"state_dict": unet.state_dict(), **header}, path)
    return unet.eval()


def test_checkpoint_and_its_config_are_used_and_recorded(tmp_path):
    path, file = tmp_path / "tiny.onnx", tmp_path / "tiny.pt"
    unet = save_checkpoint(file, TINY, config=TINY.to_dict())
    static = {"batch": 1, "frames": 2, "height": 8, "width": 8}
    report = export_latentsync(path, checkpoint=file, static=static)
    model = onnx.load(path)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert UNetConfig.from_mapping(json.loads(entries.pop("trt_native.config"))) == TINY
    assert entries == {
        "trt_native.model": "latentsync-unet",
        "trt_native.precision": "fp32",
        "trt_native.checkpoint_sha256": load_checkpoint(file).sha256,
    }
    assert report.parameters == sum(parameter.numel() for parameter in unet.parameters())
    inputs = example(1, 2, 8, 8)
    with torch.no_grad():
        expected = unet(**inputs)
    assert relative_l2(run(path, **as_arrays(inputs))[0], expected) <= 1e-4


def test_random_seed_is_recorded_and_repeatable(tmp_path, tiny_onnx):
    entries = {entry.key: entry.value for entry in onnx.load(tiny_onnx).metadata_props}
    assert entries["trt_native.random_seed"] == "5"
    assert "trt_native.checkpoint_sha256" not in entries


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, SpecError, "either a checkpoint or a random_seed"),
        ({"random_seed": 1, "checkpoint": "a.pt"}, SpecError, "either a checkpoint or a random"),
        ({"random_seed": 1, "precision": "int8"}, SpecError, "use fp32, fp16 or bf16"),
        ({"random_seed": 1, "static": {"frame": 2}}, SpecError, "need batch, frames, height"),
        ({"random_seed": 1, "static": {"batch": 0}}, SpecError, "of at least 1"),
        ({"random_seed": 1, "static": {"frames": 25}}, SpecError, "positions for 24"),
        ({"checkpoint": "missing.pt"}, ModelError, "cannot be read"),
        ({"checkpoint": {"a": torch.ones(1)}}, ModelError, "missing: conv_in.weight"),
        ({"random_seed": 1, "config": "large"}, SpecError, "not a preset"),
    ],
)
def test_requests_for_the_unet_that_do_not_fit(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        export_latentsync(tmp_path / "m.onnx", **{"config": TINY, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_mismatch_may_be_allowed(tmp_path, caplog):
    unet = UNet(TINY)
    state = {**unet.state_dict(), "surplus": torch.ones(1)}
    del state["conv_in.bias"]
    static = {"batch": 1, "frames": 1, "height": 8, "width": 8}
    path = tmp_path / "tiny.onnx"
    export_latentsync(path, config=TINY, checkpoint=state, static=static, allow_mismatch=True)
    assert "1 missing: conv_in.bias; 1 unexpected: surplus" in caplog.text
    stored = {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    np.testing.assert_array_equal(stored["conv_in.weight"], state["conv_in.weight"])
    assert stored["conv_in.bias"].std() > 0


@pytest.mark.slow
def test_exported_unet_gives_the_outputs_of_the_original_module(tmp_path):
    path = tmp_path / "small.onnx"
    unet = UNet(UNetConfig.load("small"))
    load_into(unet, load_checkpoint(DATA / "unet_small.pt").state_dict)
    dims = {
        "latents": {0: "batch", 2: "frames", 3: "height", 4: "width"},
        "encoder_hidden_states": {0: "batch*frames", 1: "tokens"},
    }
    export_module(unet, example(2, 4, 16, 8, tokens=6), path=path, dynamic=dims)
    check_strictly(path)
    golden = np.load(DATA / "unet_small.npz")
    for case in range(3):
        names = ("latents", "timestep", "encoder_hidden_states")
        inputs = {name: golden[f"case{case}.{name}"] for name in names}
        inputs["timestep"] = np.atleast_1d(inputs["timestep"])
        assert relative_l2(run(path, **inputs)[0], golden[f"case{case}.noise_pred"]) <= 1e-4


@pytest.mark.backend
@pytest.mark.parametrize("fixture", ["tiny_onnx", "tiny_fp16_onnx"])
def test_tensorrt_rtx_builds_the_dynamic_unet(request, fixture):
    trt = pytest.importorskip("tensorrt_rtx", reason="needs trt-native[rtx]")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(request.getfixturevalue(fixture)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    sizes = ((1, 1, 8, 8), (2, 4, 16, 16), (2, 24, 32, 32))
    profile.set_shape("latents", *((b, 13, f, h, w) for b, f, h, w in sizes))
    profile.set_shape("encoder_hidden_states", *((b * f, 50, 24) for b, f, _, _ in sizes))
    assert config.add_optimization_profile(profile) == 0
    assert builder.build_serialized_network(network, config) is not None
