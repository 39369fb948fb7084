"""The matrix of a build farm."""

from __future__ import annotations

import pytest
from helpers import tiny_models

from trt_native import BuildConfig, ProfileSpec
from trt_native.errors import SpecError
from trt_native.ray import Target, read_matrix

WHOLE = """
store: plans
timeout: 10m
memory: 2GiB
options: {optimization-level: 1, refit: true}
models:
  - models/*.onnx
  - file: other/b.onnx
    name: big
    precisions:
      - {name: mixed, precision: fp16, keep_fp32: [op:Conv], optimization_level: 4}
    profiles: [small]
    targets: [h100]
    options: {optimization_level: 2}
    memory: 8GiB
precisions: [fp32, fp16]
profiles:
  small: {dims: {batch: 1}}
  both: [{dims: {batch: 1}}, {dims: {batch: 1:8:32}}]
targets:
  - {name: ada, backend: rtx, compute_capabilities: [8.9]}
  - name: h100
    backend: tensorrt
    gpu: H100
    labels: {zone: east}
    resources: {license: 0.5}
    cpus: 4
    timeout: 1h
    options: {optimization_level: 3}
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("models/a.onnx", "models/c.onnx", "other/b.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tiny_models.conv(tmp_path / name)
    return tmp_path


def write(folder, text):
    path = folder / "matrix.yaml"
    path.write_text(text)
    return path


def test_every_combination_is_a_build(folder):
    matrix = read_matrix(write(folder, WHOLE))
    assert matrix.store == str(folder / "plans")
    found = [(b.model, b.precision, b.profile, b.target.name) for b in matrix.builds]
    assert found == [
        *(
            (model, precision, profile, target)
            for model in ("a", "c")
            for precision in ("fp32", "fp16")
            for profile in ("small", "both")
            for target in ("ada", "h100")
        ),
        ("big", "mixed", "small", "h100"),
    ]
    first, last = matrix.builds[0], matrix.builds[-1]
    small = ProfileSpec(dims={"batch": "1"})
    assert first.config == BuildConfig(
        profiles=(small,), precision="fp32", optimization_level=1, refit=True,
        compute_capabilities=("8.9",),
    )  # fmt: skip
    assert (first.timeout_s, first.memory_bytes, first.cpus) == (600, 2 << 30, 1)
    assert first.file == folder / "models/a.onnx"
    assert last.config == BuildConfig(
        profiles=(small,), precision="fp16", optimization_level=4, refit=True,
        keep_fp32=("op:Conv",),
    )  # fmt: skip
    assert (last.timeout_s, last.memory_bytes, last.cpus) == (3600, 8 << 30, 4)
    assert last.target == Target(
        name="h100", backend="tensorrt", gpu="H100", labels={"zone": "east"},
        resources={"license": 0.5},
    )  # fmt: skip
    assert matrix.builds[1].config.optimization_level == 3
    assert len(matrix.builds[2].config.profiles) == 2


def test_a_list_of_models_is_enough(folder):
    (build,) = read_matrix(write(folder, "models: [other/b.onnx]")).builds
    assert (build.model, build.precision, build.profile) == ("b", "auto", "")
    assert build.config == BuildConfig()
    assert build.target == Target()


def test_a_store_with_a_url_stays_as_it_is(folder):
    text = "models: [other/b.onnx]\nstore: s3://bucket/plans"
    assert read_matrix(write(folder, text)).store == "s3://bucket/plans"


def test_all_problems_are_in_one_error(folder):
    text = """
stor: x
timeout: soon
models:
  - other/b.onnx
  - nothing.onnx
  - {file: models/a.onnx, targets: [adda]}
  - {file: models/c.onnx, options: {optimisation_level: 3}, precisions: [fp17]}
  - 7
targets:
  - {name: ada, warm: true}
  - {name: ada}
  - {name: dc, backend: tensorrt}
profiles:
  small: {dims: {batch: 1}}
  wrong: {dims: {batch: 4:2:1}}
"""
    with pytest.raises(SpecError, match=r"matrix\.yaml: the matrix cannot be used:") as caught:
        read_matrix(write(folder, text))
    problems = "\n".join(caught.value.problems)
    for part in (
        "unknown key 'stor'; did you mean store?",
        "not a duration: 'soon'",
        "model nothing.onnx: no such file",
        "model a: targets: no 'adda'; there are ada, dc",
        "c, fp17, small, ada: ",
        "expected a mapping, found int",
        "target ada: warm needs a GPU",
        "give each a 'name' of its own",
        "target dc: TensorRT builds on the GPU",
        "profiles: wrong: ",
    ):
        assert part in problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the matrix: expected a mapping, found NoneType"),
        ("models: []", "models: give a list"),
        ("models: [other/b.onnx]\nprecisions: {}", "precisions: give a list"),
        ("models: [other/b.onnx]\nprecisions: [fp16, fp16]", "precision fp16: there are two"),
        ("models: [other/b.onnx, {file: models/a.onnx, name: b}]", "model b: there are two"),
        ("models: [other/b.onnx]\ncpus: 0", "cpus: not a number above 0"),
        ("models: [other/b.onnx]\noptions: {timing_cache: x}", "timing_cache: every node"),
        ("models: [other/b.onnx]\ntargets: [{name: x, labels: [1]}]", "target x: labels"),
        ("models: [other/b.onnx]\nstore: 3", "store: not a folder or URL: 3"),
        (
            "models: [other/b.onnx]\nprecisions:\n  - {precision: int8,"
            " quantization: {calibration_cache: no.cache}}",
            "calibration_cache: {folder}/no.cache: no such file or folder",
        ),
    ],
)
def test_what_is_wrong_is_said(folder, text, problem):
    with pytest.raises(SpecError) as caught:
        read_matrix(write(folder, text))
    assert problem.format(folder=folder) in "\n".join(caught.value.problems)


@pytest.mark.parametrize("text", ["a: [", "\x00", "a: &x [*x]"])
def test_a_file_that_is_not_yaml(folder, text):
    with pytest.raises(SpecError, match=r"matrix\.yaml: "):
        read_matrix(write(folder, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read: No such file"):
        read_matrix(tmp_path / "none.yaml")
