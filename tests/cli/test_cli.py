"""The command as a user meets it: real processes, exit codes, standard output and error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_models
from helpers.program import failing as fails
from helpers.program import trt_native
from typer.testing import CliRunner

from trt_native.cli.app import app
from trt_native.cuda import gpu_info

HAS_GPU = gpu_info() is not None


def restore_interrupts():
    """Restore SIGINT, which a shell's background jobs ignore, and so would their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def model(tmp_path):
    return tiny_models.conv(tmp_path / "m.onnx")


DIMS = ("--dim", "batch=1:2:4", "--dim", "height=8:8:16", "--dim", "width=8")


def test_help_lists_the_commands_and_imports_nothing_heavy():
    script = (
        "import sys; from trt_native.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'numpy', 'tensorrt', 'tensorrt_rtx', 'cuda'}"
        " & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    for command in ("build", "cache", "calibrate", "inspect", "run", "doctor", "export"):
        assert command in result.stdout
    assert result.stderr.strip() == "[]"


def test_importing_the_package_imports_nothing_heavy():
    script = "import sys, trt_native; print(len({'torch', 'numpy', 'onnx_ir'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "0"


def test_version():
    result = trt_native("--version")
    assert (result.returncode, result.stdout) == (0, "trt-native 0.1.0\n")


@pytest.mark.backend
class TestBuild:
    @pytest.fixture(autouse=True)
    def _needs_rtx(self):
        pytest.importorskip("tensorrt_rtx")

    def test_builds_a_plan_with_its_manifest(self, model, tmp_path):
        result = trt_native("build", model, *DIMS, "--backend", "rtx")
        assert result.returncode == 0, result.stderr
        assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.plan", "m.plan.json"]
        assert "1x3x8x8:2x3x8x8:4x3x16x8" in result.stdout
        assert "Building engine" in result.stderr

    def test_json_is_the_manifest_and_nothing_else(self, model, tmp_path):
        target = tmp_path / "out.plan"
        result = trt_native("build", model, "-o", target, *DIMS, "--backend", "rtx", "--json")
        printed = json.loads(result.stdout)
        written = json.loads((tmp_path / "out.plan.json").read_text())
        added = {"path": str(target), "cached": False, "failed_attempts": []}
        assert printed == {**added, **written}

    def test_dry_run_writes_nothing(self, model, tmp_path):
        profile = tmp_path / "p.yaml"
        profile.write_text("dims: {batch: 1:1:1, height: 8, width: 8}\n")
        result = trt_native(
            "build", model, "--profile", profile, "--dim", "batch=1:2:4", "--dry-run", "--json"
        )
        outcome = json.loads(result.stdout)
        assert outcome["profiles"] == [{"shapes": {"x": "1x3x8x8:2x3x8x8:4x3x8x8"}, "values": {}}]
        assert sorted(os.listdir(tmp_path)) == ["m.onnx", "p.yaml"]

    def test_shapes_win_over_dims_and_dims_over_the_file(self, model, tmp_path):
        profile = tmp_path / "p.toml"
        profile.write_text("[dims]\nbatch = 1\nheight = 8\nwidth = 8\n")
        result = trt_native(
            "build",
            model,
            *("--profile", profile, "--dim", "height=16", "--shape", "x=3x3x32x8"),
            *("--dry-run", "--json"),
        )
        assert json.loads(result.stdout)["profiles"][0]["shapes"] == {"x": "3x3x32x8"}

    def test_an_unwritable_target_is_found_before_the_build(self, model):
        message = fails("build", model, *DIMS, "-o", "/proc/m.plan", "--backend", "rtx")
        assert "cannot write /proc/m.plan" in message
        assert "Building engine" not in message

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--precision", "int8"], "precision int8 needs the ranges of the activations"),
            (["--precision", "best"], "a calibration cache is not enough (--calibration-data)"),
            (
                ["--precision", "best", "--calibration-data", "x", "--max-error", "2"],
                "maximum error 2.0",
            ),
            (["--precision", "best", "--dry-run"], "decides by building and measuring"),
            (["--max-error", "0.1"], "no effect without --precision best"),
            (
                ["--precision", "int8", "--calibration-data", "x", "--calibration-runner", "gpu"],
                "none of: auto, engi",
            ),
            (["--precision", "fast"], "none of: auto, fp32"),
            (["--workspace", "lots"], "not a size"),
            (["--dim", "batch"], "not NAME=RANGE"),
            (["--dim", "depth=1"], "'depth' is not one of the model's"),
            (["--shape", "x=1x3x8"], "has 4 axes"),
            (["--timing-cache", "c"], "timing_cache is not supported: it does not time tactics"),
            (
                ["--version-compatible"],
                "version_compatible is not supported: the package does not contain",
            ),
            (
                ["--hardware-compatibility", "ampere_plus"],
                "hardware_compatibility is not supported: its plans run",
            ),
            (
                ["--compute-capability", "3.5"],
                "compute capability 3.5 is not supported: it targets",
            ),
            (["--compute-capability", "sm_89"], "write it as 8.6"),
            (["--optimization-level", "9"], "it goes from 0 to 5"),
            (["--keep-fp32", "nothing*"], "nothing*"),
            (["--backend", "vulkan"], "no backend 'vulkan'"),
            pytest.param(
                ["--strip-weights"],
                "only on a machine with a GPU",
                marks=pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU"),
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_bad_options(self, model, tmp_path, arguments, message):
        backend = () if "--backend" in arguments else ("--backend", "rtx")
        assert message in fails("build", model, *DIMS, *backend, *arguments)
        assert os.listdir(tmp_path) == ["m.onnx"]

    def test_an_unknown_operator(self, tmp_path):
        path = tiny_models.conv(tmp_path / "m.onnx", operator="Warp")
        message = fails("build", path, *DIMS, "--backend", "rtx", "--precision", "fp32")
        assert "does not support these operators of m.onnx: Warp (first in node 'activation')" in (
            message
        )
        assert os.listdir(tmp_path) == ["m.onnx"]

    def test_ctrl_c_ends_the_build_and_leaves_no_file(self, tmp_path):
        model = tiny_models.conv_chain(tmp_path / "m.onnx")
        dim = ("--dim", "batch=1:2:4")
        process = subprocess.Popen(
            [sys.executable, "-m", "trt_native", "build", model, *dim, "--backend", "rtx"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            preexec_fn=restore_interrupts,
        )
        while "Building engine" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert rest.endswith("\ninterrupted\n")
        assert "Traceback" not in rest
        assert os.listdir(tmp_path) == ["m.onnx"]

    def test_ctrl_c_at_any_moment(self, model, tmp_path):
        for delay in np.linspace(0.05, 1.2, 8):
            process = subprocess.Popen(
                [sys.executable, "-m", "trt_native", "build", model, *DIMS, "--backend", "rtx"],
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "TMPDIR": str(tmp_path)},
                preexec_fn=restore_interrupts,
            )
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, text = process.communicate(timeout=60)
            if "trt_native" in text:  # the interpreter was still starting
                continue
            assert "Traceback" not in text
            left = set(os.listdir(tmp_path)) - {"m.onnx"}
            assert left in (set(), {"m.plan", "m.plan.json"})
            # Before Python has set its handler, and after it has removed it, the signal kills.
            assert process.returncode in (130, 0, -signal.SIGINT)


def test_no_backend_says_what_to_install(model, plant):
    env = plant("import sys; sys.modules['tensorrt'] = sys.modules['tensorrt_rtx'] = None")
    message = fails("build", model, *DIMS, env=env)
    assert "no TensorRT is installed; install one: pip install 'trt-native[rtx]'" in message


@pytest.mark.parametrize("command", ["build", "inspect"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "is empty"), (b"not onnx", "not an ONNX")],
    ids=["missing", "empty", "text"],
)
def test_files_that_are_not_models(tmp_path, command, content, message):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    assert message in fails(command, path)


def test_inspect_onnx(model):
    result = trt_native("inspect", model, "--json")
    data = json.loads(result.stdout)
    assert data["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}
    ]
    assert data["operators"] == {"Relu": 1, "Conv": 1}
    assert data["opsets"] == {"": 18}
    assert "batch x 3 x height x width" in trt_native("inspect", model).stdout


@pytest.mark.backend
def test_inspect_plan(model, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    trt_native("build", model, *DIMS, "--backend", "rtx")
    plan = tmp_path / "m.plan"
    data = json.loads(trt_native("inspect", plan, "--json").stdout)
    assert data["product"] == "TensorRT-RTX"
    assert data["bytes"] == plan.stat().st_size
    assert data["manifest"] == json.loads((tmp_path / "m.plan.json").read_text())
    assert (data["layers"] is not None) == HAS_GPU
    if not HAS_GPU:
        assert "only a machine with a GPU" in data["layers_unreadable"]
    plan.write_bytes(plan.read_bytes()[:-1])
    assert "damaged: its header says" in fails("inspect", plan)


def test_run_refuses_without_inputs(tmp_path):
    path = tmp_path / "m.plan"
    assert "no inputs: give --input" in fails("run", path)
    assert "cannot read" in fails("run", path, "--random", "0")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("x=none.npy", "cannot be read"),
        ("x=bad.npy", "not a NumPy file"),
        ("bad.npz", "not a NumPy file"),
        ("pickle.npy", "write NAME=FILE.npy"),
        ("x=pickle.npy", "not a NumPy file"),
    ],
)
def test_run_refuses_bad_input_files(tmp_path, entry, message):
    (tmp_path / "bad.npy").write_bytes(b"hello")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04hello")
    np.save(tmp_path / "pickle.npy", np.array([object()], object))
    assert message in fails("run", "m.plan", "--input", entry, cwd=tmp_path)


def test_doctor_prints_a_verdict():
    result = trt_native("doctor", "--json")
    findings = json.loads(result.stdout)
    assert findings["packages"]["numpy"] == np.__version__
    assert result.returncode == (0 if findings["can_build"] else 1)
    assert (findings["gpu"] is not None) == HAS_GPU
    assert findings["verdict"]


@pytest.mark.backend
class TestDoctorOfAPlan:
    @pytest.fixture
    def plan(self, model, tmp_path):
        pytest.importorskip("tensorrt_rtx")
        from trt_native import BuildConfig, ProfileSpec, build_plan

        profile = ProfileSpec.parse(DIMS[1::2])
        built = build_plan(model, BuildConfig(profiles=(profile,)), backend="rtx")
        return built.save(tmp_path / "my plan.plan")

    def test_it_prints_the_verdict_and_the_command(self, plan, tmp_path):
        result = trt_native("doctor", plan)
        assert result.returncode == (0 if HAS_GPU else 1)
        assert result.stderr == ""
        assert "TensorRT-RTX" in result.stdout
        if HAS_GPU:
            assert "Loads here." in result.stdout
            return
        assert "loading a plan needs a GPU" in result.stdout
        command = result.stdout.strip().splitlines()[-1].strip()
        before = json.loads((tmp_path / "my plan.plan.json").read_text())
        plan.unlink()
        subprocess.run(
            ["bash", "-c", command.replace("trt-native", f"{sys.executable} -m trt_native", 1)],  # noqa: S607
            check=True,
            capture_output=True,
        )
        after = json.loads((tmp_path / "my plan.plan.json").read_text())
        assert after["options"] == before["options"]
        assert after["tensors"] == before["tensors"]

    def test_a_damaged_plan_can_be_built_again(self, plan):
        data = bytearray(plan.read_bytes())
        data[-1] ^= 1
        plan.write_bytes(data)
        result = trt_native("doctor", plan, "--json")
        findings = json.loads(result.stdout)
        assert result.returncode == 1
        assert not findings["loads"]
        assert "SHA-256 differs" in findings["errors"][0]
        assert findings["rebuild"].startswith("trt-native build ")
        for command in ("inspect", "run"):
            arguments = ("--random", "0") if command == "run" else ()
            assert "SHA-256 differs" in fails(command, plan, *arguments)

    def test_a_foreign_plan(self, plan, tmp_path):
        (tmp_path / "my plan.plan.json").unlink()
        findings = json.loads(trt_native("doctor", plan, "--json").stdout)
        assert findings["rebuild"] is None
        assert findings["made_by"].startswith("TensorRT-RTX")
        (tmp_path / "my plan.plan.json").write_text("another tool's")
        assert "cannot be read" in trt_native("doctor", plan).stdout
        assert "cannot be read" not in trt_native("doctor", plan, "--no-manifest").stdout

    def test_no_plan(self, tmp_path):
        assert "No such file" in fails("doctor", tmp_path / "none.plan")
        (tmp_path / "text").write_text("hello")
        assert "not a TensorRT plan" in trt_native("doctor", tmp_path / "text").stdout


def test_wrong_usage_is_exit_code_2(model):
    assert "No such option" in fails("build", model, "--fast", code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "a\nerror: b.onnx"),
        ("build", "a\nb.onnx"),
        ("run", "a\r\nb.plan", "--random", "0"),
        ("export", "latentsync", "--random-weights", "0", "--config", "a\nb", "-o", "x.onnx"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_line_end_in_a_name_ends_no_line(arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert line.startswith("error: ")
    assert r"\n" in line


@pytest.mark.parametrize(
    "arguments",
    [
        "build m.onnx -o m.onnx",
        "build m.onnx -o ./link.onnx",
        "build m.onnx -o p --profile p.json",
        "build m.onnx -o calib --precision int8 --calibration-cache calib",
        "quantize m.onnx -o m.onnx --format int8-weights",
        "calibrate m.onnx --data data.npz -o m.onnx",
        "run m.plan --random 0 -o m.plan",
        "run m.plan --random 0 -o m.plan.json",
        "run m.plan --random 0 --input x=data.npz -o data.npz",
        "inspect m.onnx --html m.onnx",
        "inspect m.plan --html m.plan.json",
        "refit m.plan --from m.onnx -o m.onnx",
        "export latentsync --checkpoint c.pt -o c.pt",
        "export latentsync --random-weights 0 --config p.json -o p.json",
    ],
)
def test_what_is_read_is_not_replaced(model, monkeypatch, arguments):
    monkeypatch.chdir(model.parent)
    Path("link.onnx").symlink_to(model)
    for name in ("p.json", "calib", "data.npz", "m.plan", "m.plan.json", "c.pt"):
        Path(name).write_text("{}")
    before = {path.name: path.read_bytes() for path in model.parent.iterdir()}
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 1
    assert "it is one of the files to read; name another" in result.stderr
    assert {path.name: path.read_bytes() for path in model.parent.iterdir()} == before


def test_a_closed_pipe_is_silent(model):
    command = f"{sys.executable} -m trt_native inspect {model} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


@pytest.fixture
def dense(tmp_path):
    model = tiny_models.dense(tmp_path / "d.onnx")
    tiny_models.calibration(model, tmp_path / "d.calib", 4.0, shapes={"h0": ("3x64",)})
    return model


class TestQuantize:
    def test_writes_a_file_and_prints_the_quantized_share(self, dense, tmp_path):
        target, cache = tmp_path / "q.onnx", tmp_path / "d.calib"
        result = trt_native("quantize", dense, "-o", target, "--calibration-cache", cache)
        assert result.returncode == 0, result.stderr
        assert "2 of 2 matrix products, 100.0% of their multiply-adds" in result.stdout
        assert target.exists()

    def test_json_is_the_report(self, dense, tmp_path):
        options = (
            "--format",
            "int8-weights",
            "--quantize-ops",
            "Gemm",
            "--dim",
            "batch=3",
            "--json",
        )
        result = trt_native("quantize", dense, "-o", tmp_path / "q.onnx", *options)
        printed = json.loads(result.stdout)
        assert printed["path"] == str(tmp_path / "q.onnx")
        assert printed["report"]["quantized"] == {"Gemm": 1}
        assert printed["report"]["skipped"] == {"operator": {"MatMul": 1}}
        assert printed["report"]["macs"] == 2 * 3 * 64 * 64
        assert printed["report"]["coverage"] == 0.5

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                (),
                "int8 needs the ranges of the activations: give a calibration cache",
            ),
            (("--format", "int4"), "--format 'int4' is none of: int8, fp8, int8-weights"),
            (("--calibration-cache", "none.calib"), "cannot read none.calib: No such file"),
            (
                ("--calibration-cache", "d.calib", "--format", "int8-weights"),
                "--calibration-cache: no effect on int8-wei",
            ),
            (
                ("--calibration-cache", "d.calib", "--quantize-ops", "Conv"),
                "left alone: 1 MatMul (not among the operat",
            ),
            (
                ("--calibration-cache", "d.calib", "--quantize-ops", "Convs"),
                "operators to quantize: Convs; choose from",
            ),
            (("--calibration-cache", "d.calib", "--quantize-ops", ","), "names no operator"),
            (
                ("--calibration-cache", "d.calib", "--quantize-preset", "bert"),
                "'bert' is none of: default, diffusion-u",
            ),
            (
                ("--calibration-cache", "d.calib", "--quantize-exclude", "x*"),
                "skip pattern 'x*' matches no node name",
            ),
            (
                ("--calibration-cache", "d.calib", "--quantize-min-coverage", "40"),
                "40.0: it is a share from 0 to 1",
            ),
            (("--format", "int8-weights", "--dim", "batc=2"), "did you mean 'batch'"),
        ],
        ids=str,
    )
    def test_bad_input(self, dense, tmp_path, options, message):
        error = fails("quantize", dense, "-o", "q.onnx", *options, cwd=tmp_path)
        assert message in " ".join(error.split())
        assert sorted(os.listdir(tmp_path)) == ["d.calib", "d.calib.json", "d.onnx"]


@pytest.mark.backend
class TestQuantizedBuild:
    @pytest.fixture(autouse=True)
    def _needs_rtx(self):
        pytest.importorskip("tensorrt_rtx")

    def test_builds_in_one_go(self, dense, tmp_path):
        options = (
            "--precision",
            "int8",
            "--calibration-cache",
            tmp_path / "d.calib",
            "--dim",
            "batch=1:2:4",
        )
        result = trt_native(
            "build", dense, *options, "--backend", "rtx", "--quantize-exclude", "op:Gemm"
        )
        assert result.returncode == 0, result.stderr
        assert "int8: 1 of 2 matrix products, 50.0% of their multiply-adds" in result.stdout
        assert "fp16: 3 nodes; 4 stay FP32" in result.stdout
        assert "Quantizing the graph" in result.stderr

    def test_a_dry_run_prints_the_coverage(self, dense, tmp_path):
        options = (
            "--precision",
            "fp8",
            "--calibration-cache",
            tmp_path / "d.calib",
            "--dim",
            "batch=1:2:4",
        )
        dry = (*options, "--backend", "rtx", "--dry-run")
        assert "2 of 2 matrix products" in trt_native("build", dense, *dry).stdout
        outcome = json.loads(trt_native("build", dense, *dry, "--json").stdout)
        assert [record["name"] for record in outcome["passes"]] == ["quantize", "autocast"]
        assert outcome["passes"][0]["coverage"] == 1.0
        assert not (tmp_path / "d.plan").exists()

    def test_bad_input(self, dense, model):
        dim = ("--dim", "batch=1", "--backend", "rtx")
        error = fails("build", dense, *dim, "--precision", "int8")
        assert "precision int8 needs the ranges of the activations" in error
        error = fails(
            "build", dense, *dim, "--precision", "fp16", "--quantize-preset", "diffusion-unet"
        )
        assert "preset: no effect at precision fp16" in error
        error = fails("build", model, *DIMS, "--backend", "rtx", "--precision", "int8-weights")
        assert "left alone: 1 Conv (fewer than 16 channels)" in error
