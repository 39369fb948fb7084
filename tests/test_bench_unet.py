"""The U-Net benchmark's checks and bookkeeping, on the CPU with PyTorch in the plans' place."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch
from denoising import TorchExecutor, plan_tensors
from golden_unet import DATA

from trt_native import LatentSyncUNet
from trt_native.models.latentsync import UNetConfig, load_unet

SMALL = UNetConfig.load("small")
pytestmark = pytest.mark.usefixtures("one_thread")


class Clock:
    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.time - self.time) * 1e3


@pytest.fixture
def bench(monkeypatch):
    path = Path(__file__).parents[1] / "scripts" / "bench" / "unet.py"
    spec = importlib.util.spec_from_file_location("bench_unet", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_unet", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "_event", Clock)
    monkeypatch.setattr(module, "_machine", dict)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return module


def run(bench, work, **options):
    given = {"only": "eager,static", "stage": "together", "checkpoint": DATA / "unet_small.pt"}
    given |= {"plan": None, "config": "small", "batch": 2, "frames": 2, "size": 16, "rounds": 3}
    given |= {"jobs": 1, "alone": "", "started": 0.0}
    bench.bench(work=work, **{**given, **options})


def put_in_place(bench, monkeypatch, scale):
    """A static plan that computes the noise times ``scale``."""
    unet, _ = load_unet(config="small", checkpoint=DATA / "unet_small.pt", dtype="float16")
    tensors = plan_tensors(dtype="float16", batch="2", frames="2", size="16")
    executor = TorchExecutor("static.plan", lambda **inputs: scale * unet(**inputs), tensors)
    plan = LatentSyncUNet(executor, config=SMALL)
    monkeypatch.setattr(bench, "_load_plans", lambda name, setup: plan)


def test_everything_is_checked_then_timed(bench, monkeypatch, tmp_path, capsys):
    put_in_place(bench, monkeypatch, scale=1)
    run(bench, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["accuracy"]["static"] == results["accuracy"]["eager"]
    errors = results["accuracy"]["static"]
    assert list(errors) == ["timestep_951", "timestep_501", "timestep_1", "latents_x30"]
    assert all(0 < error < 0.01 for error in errors.values())
    for row in results["time"].values():
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
    assert list(results["time"]) == ["eager", "static"]
    assert "Not measured: LatentSync's own module" in capsys.readouterr().out


def test_what_is_wrong_is_not_timed(bench, monkeypatch, tmp_path, capsys):
    put_in_place(bench, monkeypatch, scale=1.1)
    with pytest.raises(bench.typer.Exit):
        run(bench, tmp_path)
    assert "static is not timed, because its results are wrong: 0.1" in capsys.readouterr().err
    assert "time" not in json.loads((tmp_path / "results.json").read_text())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scaled_latents_need_be_finite_only(bench, value):
    bench._require_right("static", {"timestep_1": 0.01, "latents_x30": 0.9})
    with pytest.raises(bench.VerificationError, match="latents_x30"):
        bench._require_right("static", {"timestep_1": 0.01, "latents_x30": value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "eager,fast"}, "fast: unknown; choose from eager, compile, static"),
        ({"stage": "all"}, "all: unknown; choose from prepare, alone, together"),
        ({"plan": ["slow=x.plan"]}, "--plan slow=x.plan: needs NAME=PATH, NAME one of static"),
        ({"plan": ["static"]}, "--plan static: needs NAME=PATH"),
    ],
)
def test_options_that_mean_nothing(bench, tmp_path, capsys, options, message):
    with pytest.raises(bench.typer.Exit):
        run(bench, tmp_path / "work", **options)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
