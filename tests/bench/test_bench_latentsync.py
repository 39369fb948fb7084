"""The benchmarks of LatentSync's chunk, on the CPU with PyTorch in the plans' places."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from helpers import DATA, ROOT

pytest.importorskip("diffusers")
from helpers.autoencoders import SMALL, runners

from trt_native import LatentSyncVAE
from trt_native.models.latentsync import load_vae

FILES = ("latentsync_chunk", "latentsync_steps", "latentsync_loop", "naive_unet", "processes")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture
def script(monkeypatch):
    """Imports a script of scripts/bench, fresh, as Python does when it runs one of them."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    for name in FILES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.fixture
def chunk(script, monkeypatch):
    """The benchmark, whose child processes are this one."""
    module = script("latentsync_chunk")
    seen = []

    def in_process(words, note, seconds):
        _, _, kind, text, name, rounds = words
        assert kind == "child"
        seen.append((name, seconds))
        data = json.loads(text)
        setup = module.Setup(**{**data, "work": module.Path(data["work"])})
        for row in module.rows(setup, name, int(rounds)):
            note(json.loads(json.dumps(row)))

    monkeypatch.setattr(module, "FRAMES", 2)
    monkeypatch.setattr(module, "read_lines", in_process)
    module.seen = seen
    return module


OPTIONS = {"config": "small", "vae_config": "small", "steps": 3, "chunks": 2, "rounds": 1}


def test_a_chunk_of_the_original_and_ours(chunk, tmp_path, monkeypatch, capsys):
    load = chunk.load
    vae = load_vae(config=SMALL, random_seed=0)[0]

    def with_our_vae(setup, name, *rest):
        theirs, unet = load(setup, name.replace("ours", "original"), *rest)
        ours = LatentSyncVAE(*runners(vae, frames="4"), config=SMALL)
        return (theirs if name.startswith("original") else ours), unet

    monkeypatch.setattr(chunk, "load", with_our_vae)
    names = "original,ours,ours-full"
    chunk.measure(tmp_path, only=names, deadline=1000, device="cpu", resolution=128, **OPTIONS)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == names.split(",")
    assert results["original"]["speedup"] == 1
    ours = results["ours"]
    assert ours["speedup"] == round(results["original"]["chunk_s"] / ours["chunk_s"], 3)
    # The same computation in another order of its sums; and every step in full is another one.
    assert ours["image_error"] < 0.05
    chunk.measure(
        tmp_path, only="original-full", deadline=1000, device="cpu", resolution=128, **OPTIONS
    )
    assert chunk._image_error(tmp_path, "ours-full", "original-full") < 0.05
    assert chunk._image_error(tmp_path, "original", "original-full") > 0.05
    assert all(0 < seconds <= 1000 for _, seconds in chunk.seen)
    assert "seconds per chunk" in capsys.readouterr().out


def test_a_contender_that_fails(chunk, tmp_path, capsys):
    # No plans were made.
    def fail(words, note, seconds):
        raise chunk.ProcessError("no")

    chunk.read_lines = fail
    chunk.measure(tmp_path, only="ours", device="cpu", **OPTIONS)
    assert json.loads((tmp_path / "results.json").read_text())["ours"] == {"error": "no"}
    assert "ours: no" in capsys.readouterr().out


def test_a_child_prints_its_error_last(chunk, tmp_path, capsys):
    setup = chunk.Setup(tmp_path, "small", "small", device="cpu")
    text = json.dumps(chunk.asdict(setup), default=str)
    chunk.child(text, "ours", 1)
    (line,) = capsys.readouterr().out.splitlines()
    assert "lacks unet.plan" in json.loads(line)["error"]


def test_the_choices_of_steps(script, capsys, monkeypatch):
    steps = script("latentsync_steps")
    kept = [steps.Choice("DDIM", 20, 1), steps.Choice("DDIM", 20, 2), steps.Choice("DPM++", 10, 1)]
    monkeypatch.setattr(steps, "CHOICES", kept)
    options = {"checkpoint": DATA / "unet_small.pt", "plans": None, "config": "small"}
    steps.measure(**options, frames=2, size=8, rounds=1, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:4] for row in cells] == [
        ["DDIM", "20", "off", "20"],
        ["DDIM", "20", "2", "10"],
        ["DPM++", "10", "off", "10"],
    ]
    assert cells[0][4] == "reference"
    assert all(float(row[4]) > 0 for row in cells[1:])


def test_skipping_is_deepcache(script):
    loop, naive = script("latentsync_loop"), script("naive_unet")
    from helpers.denoising import with_cached_modules

    from trt_native.models.latentsync import UNetConfig, load_unet

    unet = load_unet(config="small", checkpoint=DATA / "unet_small.pt")[0]
    ours = naive.NaiveUNet(UNetConfig.load("small")).eval().requires_grad_(False)
    ours.load_state_dict(unet.state_dict())
    scheduler = loop.SCHEDULERS["DPM++"]()
    scheduler.set_timesteps(4)
    skipping = loop.SkippingUNet(ours, scheduler.timesteps, 3)
    reference = with_cached_modules(unet, 3, scheduler.timesteps)
    random = torch.Generator().manual_seed(0)
    audio = torch.randn(2, 50, 24, generator=random)
    for timestep in scheduler.timesteps:
        latents = torch.randn(1, 13, 2, 16, 16, generator=random)
        with torch.no_grad():
            expected = reference(latents, timestep, audio)
            (found,) = skipping(latents, timestep, audio)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
