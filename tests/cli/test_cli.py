"""The program as a whole: help, version, imports, files that it must not read or replace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.program import failing as fails
from helpers.program import trt_native
from typer.testing import CliRunner

from trt_native.cli.app import app


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
    assert (result.returncode, result.stdout) == (0, "trt-native 0.2.0\n")


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


def test_wrong_usage_is_exit_code_2(model):
    assert "No such option" in fails("build", model, "--fast", code=2)


@pytest.mark.parametrize(
    ("arguments", "message", "options"),
    [
        ("build m.onnx --json --fast", "No such option: --fast", ["--fast"]),
        ("--nope build --json", "No such option: --nope", ["--nope"]),
        ("nope --json", "No such command 'nope'", []),
        ("build --json", "Missing argument 'MODEL.onnx'", []),
        ("export latentsync-vae --json", "Missing option '--output' / '-o'", ["--output"]),
        ("run m.plan --random x --json", "Invalid value for '--random'", ["--random"]),
        ("inspect m.plan --json --html", "Option '--html' requires an argument", ["--html"]),
        ("cache list --json extra", "unexpected extra argument", []),
    ],
)
def test_wrong_usage_as_json(arguments, message, options):
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert set(error) == {"kind", "message", "problems", "details", "options"}
    assert (error["kind"], error["options"]) == ("UsageError", options)
    assert message in error["message"]
    plain = CliRunner().invoke(app, [word for word in arguments.split() if word != "--json"])
    assert plain.stdout == ""
    assert plain.exit_code == 2


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
        "export latentsync c.pt -o c.pt",
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
