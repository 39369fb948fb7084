"""Weights for a written graph: their sources, without PyTorch where it is not needed."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers import DATA
from safetensors.torch import save_file

from trt_native.errors import ModelError, SpecError
from trt_native.models.latentsync import UNetConfig, load_unet
from trt_native.models.latentsync.export import export_latentsync
from trt_native.models.latentsync.weights import load_weights

CHECKPOINT = DATA / "unet_small.pt"
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["onnxscript"] = None
from trt_native.cli import main
main(["export", "latentsync", *sys.argv[1:]])
"""


def load(checkpoint=None, config="small", seed=None, dtype=ir.DataType.FLOAT, **options):
    return load_weights(
        config=config,
        checkpoint=checkpoint,
        random_seed=seed,
        dtype=dtype,
        allow_mismatch=options.get("allow_mismatch", False),
        progress=options.get("progress"),
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_give_the_same_weights_as_pytorch(tmp_path, state, kind):
    path = tmp_path / "c.safetensors"
    tensors = {name: tensor.to(kind) for name, tensor in state.items()}
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, path)
    mapped, given = load(path), load(tensors)
    assert mapped.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert mapped.tensors.keys() == given.tensors.keys() == state.keys()
    for name, tensor in mapped.tensors.items():
        assert tensor.dtype == given.tensors[name].dtype
        assert np.array_equal(tensor.numpy(), given.tensors[name].numpy()), name


def test_the_same_file_from_either_format(tmp_path, state):
    path = tmp_path / "c.safetensors"
    save_file(dict(state), path)
    graphs = []
    for checkpoint in (CHECKPOINT, path):
        export_latentsync(
            tmp_path / "unet.onnx", config="small", checkpoint=checkpoint, precision="fp16"
        )
        graphs.append(onnx.load(tmp_path / "unet.onnx").graph.SerializeToString())
    assert graphs[0] == graphs[1]


def test_the_configuration_in_safetensors(tmp_path, state):
    path = tmp_path / "c.safetensors"
    own = {**UNetConfig.load("small").to_dict(), "norm_eps": 0.25}
    save_file(dict(state), path, metadata={"config": json.dumps(own)})
    assert load(path, config=None).config.norm_eps == 0.25
    assert load(path).config == UNetConfig.load("small")
    save_file(dict(state), path, metadata={"config": "{"})
    with pytest.raises(ModelError, match="the metadata entry 'config' is not JSON"):
        load(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-4], "not a safetensors file, or truncated"),
        (lambda data: data + b"more", "not a safetensors file, or truncated"),
        (lambda data: b"hello", "not a safetensors file, or truncated"),
        (lambda data: b"", "is empty"),
        (lambda data: data.replace(b'"F32"', b'"I32"'), "has tensors in I32; save them in F32"),
    ],
)
def test_damaged_safetensors(tmp_path, state, damage, message):
    path = tmp_path / "c.safetensors"
    save_file({name: tensor.float() for name, tensor in state.items()}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=message):
        load(path)


def test_weights_that_do_not_fit(state, caplog):
    partial = {**state, "extra": torch.zeros(1)}
    del partial["conv_in.bias"], partial[next(name for name in state if name.endswith(".pe"))]
    with pytest.raises(ModelError, match=r"2 missing: conv_in\.bias.*1 unexpected: extra"):
        load(partial)
    found = load(partial, allow_mismatch=True).tensors
    assert "the checkpoint does not fit: 2 missing" in caplog.text
    assert found.keys() == state.keys()
    random = load(seed=0).tensors
    assert np.array_equal(found["conv_in.bias"].numpy(), random["conv_in.bias"].numpy())
    assert np.array_equal(found["conv_in.weight"].numpy(), state["conv_in.weight"])


@pytest.mark.parametrize("sources", [{}, {"checkpoint": CHECKPOINT, "seed": 0}])
def test_there_is_exactly_one_source(sources):
    with pytest.raises(SpecError, match="either a checkpoint or a random_seed"):
        load(**sources)


class TestWithoutPyTorch:
    def export(self, *words):
        words = [sys.executable, "-c", WITHOUT_TORCH, "--config", "small", *map(str, words)]
        return subprocess.run(words, capture_output=True, text=True)

    def test_safetensors_and_random_weights(self, tmp_path, state):
        save_file(dict(state), tmp_path / "c.safetensors")
        for source in ((tmp_path / "c.safetensors",), ("--random-weights", 1)):
            done = self.export(*source, "-o", tmp_path / "unet.onnx")
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "unet.onnx").stat().st_size > 6e6

    def test_its_own_format(self, tmp_path):
        done = self.export(CHECKPOINT, "-o", tmp_path / "unet.onnx")
        assert done.returncode == 1
        assert "unet_small.pt: reading it needs PyTorch, which is not installed" in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []


NAME = "time_embedding.linear_1.weight"
SPECIAL = {
    "sparse (torch.sparse_coo)": torch.Tensor.to_sparse,
    "sparse (torch.sparse_csr)": torch.Tensor.to_sparse_csr,
    "of torch.qint8": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "without data (of the meta device)": lambda t: t.to("meta"),
    "of torch.complex64": lambda t: t.to(torch.complex64),
    "of torch.int8": lambda t: t.to(torch.int8),
    "of torch.bool": lambda t: t > 0,
    "nested": lambda t: torch.nested.nested_tensor([t[0], t[1]]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SPECIAL)
def test_tensors_that_are_not_plain_numbers_are_refused(kind, state, tmp_path):
    path = tmp_path / "c.pt"
    torch.save({"state_dict": {**state, NAME: SPECIAL[kind](state[NAME])}}, path)
    with pytest.raises(ModelError, match=re.escape(f"{NAME} is {kind}")):
        load(path)
    with pytest.raises(ModelError, match=re.escape(f"{NAME} is {kind}")):
        load_unet(config="small", checkpoint=path)


def test_parameters_are_weights_too(state):
    given = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    np.testing.assert_array_equal(load(given).tensors[NAME].numpy(), state[NAME].numpy())


def test_more_random_weights_than_any_machine_holds():
    config = UNetConfig(block_out_channels=(2**15,) * 4)
    with pytest.raises(SpecError, match=r"has [\d,]+ random weights; at most 10,000,000,000 are"):
        load(config=config, seed=0)
