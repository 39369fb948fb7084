"""Standard output and error of the program."""

from __future__ import annotations

import inspect
import io
import json
import logging
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from trt_native.cli import console
from trt_native.cli.app import app
from trt_native.cli.build import build
from trt_native.cli.console import print_json, stderr, stdout, table


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


def test_a_command_is_called_without_defaults_that_python_3_10_makes_optional_types_of():
    assert "command_context" in inspect.signature(build).parameters
    assert build.__kwdefaults__ is None


def test_words_between_colons_stay_what_they_are(capsys):
    for printed in (stdout, stderr):
        printed.print("b=1:100:200 a:b:c [x]")
    table("1:100:200", ["a:b:c"], [["[x] 1:100:200"]])
    print_json({"b": "1:100:200"})
    captured = capsys.readouterr()
    assert captured.err == "b=1:100:200 a:b:c [x]\n"
    assert captured.out.count(":100:") == 4
    assert captured.out.count("a:b:c") == 2
    assert captured.out.count("[x]") == 2


def test_a_line_end_in_a_cell_is_escaped_and_lines_are_not(capsys):
    table("a\nb", ["c\rd"], [["x\n| error: y\x1b[31m"], [("1:2", "3\u20284")]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == r"a\nb"
    assert r"c\rd" in lines[2]
    assert r"x\n| error: y\x1b[31m" in lines[4]
    assert [line.strip("\u2502 ") for line in lines[5:7]] == ["1:2", r"3\u20284"]


def test_json_has_errors_too(tmp_path):
    path = tmp_path / "none.onnx"
    result = CliRunner().invoke(app, ["build", str(path), "--precision", "fp17", "--json"])
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error.pop("message").startswith("'fp17' is none of: auto, fp32, tf32, fp16")
    assert error == {"kind": "SpecError", "problems": [], "details": [], "options": ["--precision"]}
    assert "or best, which chooses" in result.stderr


@pytest.mark.parametrize("words", [["-v", "cache", "list"], ["cache", "list", "-v"]], ids=" ".join)
def test_verbose_stands_anywhere(monkeypatch, tmp_path, words):
    logger = logging.getLogger("trt_native")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(console, "_verbosity", 0)
    levels = []
    monkeypatch.setattr(logger, "setLevel", levels.append)
    assert CliRunner().invoke(app, [*words, "--cache", str(tmp_path)]).exit_code == 0
    assert levels[-1] == logging.INFO
    assert len(logger.handlers) == 1


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("build --precision fp", ["fp32", "fp16", "fp8"]),
        ("build --precision b", ["bf16", "best"]),
        ("build --backend ", ["auto", "tensorrt", "rtx"]),
        ("export latentsync --precision bf", ["bf16"]),
        ("build --calibration-method m", ["minmax", "mse"]),
    ],
)
def test_values_are_completed(words, completed):
    typed = f"trt-native {words}"
    environment = {
        "_TRT_NATIVE_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
    }
    result = CliRunner().invoke(app, prog_name="trt-native", env=environment)
    assert result.stdout.split() == completed


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


def test_long_names_are_without_their_middle_but_in_json_and_commands(capsys):
    name = "x" * 70_000
    stderr.print(f"error: node {name!r}\nand so on")
    table(name, [name], [[name], [("1", name)]])
    record = logging.LogRecord("trt_native", logging.INFO, "", 0, "layer %s", (name,), None)
    assert len(console._Formatter("%(message)s").format(record)) < 600
    captured = capsys.readouterr()
    assert len(captured.err) < 600
    assert captured.err.endswith("x'\nand so on\n")
    assert len(captured.out) < 10_000
    assert captured.out.count("characters)") == 5
    print_json({"name": name})
    console.print_command(f"build --dim {name}=1\x1b")
    lines = capsys.readouterr().out.splitlines()
    assert json.loads("".join(lines[:-1])) == {"name": name}
    assert lines[-1] == f"build --dim {name}=1\\x1b"


def test_lines_of_a_cell_are_indented_below_its_name_where_a_table_is_a_list(monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr(console, "stdout", Console(file=printed, width=20))
    console.table("", ("key", "options"), [("averylongkey", ("batch 1", "frames 2"))])
    assert printed.getvalue().splitlines() == [
        "key: averylongkey",
        "  options: batch 1",
        "    frames 2",
    ]
