"""Content of modules, equal only where their exports are."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from trt_native.compilation.module_content import code_files, digest_module
from trt_native.files import sha256_of_file


class Net(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        for name, value in attributes.items():
            setattr(self, name, value)


class Settings:
    def __init__(self, **values):
        self.__dict__.update(values)


def scaled(factor):
    return lambda x: x * factor


def digest(module):
    return digest_module(module)[0]


def test_equal_modules_have_equal_content():
    made = [Net(a=1, settings=Settings(b=[2, {"c": None}]), act=scaled(2)) for _ in range(2)]
    made[1].train(False)
    assert digest(made[0]) == digest(made[1])
    for module in made:
        module.register_forward_hook(lambda *_: None)
    other = Net()
    other.register_forward_hook(lambda *_: None)
    assert digest(made[0]) == digest(made[1]) != digest(other)


def test_configurations_of_diffusers_have_the_same_content_in_every_process():
    """They list names in the order of a set."""
    script = """
        from diffusers import UNet2DModel
        from trt_native.compilation.module_content import code_files, digest_module
        import torch

        torch.manual_seed(0)
        net = UNet2DModel(
            block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4, layers_per_block=1,
        )
        content, modules = digest_module(net)
        ending = "diffusers/models/attention_processor.py"
        print(content, any(path.endswith(ending) for path in code_files(modules)))
    """
    pytest.importorskip("diffusers")
    found = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert found[0][1] == "True"


def _in_place(module):
    with torch.no_grad():
        module.linear.weight[0, 0] += 1e-3


def _as(name, value):
    return lambda module: setattr(module, name, value)


CHANGES = {
    "weight": _in_place,
    "buffer": lambda m: m.norm.running_mean.add_(1),
    "buffer outside the state": lambda m: m.hidden.add_(1),
    "type": lambda m: m.half(),
    "attribute": lambda m: setattr(m.norm, "eps", 1e-3),
    "number type": _as("a", 1.0),
    "flag": _as("a", True),
    "text": _as("a", "1"),
    "class": lambda m: setattr(m, "norm", nn.LayerNorm(4)),
    "further part": _as("more", nn.ReLU()),
    "nested setting": _as("settings", Settings(b=3)),
    "closure": _as("act", scaled(3)),
    "function": _as("act", torch.relu),
    "partial": _as("act", functools.partial(torch.clamp, min=1)),
    "partial with another argument": _as("act", functools.partial(torch.clamp, min=2)),
    "array": _as("table", np.arange(3)),
    "array with other values": _as("table", np.arange(3) * 2),
    "tensor attribute": _as("table", torch.arange(3)),
    "hidden part": _as("parts", [nn.Linear(2, 2)]),
    "hook": lambda m: m.linear.register_forward_pre_hook(lambda *_: None),
    "type setting": _as("kind", torch.float16),
}


def test_every_change_gives_other_content():
    found = {"none": digest(Net(a=1, act=scaled(2), settings=Settings(b=2)))}
    for name, change in CHANGES.items():
        module = Net(a=1, act=scaled(2), settings=Settings(b=2))
        change(module)
        found[name] = digest(module)
    assert len(set(found.values())) == len(found)


def test_values_that_look_alike_differ():
    values = [[1, 2], [[1], 2], [1, [2]], (1, 2), ["1", 2], {1: 2}, {1, 2}, [12], "12", b"12"]
    assert len({digest(Net(a=value)) for value in values}) == len(values)


def test_cycles_and_shared_parts():
    one, other = Net(), Net()
    one.settings = other.settings = Settings()
    one.settings.owner = one
    assert digest(one) == digest(one)
    shared = nn.Linear(4, 4)
    tied, apart = nn.ModuleList([shared, shared]), nn.ModuleList([shared, nn.Linear(4, 4)])
    apart[1].load_state_dict(shared.state_dict())
    assert digest(tied) != digest(apart)


@pytest.mark.parametrize("value", [threading.Lock(), torch.Generator(), object(), {object()}])
def test_what_has_no_content_is_not_told(value):
    assert digest_module(Net(a=value)) is None


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that was there before this process."""
    files = {
        "made_code/__init__.py": "from . import net",
        "made_code/net.py": "import math, torch\nfrom .used import helper\nclass A: pass",
        "made_code/used.py": "from .further import VALUE, Kind\ndef helper(): pass",
        "made_code/further.py": "VALUE = 3\nclass Kind: pass",
        "made_code/apart.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        os.utime(path, (1e9, 1e9))
    monkeypatch.syspath_prepend(tmp_path)
    __import__("made_code.apart")
    yield tmp_path / "made_code"
    for name in [name for name in sys.modules if name.split(".")[0] == "made_code"]:
        del sys.modules[name]


def test_files_of_the_code_and_of_all_that_it_uses(package):
    found = code_files(frozenset({"made_code.net", "torch.nn", "math"}))
    used = [package / f"{name}.py" for name in ("net", "used", "further")]
    assert found == {str(path): sha256_of_file(path) for path in used}


def test_code_without_a_file_or_newer_than_the_process(package, monkeypatch):
    path = package / "further.py"
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert code_files(frozenset({"made_code.net"})) is None
    os.utime(path, (1e9, 1e9))
    assert code_files(frozenset({"made_code.net"})) is not None
    monkeypatch.delattr(sys.modules["made_code.used"], "__file__")
    assert code_files(frozenset({"made_code.net"})) is None
    path.unlink()
    assert code_files(frozenset({"made_code.further"})) is None
