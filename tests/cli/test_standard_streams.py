"""Commands whose standard streams are closed, full, or gone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import tiny_models
from rich.console import Console

from trt_native.builder.isolated import build_isolated
from trt_native.cli import main
from trt_native.cli.streams import prepare_streams
from trt_native.progress_bars import ProgressDisplay


@pytest.fixture
def gone():
    """A stream to a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", buffering=1)


@pytest.fixture(params=["/dev/full", "gone", None])
def lost_error(request, monkeypatch):
    """Standard error that cannot be written."""
    if request.param == "gone":
        stream = request.getfixturevalue("gone")
    else:
        stream = request.param and open(request.param, "w", buffering=1)  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", stream)


@pytest.mark.parametrize("line", ["inspect none.onnx", "inspect m.onnx", "no-command", "--help"])
def test_a_command_ends_as_usual_without_standard_error(
    line, lost_error, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    tiny_models.conv(tmp_path / "m.onnx")
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    expected = {"inspect none.onnx": 1, "no-command": 2}
    assert (ended.value.code or 0) == expected.get(line, 0)
    assert line not in ("inspect m.onnx", "--help") or capsys.readouterr().out


def test_progress_goes_on_without_standard_error(lost_error):
    prepare_streams()
    for terminal in (True, False):
        with ProgressDisplay(Console(stderr=True, force_terminal=terminal)) as progress:
            progress.phase_start("Building", None, 2)
            progress.step_complete("Building", 0)
            progress.phase_finish("Building")


def test_full_standard_output_is_one_line_of_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w", buffering=1))  # noqa: SIM115
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: standard output: No space left on device\n"


@pytest.mark.backend
def test_a_build_without_any_standard_stream(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    model = tiny_models.conv(tmp_path / "m.onnx", (1, 3, 8, 8))
    code = (
        "import os, sys; [os.close(d) for d in range(3)]\n"
        f"from {build_isolated.__module__} import build_isolated\n"
        "build_isolated(sys.argv[1], backend='rtx').save(sys.argv[1] + '.plan')\n"
    )
    subprocess.run([sys.executable, "-c", code, model], check=True)
    assert (tmp_path / "m.onnx.plan").read_bytes()[:4] in (b"ftrt", b"vtrt")
