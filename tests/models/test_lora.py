"""LoRA adapters in the weights of a plan, against PyTorch modules with merged weights."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.refittable import made_refittable, record_of
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import save_file

from trt_native import BuildConfig
from trt_native.errors import ModelError, SpecError, UnsupportedError
from trt_native.files import sha256_of_file
from trt_native.models.lora import LoraStack, read_lora
from trt_native.runtime.new_weights import WeightReader

torch = pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend

LAYERS = {"blocks.0.attn1.to_q": 3, "blocks.0.attn1.to_out.0": 2, "conv_in": 4, "proj": 2}
RANDOM = np.random.default_rng(0)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = torch.nn.Linear(8, 8, bias=False)
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(8, 6, bias=False)])


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1 = Attention()


class Net(torch.nn.Module):
    """Two linear layers, and two convolutions before them."""

    def __init__(self):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.proj = torch.nn.Conv2d(5, 8, 1, bias=False)
        self.blocks = torch.nn.ModuleList([Block()])

    def forward(self, x):
        x = self.proj(self.conv_in(x)).permute(0, 2, 3, 1)
        attention = self.blocks[0].attn1
        return attention.to_out[0](attention.to_q(x))


def exported(net, path):
    """The module as the exports here write it: weights of products are turned."""
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    linear = [name for name in state if state[name].ndim == 2]
    weights = {f"{n}.T" if n in linear else n: a.T if n in linear else a for n, a in state.items()}
    one, two = (f"{name}.T" for name in linear)
    nodes = [
        helper.make_node("Conv", ["x", "conv_in.weight"], ["a"], name="c", pads=[1] * 4),
        helper.make_node("Conv", ["a", "proj.weight"], ["b"], name="p"),
        helper.make_node("Transpose", ["b"], ["c"], name="t", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["c", one], ["d"], name="q"),
        helper.make_node("MatMul", ["d", two], ["y"], name="o"),
    ]
    shapes = {"x": (2, 3, 8, 8), "y": (2, 8, 8, 6)}
    io = [[tiny_models.tensor(name, TensorProto.FLOAT, shape)] for name, shape in shapes.items()]
    contiguous = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    return tiny_models.save(path, nodes, *io, contiguous)


class EvaluatedEngine:
    """An engine whose weights are replaced in an ONNX file, which onnx.reference runs."""

    def __init__(self, plan, model):
        self.plan, self._model = plan, onnx.load(model)
        self.replaceable_weights = WeightReader(plan, 0).replaceable()
        self.refits = []
        self.failure = None

    def refit(self, weights):
        if self.failure:
            raise self.failure
        self.refits.append(sorted(weights))
        for one in self._model.graph.initializer:
            if one.name in weights:
                array = np.ascontiguousarray(weights[one.name])
                assert array.dtype == np.float32
                assert array.shape == tuple(one.dims)
                one.CopyFrom(numpy_helper.from_array(array, one.name))

    def run(self, x):
        return ReferenceEvaluator(self._model).run(None, {"x": x})[0]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().requires_grad_(False)


@pytest.fixture(params=["fp32", "fp16"])
def engine(request, net, tmp_path):
    path = exported(net, tmp_path / "m.onnx")
    config = BuildConfig(precision=request.param)
    plan = made_refittable(tmp_path / "m.plan", record_of(path, config))
    model = {**plan.manifest.model, "file": "m.onnx", "bytes": path.stat().st_size}
    model["sha256"] = sha256_of_file(path)
    manifest = dataclasses.replace(plan.manifest, model=model)
    return EvaluatedEngine(dataclasses.replace(plan, manifest=manifest), path)


def factors(net, seed=0):
    """Random factors of each layer, as PyTorch has them."""
    random = np.random.default_rng(seed)
    made = {}
    for name, rank in LAYERS.items():
        outputs, *rest = net.get_submodule(name).weight.shape
        down = random.standard_normal((rank, *rest), np.float32)
        up = random.standard_normal((outputs, rank, *[1] * (len(rest) - 1)), np.float32)
        made[name] = up, down
    return made


def merged(net, *adapters):
    """A copy with the changes of adapters, each (factors, scale by layer)."""
    other = copy.deepcopy(net)
    for pairs, scale in adapters:
        for name, (up, down) in pairs.items():
            weight = other.get_submodule(name).weight
            up, down = torch.from_numpy(up).flatten(1), torch.from_numpy(down).flatten(1)
            weight += scale(name) * (up @ down).reshape(weight.shape)
    return other


def diffusers_keys(name):
    return f"unet.{name}.lora.up.weight", f"unet.{name}.lora.down.weight"


def processor_keys(name):
    if "attn1" not in name:
        return diffusers_keys(name)
    attention, layer = name.split("attn1.")
    layer = layer.removesuffix(".0")
    return tuple(f"{attention}attn1.processor.{layer}_lora.{k}.weight" for k in ("up", "down"))


def peft_keys(name):
    return tuple(f"base_model.model.{name}.lora_{k}.default.weight" for k in "BA")


def plain_peft_keys(name):
    return tuple(f"unet.{name}.lora_{k}.weight" for k in "BA")


def kohya_keys(name):
    flat = name.replace(".", "_")
    return tuple(f"lora_unet_{flat}.lora_{k}.weight" for k in ("up", "down"))


def saved(path, pairs, keys, metadata=None, **others):
    tensors = {}
    for name, (up, down) in pairs.items():
        tensors |= dict(zip(keys(name), (up, down), strict=True))
    save_file({**tensors, **others}, path, metadata)
    return path


X = RANDOM.standard_normal((2, 3, 8, 8), np.float32)


def assert_close(engine, net):
    expected = net(torch.from_numpy(X)).numpy()
    error = np.linalg.norm(engine.run(X) - expected) / np.linalg.norm(expected)
    assert error <= 1e-5


@pytest.mark.parametrize(
    "keys", [diffusers_keys, processor_keys, peft_keys, plain_peft_keys, kohya_keys]
)
def test_every_format(engine, net, tmp_path, keys):
    pairs = factors(net)
    path = saved(tmp_path / "a.safetensors", pairs, keys)
    stack = LoraStack(engine)
    assert stack.load(path, 0.7) == "a"
    assert_close(engine, merged(net, (pairs, lambda name: 0.7)))
    stack.unload()
    assert_close(engine, net)


def test_alpha(engine, net, tmp_path):
    """Of a layer, of the file, and divided by the square root of the rank."""
    pairs = factors(net)
    alphas = {f"{kohya_keys(n)[0].split('.')[0]}.alpha": np.array(1.5, np.float32) for n in LAYERS}
    one = saved(tmp_path / "one.safetensors", pairs, kohya_keys, **alphas)
    data = {"unet.r": 4, "unet.lora_alpha": 3}
    adapter = {"lora_adapter_metadata": json.dumps(data)}
    two = saved(tmp_path / "two.safetensors", pairs, plain_peft_keys, adapter)
    adapter = {"lora_adapter_metadata": json.dumps({**data, "unet.use_rslora": True})}
    three = saved(tmp_path / "three.safetensors", pairs, plain_peft_keys, adapter)
    for path, scale in (
        (one, lambda name: 1.5 / LAYERS[name]),
        (two, lambda name: 3 / LAYERS[name]),
        (three, lambda name: 3 / LAYERS[name] ** 0.5),
    ):
        stack = LoraStack(engine)
        stack.load(path)
        assert_close(engine, merged(net, (pairs, scale)))
        stack.unload()


def test_several_at_once(engine, net, tmp_path):
    one, two = factors(net), {"proj": factors(net, 1)["proj"]}
    stack = LoraStack(engine, models=[tmp_path / "m.onnx"])
    stack.load(saved(tmp_path / "one.safetensors", one, kohya_keys), 0.5)
    stack.load(saved(tmp_path / "two.safetensors", two, diffusers_keys), -2, name="second")
    assert stack.scales == {"one": 0.5, "second": -2.0}
    assert engine.refits[-1] == ["proj.weight"], "no other weight is replaced"
    first = one, lambda name: 0.5
    assert_close(engine, merged(net, first, (two, lambda name: -2)))
    stack.load(tmp_path / "two.safetensors", 0.25, name="second")
    assert_close(engine, merged(net, first, (two, lambda name: 0.25)))
    stack.unload("one")
    assert_close(engine, merged(net, (two, lambda name: 0.25)))
    with pytest.raises(SpecError, match="no adapter 'one': 'second'"):
        stack.unload("one")
    stack.unload()
    assert stack.scales == {}
    own = {
        one.name: numpy_helper.to_array(one)
        for one in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    for one in engine._model.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(one), own[one.name])


def test_what_does_not_fit_changes_nothing(engine, net, tmp_path):
    pairs = factors(net)
    up, down = pairs["proj"]
    others = {
        **pairs,
        "proj": (up[:, :1], down),
        "conv_out": pairs["conv_in"],
        "blocks.0.attn1.to_q": (pairs["blocks.0.attn1.to_q"][0], np.ones((3, 5), np.float32)),
    }
    stack = LoraStack(engine)
    with pytest.raises(SpecError, match="does not fit the U-Net") as caught:
        stack.load(saved(tmp_path / "a.safetensors", others, diffusers_keys))
    assert caught.value.problems == (
        "blocks_0_attn1_to_q: factors 8x3 and 3x5 for 'blocks.0.attn1.to_q.weight.T' of 8x8",
        "conv_out is not in the U-Net",
        "proj: factors 8x1x1x1 and 2x5x1x1 for 'proj.weight' of 8x5x1x1",
    )
    assert engine.refits == []
    assert stack.scales == {}


@pytest.mark.parametrize(
    ("others", "kind", "message"),
    [
        ({"unet.proj.lora_magnitude_vector": np.ones(8)}, UnsupportedError, "magnitude_vector"),
        ({"lora_unet_proj.hada_w1_a": np.ones((2, 2))}, UnsupportedError, "hada_w1_a"),
        ({"lora_unet_proj.lora_mid.weight": np.ones((2, 2))}, UnsupportedError, "lora_mid"),
        ({"unet.mid.lora.up.weight": np.ones((2, 2))}, ModelError, "without both factors"),
        ({"lora_unet_mid.alpha": np.ones(1)}, ModelError, "without both factors"),
    ],
    ids=["dora", "loha", "tucker", "half", "alpha"],
)
def test_files_with_something_else(net, tmp_path, others, kind, message):
    path = saved(tmp_path / "a.safetensors", factors(net), diffusers_keys, **others)
    with pytest.raises(kind) as caught:
        read_lora(path)
    assert message in str(caught.value)


def test_metadata_and_empty_files(net, tmp_path):
    for text, kind in (("[", ModelError), ("[1]", ModelError), ('{"lora_alpha": "x"}', ModelError)):
        metadata = {"lora_adapter_metadata": text}
        with pytest.raises(kind, match="is malformed"):
            read_lora(saved(tmp_path / "a.safetensors", factors(net), diffusers_keys, metadata))
    metadata = {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {"proj": 2}})}
    with pytest.raises(UnsupportedError, match="different alphas"):
        read_lora(saved(tmp_path / "a.safetensors", factors(net), diffusers_keys, metadata))
    text = {"lora_te_text_model_encoder.lora_up.weight": np.ones((2, 2), np.float32)}
    with pytest.raises(UnsupportedError, match="it has none of a U-Net"):
        read_lora(saved(tmp_path / "a.safetensors", {}, diffusers_keys, **text))


def test_layers_of_text_encoders_are_left_out(net, tmp_path, caplog):
    text = {"text_encoder.layers.0.lora_A.weight": np.ones((2, 2), np.float32)}
    path = saved(tmp_path / "a.safetensors", factors(net), plain_peft_keys, **text)
    assert set(read_lora(path)) == {name.replace(".", "_") for name in LAYERS}
    assert "1 tensors of text encoders are left out" in caplog.text


def test_weights_of_another_file(engine, net, tmp_path):
    """What an adapter is added to must be the plan's own."""
    stack = LoraStack(engine)
    path = saved(tmp_path / "a.safetensors", factors(net), diffusers_keys)
    torch.manual_seed(1)
    exported(Net().requires_grad_(False), tmp_path / "m.onnx")
    with pytest.raises(SpecError, match="is not that of the plan"):
        LoraStack(engine).load(path)
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(SpecError, match="is not next to the plan"):
        LoraStack(engine)
    with pytest.raises(SpecError, match="0 ONNX files for 0 engines"):
        LoraStack()
    assert engine.refits == []
    assert stack.scales == {}


def test_two_engines_change_together(engine, net, tmp_path):
    """As the two steps of DeepCache do: where one fails, the other goes back."""
    other = EvaluatedEngine(engine.plan, tmp_path / "m.onnx")
    pairs = factors(net)
    path = saved(tmp_path / "a.safetensors", pairs, diffusers_keys)
    stack = LoraStack(engine, other)
    stack.load(path, 1)
    for one in (engine, other):
        assert_close(one, merged(net, (pairs, lambda name: 1)))
    other.failure = SpecError("no")
    with pytest.raises(SpecError, match="no"):
        stack.load(path, 5)
    assert_close(engine, merged(net, (pairs, lambda name: 1)))
    assert stack.scales == {"a": 1.0}
