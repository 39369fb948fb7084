"""The U-Net benchmark's checks and bookkeeping, on the CPU with PyTorch in the plans' place."""

from __future__ import annotations

import importlib
import json
import lzma
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from helpers import DATA, ROOT
from helpers.denoising import TorchStepRunner, plan_tensors
from helpers.golden_unet import cases, two_level_config

from trt_native import LatentSyncUNet
from trt_native.models.latentsync import (
    DeepCacheFull,
    DeepCacheShallow,
    UNet,
    UNetConfig,
    load_unet,
)
from trt_native.models.latentsync.pipeline import UNetOutput

SMALL = UNetConfig.load("small")
SCRIPTS = str(ROOT / "scripts" / "bench")
pytestmark = pytest.mark.usefixtures("one_thread")


class Clock:
    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.time - self.time) * 1e3


@pytest.fixture
def script(monkeypatch):
    """Imports a script of scripts/bench, fresh, as Python does when it runs one of them."""
    monkeypatch.syspath_prepend(SCRIPTS)
    for name in ("unet", "unet_files", "naive_unet", "processes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in ("unet", "unet_files", "naive_unet", "processes"):
        sys.modules.pop(name, None)


@pytest.fixture
def bench(script, monkeypatch):
    """The benchmark, whose child processes are this one, and whose GPU is the CPU."""
    module = script("unet")

    def in_process(words, note, seconds):
        if words[1] == "-c":
            if note is not None:
                note({"bare_start_s": 0.5})
            return
        _, _, kind, setup, what, names, rounds, started = words
        assert kind == "child"
        given = module.Setup.from_json(setup), what, names.split(","), int(rounds), float(started)
        for row in module._rows(*given):
            if "error" in row:
                raise module.ProcessError(row["error"])
            if note is not None:
                note(json.loads(json.dumps(row)))

    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "_event", Clock)
    monkeypatch.setattr(module, "_machine", dict)
    monkeypatch.setattr(module, "read_lines", in_process)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1 << 30)
    monkeypatch.setattr(module, "TIMESTEPS", module.TIMESTEPS[:4])
    monkeypatch.setattr(module, "STEPS", 4)
    return module


def measured(bench, work, **options):
    given = {"only": "eager,static", "checkpoint": DATA / "unet_small.pt", "config": "small"}
    given |= {"batch": 2, "frames": 2, "size": 8, "rounds": 3}
    bench.measure(work, **{**given, **options})
    return json.loads((work / "results.json").read_text())


class Halving:
    """Not a U-Net, but as quick: half the latents, and the deep features of the last full step."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def step(self, latents, timestep, audio, deep_features=None):
        return self.scale * latents[:, :4] / 2, latents

    def __call__(self, latents, timestep, audio):
        noise = self.step(latents, timestep, audio)[0]
        return UNetOutput(noise) if self.is_plan else noise

    is_plan = False


def halve(bench, monkeypatch, *, scale=1.0, fails_at=None):
    """All contenders halve; plans times ``scale``, and when loaded the n-th time they fail."""
    loaded = []

    def load_plans(name, setup):
        loaded.append(name)
        if len(loaded) == fails_at:
            raise RuntimeError("CUDA error: an illegal memory access\nand more")
        plan = Halving(scale)
        plan.is_plan = True
        return plan

    monkeypatch.setattr(bench, "_load_plans", load_plans)
    monkeypatch.setattr(bench, "load_module", lambda *given: Halving())


def put_in_place(bench, monkeypatch):
    """Plans that compute what they should."""
    unet, _ = load_unet(config="small", checkpoint=DATA / "unet_small.pt", dtype="float16")

    def executor(kind, module):
        tensors = plan_tensors(kind, dtype="float16", batch="1", frames="1", size="16")
        return TorchStepRunner(f"{kind}.plan", module, tensors)

    def sharing(kind):
        with torch.device("meta"):
            step = kind(unet.config)
        step.load_state_dict(unet.state_dict(), assign=True)
        return step

    def load(name, setup):
        if name != "deepcache":
            return LatentSyncUNet(executor("single", unet), config=SMALL)
        full = executor("full", sharing(DeepCacheFull))
        shallow = executor("shallow", sharing(DeepCacheShallow))
        return LatentSyncUNet(full, shallow, config=SMALL, interval=bench.INTERVAL)

    monkeypatch.setattr(bench, "_load_plans", load)


@pytest.mark.slow
def test_everything_is_checked_then_timed(bench, monkeypatch, tmp_path, capsys):
    put_in_place(bench, monkeypatch)
    results = measured(bench, tmp_path, batch=1, frames=1, size=16)
    for errors in results["accuracy"].values():
        assert list(errors) == ["timestep_951", "timestep_501", "timestep_1", "latents_x30"]
        assert all(0 < error < 0.01 for error in errors.values())
    assert sorted(results["together"]) == ["eager", "static"]
    for row in results["together"].values():
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
    assert list(results["first"]) == ["static"]
    alone = results["alone"]["static"]
    assert alone["bare_start_s"] == 0.5
    assert alone["torch_peak_gib"] == 1
    assert 0 <= alone["imports_s"] < alone["first_result_s"]
    assert "One step, in turns" in capsys.readouterr().out


@pytest.mark.slow
def test_steps_that_skip_are_checked_and_timed_in_loops(bench, monkeypatch, tmp_path):
    put_in_place(bench, monkeypatch)
    results = measured(
        bench, tmp_path, only="deepcache,eager-deepcache", batch=1, frames=1, size=16
    )
    assert all(0 < errors["worst_looped"] < 0.01 for errors in results["accuracy"].values())
    assert "together" not in results
    assert sorted(results["deepcache"]) == ["deepcache", "eager-deepcache"]


def test_wrong_results_are_not_timed_and_the_others_are(bench, monkeypatch, tmp_path):
    halve(bench, monkeypatch, scale=1.1)
    results = measured(bench, tmp_path)
    wanted = "VerificationError: static is not timed, because its results are wrong: 0.1"
    assert results["alone"]["static"]["error"].startswith(wanted)
    assert list(results["together"]) == ["eager"]


@pytest.mark.parametrize(("fails_at", "section"), [(1, "first"), (2, "alone"), (3, "together")])
def test_failures_are_reported_and_the_others_go_on(
    bench, monkeypatch, tmp_path, fails_at, section
):
    halve(bench, monkeypatch, fails_at=fails_at)
    results = measured(bench, tmp_path)
    error = "RuntimeError: CUDA error: an illegal memory access"
    assert results[section]["static"] == {"error": error}
    assert "median_ms" in results["together"]["eager"]


def test_a_second_run_tries_again(bench, monkeypatch, tmp_path):
    halve(bench, monkeypatch, fails_at=1)
    measured(bench, tmp_path)
    results = measured(bench, tmp_path)
    assert "error" not in results["first"]["static"]
    assert sorted(results["together"]) == ["eager", "static"]


def test_a_plan_that_is_not_there_stops_no_other(bench, monkeypatch, tmp_path):
    halve(bench, monkeypatch)
    results = measured(bench, tmp_path / "work", plans=tmp_path)
    assert "has no static.plan" in results["first"]["static"]["error"]
    assert list(results["together"]) == ["eager"]


def test_without_a_reference_there_are_times_alone(bench, monkeypatch, tmp_path):
    halve(bench, monkeypatch)

    def fails(setup, *, loops):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench, "_save_reference", fails)
    results = measured(bench, tmp_path)
    assert results["seconds"]["FP32 reference"] == {"error": "RuntimeError: out of memory"}
    assert results["accuracy"] == {"eager": {}, "static": {}}
    assert sorted(results["together"]) == ["eager", "static"]


def test_nothing_starts_that_leaves_too_little_time(bench, monkeypatch, tmp_path):
    halve(bench, monkeypatch)
    results = measured(bench, tmp_path, deadline=bench.TOGETHER_SECONDS + 5.0)
    assert results["alone"]["eager"]["error"].startswith("not started: ")
    assert "together" not in results


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scaled_latents_need_be_finite_only(bench, value):
    bench._require_right("static", {"timestep_1": 0.01, "latents_x30": 0.9})
    with pytest.raises(bench.VerificationError, match="latents_x30"):
        bench._require_right("static", {"timestep_1": 0.01, "latents_x30": value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "eager,fast"}, "fast: unknown; choose from static, eager, naive"),
        ({"stage": "all"}, "all: unknown; choose from first, alone, together, profile"),
    ],
)
def test_invalid_options(bench, tmp_path, capsys, options, message):
    with pytest.raises(bench.typer.Exit):
        measured(bench, tmp_path / "work", **options)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("separate", "commands", "parts"),
    [
        (False, ["export"], ["checkpoint to warm plan"]),
        (True, ["export", "build"], ["checkpoint to ONNX", "ONNX to plan"]),
    ],
)
def test_the_way_from_a_checkpoint(bench, monkeypatch, tmp_path, separate, commands, parts):
    halve(bench, monkeypatch)
    ran = []
    monkeypatch.setattr(bench, "command", lambda words: ran.append(words))
    bench.from_checkpoint(tmp_path, config="small", frames=2, size=8, separate=separate)
    assert [words[0] for words in ran] == commands
    assert ("--build" in ran[0]) is not separate
    load_unet(config="small", checkpoint=tmp_path / "checkpoint.pt", dtype="float16")
    seconds = json.loads((tmp_path / "results.json").read_text())["seconds"]
    together = ["plan to first result", "checkpoint to running plan", "second process"]
    assert list(seconds) == [*parts, *together]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("_gemm_mha_v2_0x20094d9bc3ee62e7", "attention"),
        ("__myl_ReshTranReshTranReshAddConcMoveReshCastMean_0xe08604a7", "norms and reductions"),
        ("__myl_SiluGnor_0x0123", "norms and reductions"),
        (
            "cudnn_generated_fort_native_sm90_convFwd_pointwise_knob_27_256x64x32_8_0",
            "convolutions",
        ),
        ("__myl_CorrAdd_0x11", "convolutions"),
        ("cudnn_generated_fort_native_sm90_matMul_pointwise_knob_23_128x128", "matrix products"),
        ("__myl_FcAddMul_0x33", "matrix products"),
        ("__myl_ReshTranReshMove_0xef0a66fa", "moves"),
        ("__myl_AddSqrtDivMulReshMulAddCastSilu_0x381a", "pointwise"),
        ("something", "other"),
    ],
)
def test_kinds_of_kernels(bench, kernel, kind):
    assert bench._kind_of(kernel) == kind


# Processes ----------------------------------------------------------------------------------------


def lines_of(bench, program, seconds=60.0):
    rows = []
    try:
        bench.read_lines([sys.executable, "-c", program], rows.append, seconds)
    except bench.ProcessError as error:
        return rows, error.message
    return rows, None


def test_results_of_a_process_are_separated_from_library_output(script, capsys):
    rows, error = lines_of(script("unet"), 'print(\'{"a": 1}\\nhello\\n{"b": 2}\')')
    assert (rows, error) == ([{"a": 1}, {"b": 2}], None)
    assert "hello" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os; print('{\"a\": 1}', flush=True); os.abort()", "the process ended with -6"),
        ('print(\'{"a": 1}\'); print(\'{"error": "why"}\')', "why"),
        ("import time; print('{\"a\": 1}', flush=True); time.sleep(60)", "not ready after 2 s"),
    ],
)
def test_results_before_a_failure_are_kept(script, program, error):
    assert lines_of(script("unet"), program, seconds=2.0) == ([{"a": 1}], error)


# What is measured ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", cases(), ids=lambda case: "x".join(map(str, case["latents"].shape))
)
def test_the_naive_module_matches_the_original(script, case):
    naive = script("naive_unet").NaiveUNet(SMALL).eval().requires_grad_(False)
    naive.load_state_dict(
        load_unet(config="small", checkpoint=DATA / "unet_small.pt")[0].state_dict()
    )
    names = ("latents", "timestep", "encoder_hidden_states")
    found = naive(*(torch.from_numpy(case[name]) for name in names)).numpy()
    expected = case["noise_pred"]
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_repeated_weights_are_the_same_everywhere_and_finite(script, tmp_path):
    files = script("unet_files")
    setup = files.Setup(tmp_path, config="small", frames=2, size=16)
    ours = files.load_module(UNet, setup, "cpu", torch.float32)
    naive = files.load_module(files.NaiveUNet, setup, "cpu", torch.float32)
    latents, audio = setup.inputs("cpu")
    expected, found = (unet(latents, torch.tensor(501), audio) for unet in (ours, naive))
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert 0.1 < expected.std() < 10
    # An exact value, for another machine must have it too: 2**-3 of a value that NumPy keeps.
    uniform = np.random.RandomState(0).uniform(-1, 1, 2)[1]
    assert ours.conv_in.weight.flatten()[1] == float(np.float16(uniform)) / 8


def test_repeated_weights_are_distinct_and_compress(script, tmp_path):
    files = script("unet_files")
    state = files.load_module(UNet, files.Setup(tmp_path, config="small"), "cpu").state_dict()
    tensors = {name: t for name, t in state.items() if t.ndim > 1 and not name.endswith(".pe")}
    weights = [tensor.numpy().tobytes() for tensor in tensors.values()]
    assert len(set(weights)) == len(weights)
    data = b"".join(weights)
    assert len(lzma.compress(data, preset=1)) < len(data) / 20


def test_plans_are_packed_and_unpacked(script, tmp_path):
    files = script("unet_files")
    (tmp_path / "from").mkdir()
    plan = tmp_path / "from" / "static.plan"
    plan.write_bytes(b"plan" * 100_000)
    plan.with_name("static.plan.json").write_text("{}")
    files.pack(plan)
    assert not plan.exists()
    setup = files.Setup(tmp_path)
    files.unpack(plan.parent, setup, "static")
    assert setup.plan("static").read_bytes() == b"plan" * 100_000
    assert (tmp_path / "static.plan.json").read_text() == "{}"
    with pytest.raises(files.SpecError, match=r"has no dynamic\.plan"):
        files.unpack(plan.parent, setup, "dynamic")


@pytest.mark.slow
def test_the_naive_export(script, tmp_path):
    files = script("unet_files")
    config = tmp_path / "two_levels.json"
    config.write_text(json.dumps(two_level_config()))
    setup = files.Setup(tmp_path, config=str(config), frames=2, size=16)
    files.export(setup, "naive")
    model = onnx.load(tmp_path / "naive.onnx")
    onnx.checker.check_model(model)
    shapes = [[dim.dim_value for dim in i.type.tensor_type.shape.dim] for i in model.graph.input]
    assert shapes == [[2, 13, 2, 16, 16], [1], [4, 50, 24]]
    assert {p.key for p in model.metadata_props} >= {"trt_native.config"}
    kinds = [node.op_type for node in model.graph.node]
    # What the package's own export has not: transposes around convolutions.
    assert kinds.count("Transpose") > 2 * kinds.count("Conv")
