"""``trt-native debug``."""

from __future__ import annotations

import json

import onnx
import pytest
from helpers import tiny_models
from helpers.program import failing, trt_native
from helpers.tiny_models import FLOAT, tensor
from onnx import helper


@pytest.fixture
def failing_model(tmp_path):
    """Relu, Mod of a form that TensorRT refuses, and Neg."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Mod", ["a", "x"], ["b"], name="the/mod", fmod=0),
        helper.make_node("Neg", ["b"], ["y"], name="last"),
    ]
    shape = ["n", 24]
    inputs, outputs = [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)]
    return tiny_models.save(tmp_path / "m.onnx", nodes, inputs, outputs)


def test_a_command_gets_the_model_and_the_report_says_all(failing_model, tmp_path):
    check = "sh -c 'grep -qa Mod \"$0\" && echo it has a Mod && exit 7 || exit 0'"
    result = trt_native("debug", "reduce", failing_model, "--check", check, width=80)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "m.reduced"
    assert (folder / "report.md").read_text() == result.stdout.removesuffix("\n")
    (node,) = onnx.load(folder / "reduced.onnx").graph.node
    assert node.name == "the/mod"
    for part in (
        "# exit code 7: Mod",
        "it has a Mod",
        f"$ {check} reduced.onnx",
        "b = Mod(a, x, fmod=0)",
        "| trt-native |",
        "| GPU |",
        "- `reduced.onnx`,",
        "Reduced from the 3 nodes of `m.onnx`",
    ):
        assert part in result.stdout
    assert "check 1: 3 nodes: fails" in result.stderr
    assert "3 nodes, and 1 after" in result.stderr
    again = trt_native("debug", "reduce", failing_model, "--check", check, "--json")
    printed = json.loads(again.stdout)
    assert printed["checks"] == 0
    assert printed["nodes_after"] == 1
    assert printed["recalled"] > 0
    assert printed["last"]["lines"] == ["it has a Mod"]


@pytest.mark.backend
def test_the_command_of_the_report_builds_the_reduced_model(failing_model, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    result = trt_native(
        "debug", "reduce", failing_model, "-o", tmp_path / "out", "--backend", "rtx",
        "--precision", "fp32", "--dim", "n=1:6:8", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["command"] == "trt-native build reduced.onnx --backend rtx --precision fp32"
    words = printed["command"].split()[1:]
    message = failing(*words, cwd=tmp_path / "out")
    assert "- Mod 'the/mod': The fmod attribute is set to 0" in message
    assert printed["last"]["kind"] == "BuildError"
    report = (tmp_path / "out" / "report.md").read_text()
    assert "does not support these operators of reduced.onnx:" in report


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--check", "false", "--fails", "build"], "give --check or --fails, not both"),
        (["--fails", "wrong"], "--fails wrong: choose from build, crash, slow, verify"),
        (["--fails", "slow"], "--fails slow and --slower-than DURATION go together"),
        (["--slower-than", "3s"], "--fails slow and --slower-than DURATION go together"),
        (["--max-relative-error", "1"], "no effect without --fails verify"),
        (["--check", "false", "--precision", "fp32"], "--precision: no effect with --check"),
        (["--check", "true"], "m.onnx does not fail; there is nothing to reduce"),
        (["--check", "false", "--match", "("], "not a regular expression"),
        (["--check", "false", "--timeout", "soon"], "soon"),
        (["--check", ""], "the check is empty"),
    ],
)
def test_bad_requests_are_refused_by_one_line(failing_model, words, message):
    text = failing("debug", "reduce", failing_model, *words)
    assert message in text
    assert len(text.strip().splitlines()) <= 2


def test_a_file_that_is_not_a_model_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_text("not ONNX")
    assert "not an ONNX file" in failing("debug", "reduce", tmp_path / "m.onnx", "--check", "false")
    assert "cannot be read" in failing("debug", "reduce", tmp_path / "none.onnx", "--check", "x")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
