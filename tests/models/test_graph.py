"""The written graph against the module, through onnx.reference, for every switch it has."""

from __future__ import annotations

import functools
import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers.metrics import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from trt_native.errors import ExportError
from trt_native.graph.nodes import is_fp32
from trt_native.models.latentsync import DeepCacheFull, DeepCacheShallow, UNet, UNetConfig
from trt_native.models.latentsync.export import (
    export_deepcache,
    export_latentsync,
    unet_model,
)
from trt_native.models.latentsync.graph import Dims
from trt_native.models.latentsync.weights import load_weights
from trt_native.passes.autocast import autocast

FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
DYNAMIC = Dims("batch", "frames", "height", "width", "tokens")
NARROW = {
    "in_channels": 3,
    "out_channels": 2,
    "block_out_channels": [4, 8],
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
    "use_motion_module": False,
}
"""Two levels of few channels; motion modules need 32 and more."""
MOTION = {
    **NARROW,
    "block_out_channels": [32, 64],
    "norm_num_groups": 4,
    "use_motion_module": True,
    "motion_module_kwargs": {"num_attention_heads": 2, "temporal_position_encoding_max_len": 5},
}
pytestmark = pytest.mark.usefixtures("one_thread")


def motion(**changes):
    return {**MOTION, "motion_module_kwargs": {**MOTION["motion_module_kwargs"], **changes}}


@functools.cache
def unet_of(text):
    """A U-Net with random weights, none of them 0 or 1."""
    unet = UNet(UNetConfig.from_mapping(json.loads(text))).eval().requires_grad_(False)
    unet.init_random(1)
    return unet


def written(unet, dims=DYNAMIC, dtype=FLOAT, **options):
    weights = load_weights(
        config=unet.config,
        checkpoint=unet.state_dict(),
        random_seed=None,
        dtype=dtype,
        allow_mismatch=False,
        progress=None,
    )
    return unet_model(weights, dims, dtype=dtype, **options)


def inputs_of(config, shape=(2, 3, 6, 5), tokens=4, timestep=321, dtype=torch.float32):
    batch, frames, height, width = shape
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, config.in_channels, frames, height, width, generator=random)
    inputs = {"latents": latents.to(dtype), "timestep": torch.tensor([timestep])}
    if config.add_audio_layer:
        size = (batch * frames, tokens, config.cross_attention_dim)
        inputs["encoder_hidden_states"] = torch.randn(size, generator=random).to(dtype)
    return inputs


def run(model, inputs):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return ReferenceEvaluator(proto).run(None, arrays)


def error(mapping, shape=(2, 3, 6, 5), dims=DYNAMIC, **options):
    unet = unet_of(json.dumps(mapping))
    inputs = inputs_of(unet.config, shape)
    (found,) = run(written(unet, dims, **options), inputs)
    return relative_error(found, unet(**inputs))


@pytest.mark.parametrize(
    "mapping",
    [
        NARROW,
        {**NARROW, "center_input_sample": True},
        {**NARROW, "flip_sin_to_cos": False},
        {**NARROW, "freq_shift": 1},
        {**NARROW, "down_block_types": ["DownBlock3D"] * 2},
        {**NARROW, "up_block_types": ["CrossAttnUpBlock3D", "UpBlock3D"]},
        {**NARROW, "layers_per_block": 2},
        {**NARROW, "mid_block_scale_factor": 1.5},
        {**NARROW, "norm_num_groups": 4},
        {**NARROW, "norm_eps": 0.1},
        {**NARROW, "attention_head_dim": [1, 4]},
        {**NARROW, "add_audio_layer": False},
        {
            **NARROW,
            "block_out_channels": [4],
            "down_block_types": ["DownBlock3D"],
            "up_block_types": ["CrossAttnUpBlock3D"],
        },
        MOTION,
        {**MOTION, "motion_module_resolutions": [2]},
        {**MOTION, "motion_module_mid_block": True, "motion_module_resolutions": [1]},
        {**MOTION, "motion_module_decoder_only": True},
        motion(num_attention_heads=4),
        motion(num_transformer_block=2, attention_block_types=["Temporal_Self"]),
        motion(temporal_position_encoding=False),
        motion(temporal_attention_dim_div=2),
    ],
    ids=lambda mapping: ",".join(
        f"{key}={value}"
        for key, value in mapping.items()
        if (MOTION if mapping.get("motion_module_kwargs") else NARROW).get(key) != value
    ),
)
def test_every_switch_of_the_configuration(mapping):
    assert error(mapping) <= 1e-5


@settings(max_examples=6, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_random_configurations(data):
    def draw(*choices):
        return data.draw(st.sampled_from(choices))

    levels = draw(1, 2, 3)
    has_motion = draw(True, False)
    widths = (32, 64) if has_motion else (4, 8, 12)
    mapping = {
        "in_channels": draw(1, 3),
        "out_channels": draw(1, 4),
        "block_out_channels": [draw(*widths) for _ in range(levels)],
        "down_block_types": [draw("CrossAttnDownBlock3D", "DownBlock3D") for _ in range(levels)],
        "up_block_types": [draw("CrossAttnUpBlock3D", "UpBlock3D") for _ in range(levels)],
        "layers_per_block": draw(1, 2),
        "norm_num_groups": draw(1, 4),
        "cross_attention_dim": draw(1, 5),
        "attention_head_dim": draw(1, 4),
        "add_audio_layer": draw(True, False),
        "flip_sin_to_cos": draw(True, False),
        "use_motion_module": has_motion,
        "motion_module_resolutions": [draw(1, 2), 4],
        "motion_module_mid_block": draw(True, False),
        "motion_module_decoder_only": draw(True, False),
        "motion_module_kwargs": {"num_attention_heads": draw(1, 4, 16)},
    }
    shape = draw(1, 2), draw(1, 3), draw(3, 8), draw(4, 5)
    dims = Dims(
        *(draw(name, extent) for name, extent in zip(EXTENTS, shape, strict=True)), "tokens"
    )
    assert error(mapping, shape, dims) <= 2e-5


EXTENTS = ("batch", "frames", "height", "width")


@pytest.mark.parametrize("opset", [17, 18, 20, onnx.defs.onnx_opset_version()])
def test_every_opset(opset):
    assert error(MOTION, opset=opset) <= 1e-5


def test_static_extents_leave_no_shapes_to_compute():
    shape = (2, 3, 6, 5)
    assert error(MOTION, shape, Dims(*shape, 4)) <= 1e-5
    model = written(unet_of(json.dumps(MOTION)), Dims(*shape, 4))
    operators = {node.op_type for node in model.graph}
    assert not operators & {"Shape", "Slice"}
    assert not [node.name for node in model.graph if node.name.startswith("shapes/")]
    assert [list(value.shape) for value in model.graph.inputs] == [
        [2, 3, 3, 6, 5],
        [1],
        [6, 4, 6],
    ]


@pytest.mark.parametrize(
    ("dims", "images"),
    [
        (DYNAMIC, "batch*frames"),
        (Dims(1, "frames", "height", "width", 4), "frames"),
        (Dims("batch", 1, "height", "width", 4), "batch"),
        (Dims(2, "frames", 6, "width", 4), "2*frames"),
        (Dims(2, 3, "height", "width", 4), 6),
    ],
)
def test_the_dimension_of_audio(dims, images):
    model = written(unet_of(json.dumps(NARROW)), dims)
    audio = model.graph.inputs[2].shape
    assert [getattr(axis, "value", axis) for axis in audio] == [images, dims.tokens, 6]


def test_values_have_the_shapes_that_are_written():
    mapping, shape = MOTION, (2, 3, 6, 5)
    unet = unet_of(json.dumps(mapping))
    model = written(unet)
    names = {v.name for node in model.graph for v in node.outputs if v.name != "noise_pred"}
    extents = dict(zip((*EXTENTS, "tokens"), (*shape, 4), strict=True))
    proto = ir.to_proto(model)
    declared = {
        value.name: [
            eval(dim.dim_param, {}, dict(extents)) if dim.dim_param else dim.dim_value  # noqa: S307
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in proto.graph.value_info
    }
    types = {v.name: v.type.tensor_type.elem_type for v in proto.graph.value_info}
    assert declared.keys() >= names
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    arrays = {name: tensor.numpy() for name, tensor in inputs_of(unet.config, shape).items()}
    found = ReferenceEvaluator(proto).run(sorted(names), arrays)
    for name, array in zip(sorted(names), found, strict=True):
        assert (name, list(np.shape(array))) == (name, declared[name])
        assert array.dtype == onnx.helper.tensor_dtype_to_np_dtype(types[name]), name


class TestDeepCache:
    def test_both_steps(self):
        unet = unet_of(json.dumps(MOTION))
        inputs = inputs_of(unet.config)
        noise, features = run(written(unet, deepcache="full"), inputs)
        steps = [kind(unet.config).eval() for kind in (DeepCacheFull, DeepCacheShallow)]
        for step in steps:
            step.load_state_dict(unet.state_dict())
        full, shallow = steps
        with torch.no_grad():
            expected = full(**inputs)
        assert relative_error(noise, expected[0]) <= 1e-5
        assert relative_error(features, expected[1]) <= 1e-5

        later = {**inputs, "timestep": torch.tensor([300]), "deep_features": expected[1]}
        with torch.no_grad():
            expected = shallow(**later)
        (found,) = run(written(unet, deepcache="shallow"), later)
        assert relative_error(found, expected) <= 1e-5

    def test_the_shallow_step_has_the_weights_it_needs(self):
        model = written(unet_of(json.dumps(MOTION)), deepcache="shallow")
        blocks = {name.split(".resnets")[0] for name in model.graph.initializers if "resn" in name}
        assert blocks == {"up_blocks.1"}


class TestTypes:
    def test_fp16(self):
        unet = unet_of(json.dumps(MOTION))
        half = inputs_of(unet.config, dtype=torch.float16)
        (found,) = run(written(unet, dtype=FLOAT16), half)
        assert found.dtype == np.float16
        assert relative_error(found, unet(**inputs_of(unet.config))) <= 5e-3

    @pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
    def test_statistics_and_activations_are_in_fp32(self, dtype):
        model = written(unet_of(json.dumps(MOTION)), dtype=dtype, opset=22)
        wide = {"LayerNormalization", "Softmax", "Sigmoid", "Gelu", "Sin", "Cos"}
        narrow = {"Conv", "MatMul", "Gemm", "GroupNormalization"}
        types = {(n.op_type, n.outputs[0].dtype) for n in model.graph if n.op_type in wide | narrow}
        assert types == {(op, FLOAT) for op in wide} | {(op, dtype) for op in narrow}

    @pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
    def test_weights_are_rounded_as_pytorch_does(self, dtype):
        unet = unet_of(json.dumps(MOTION))
        kind = {FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}[dtype]
        model = written(unet, dtype=dtype, opset=22)
        found = {name: value.const_value for name, value in model.graph.initializers.items()}
        for name, tensor in unet.state_dict().items():
            given = found.get(name) or found[f"{name}.T"]
            values = torch.from_numpy(given.numpy().astype(np.float32))
            values = values if name in found else values.T
            assert torch.equal(values.reshape(tensor.shape), tensor.to(kind).float()), name

    def test_weights_beyond_the_range_of_a_type(self, tmp_path):
        state = dict(unet_of(json.dumps(NARROW)).state_dict())
        state["conv_in.bias"] = torch.tensor([1.0, -1e5, 0.0, 0.0])
        given = {"config": UNetConfig.from_mapping(NARROW), "checkpoint": state}
        for export in (export_latentsync, export_deepcache):
            message = r"conv_in\.bias has values up to 1e\+05, beyond float16's 6\.55e\+04"
            with pytest.raises(ExportError, match=message):
                export(tmp_path / "unet.onnx", **given, precision="fp16")
            assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_weights_that_are_not_finite(self, tmp_path, precision, value):
        state = dict(unet_of(json.dumps(NARROW)).state_dict())
        state["conv_in.bias"] = torch.tensor([1.0, value, 0.0, 0.0])
        given = {"config": UNetConfig.from_mapping(NARROW), "checkpoint": state}
        with pytest.raises(ExportError, match=r"conv_in\.bias has NaN or infinite values"):
            export_latentsync(tmp_path / "unet.onnx", **given, precision=precision)
        assert list(tmp_path.iterdir()) == []

    def test_autocast_keeps_the_timestep_in_fp32(self):
        for timestep in (ir.DataType.INT64, FLOAT):
            model = written(unet_of(json.dumps(NARROW)), timestep=timestep)
            autocast(model, FLOAT16)
            nodes = {node.name: node for node in model.graph}
            assert all(is_fp32(nodes[name].outputs[0]) for name in ("/Mul", "/Sin", "/Cos"))
            assert nodes["conv_in/Conv"].outputs[0].dtype == FLOAT16


def test_fractional_timesteps():
    unet = unet_of(json.dumps(NARROW))
    model = written(unet, timestep=FLOAT)
    inputs = inputs_of(unet.config, timestep=961.4)
    (found,) = run(model, inputs)
    assert relative_error(found, unet(**inputs)) <= 1e-5
    rounded = unet(**{**inputs, "timestep": torch.tensor([961])})
    assert relative_error(found, rounded) > 1e-4, "the fraction does matter"


def test_names_are_those_of_the_modules():
    unet = unet_of(json.dumps(MOTION))
    model = written(unet)
    parameters = set(unet.state_dict())
    modules = {name for name, _ in unet.named_modules()} | {"shapes"}
    weights = [name for name in model.graph.initializers if not name.startswith("constant")]
    assert {name.removesuffix(".T") for name in weights} == parameters
    assert {node.name.partition("/")[0] for node in model.graph} <= modules
    assert len({node.name for node in model.graph}) == len(model.graph)
    names = {node.name for node in model.graph}
    assert {
        "conv_in/Conv",
        "down_blocks.0.resnets.0.conv1/Conv",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q/MatMul",
    } <= names
