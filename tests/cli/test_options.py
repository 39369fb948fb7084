"""Options that fields of the configuration declare."""

from pathlib import Path

import pytest
from helpers.program import failing
from typer.main import get_command

from trt_native.cli.app import app
from trt_native.cli.options import flag_words, read_fields
from trt_native.config import BuildConfig, QuantizationSpec
from trt_native.errors import SpecError

PAGE = Path(__file__).parents[2] / "docs/build.md"
ELSEWHERE = {
    "output",
    "dims",
    "shapes",
    "profile",
    "add_opt_shape_profiles",
    "fast_at",
    "dry_run",
    "json",
    "verbose",
}
"""Options that the page explains in its text, and those of every command."""


def parameters(command):
    return {p.name: p for p in get_command(app).commands[command].params}


@pytest.mark.parametrize("declaring", [BuildConfig, QuantizationSpec])
def test_build_has_every_field_under_its_name(declaring):
    fields = set(declaring.__dataclass_fields__) - {"profiles", "quantization"}
    assert fields <= set(parameters("build"))


def test_the_defaults_of_the_command_are_those_of_the_fields():
    words = {p.name: p.default for p in parameters("build").values()}
    assert QuantizationSpec(**read_fields(QuantizationSpec, words)) == QuantizationSpec()
    assert BuildConfig(**read_fields(BuildConfig, words)) == BuildConfig()


def test_the_page_of_builds_lists_every_option():
    rows = "\n".join(row for row in PAGE.read_text().splitlines() if row.startswith("| `--"))
    for name, parameter in parameters("build").items():
        if name not in ELSEWHERE and parameter.param_type_name == "option":
            assert f"`{parameter.opts[0]}" in rows, name


def test_a_field_has_one_flag_in_all_commands():
    build = parameters("build")
    for command in ("quantize", "refit"):
        shared = set(parameters(command)) & set(QuantizationSpec.__dataclass_fields__)
        assert shared
        for name in shared:
            assert parameters(command)[name].opts == build[name].opts


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tf32", False, ["--no-tf32"]),
        ("add_opt_shape_profiles", True, ["--add-opt-shape-profiles"]),
        ("workspace_bytes", 2**20, ["--workspace", "1048576"]),
        ("ops", ["Conv", "Gemm"], ["--quantize-ops", "Conv,Gemm"]),
        ("exclude", ["a", "b"], ["--quantize-exclude", "a", "--quantize-exclude", "b"]),
    ],
)
def test_words_of_a_value(name, value, words):
    assert flag_words(name, value) == words


def test_an_option_without_a_field_has_no_words():
    with pytest.raises(KeyError):
        flag_words("unknown", 1)


def test_words_that_cannot_be_read():
    with pytest.raises(SpecError, match="is none of: keep") as caught:
        read_fields(BuildConfig, {"io_precision": "int4"})
    assert caught.value.options == ("io_precision",)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "m.plan"),
        ("bench", "m.plan"),
        ("verify", "m.plan", "--against", "m.onnx"),
        ("refit", "m.plan", "--from", "m.onnx", "-o", "n.plan"),
        ("build", "m.onnx"),
        ("doctor",),
    ],
)
def test_a_malformed_device(words, tmp_path):
    assert "device 'gpu1': give cuda:N or N" in failing(*words, "--device", "gpu1", cwd=tmp_path)
