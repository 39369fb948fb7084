"""Triton's configuration as Triton's own message reads it, and trtexec's command line."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.made_plans import STATIC, TWO, X, Y, make_plan, tensor
from helpers.triton_message import parse_model_config

from trt_native import deploy
from trt_native.deploy import TritonConfig, deploy_triton, triton_config, trtexec_command
from trt_native.errors import PlanError, SpecError, UnsupportedError
from trt_native.shapes import ShapeRange


def configure(tensors, **options):
    model = triton_config(tensors, TritonConfig(name="m", **options))
    return parse_model_config(model.config), model


def test_a_batched_model():
    config, model = configure((X, Y), instances=2)
    assert (config.name, config.platform) == ("m", "tensorrt_plan")
    assert config.max_batch_size == model.max_batch_size == 8
    assert model.no_batching is None
    (x,) = config.input
    assert (x.name, list(x.dims)) == ("x", [3, -1, 8])
    (y,) = config.output
    assert (y.name, list(y.dims)) == ("y", [5])
    types = type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    assert (x.data_type, y.data_type) == (types["TYPE_FP32"].number, types["TYPE_FP16"].number)
    (group,) = config.instance_group
    assert (group.count, list(group.profile)) == (2, ["0"])
    assert group.kind == group.KIND_GPU
    assert not config.HasField("dynamic_batching")
    (warmup,) = config.model_warmup
    assert warmup.batch_size == 4
    assert list(warmup.inputs["x"].dims) == [3, 16, 8]
    assert warmup.inputs["x"].WhichOneof("input_data_type") == "zero_data"


@pytest.mark.parametrize("dtype", sorted(deploy._TRITON_TYPES))
def test_every_type_is_one_of_tritons(dtype):
    tensors = (tensor("x", "input", dtype, shape=(2,)), tensor("y", "output", dtype, shape=(2,)))
    config, _ = configure(tensors)
    names = type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    short = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}.get(dtype, dtype.upper())
    assert names[config.input[0].data_type].name == f"TYPE_{short}"


def test_a_static_model_is_not_batched():
    config, model = configure(STATIC)
    assert config.max_batch_size == 0
    assert "the first axis of 'x' is not dynamic" in model.no_batching
    assert list(config.input[0].dims) == [2, 3]
    assert list(config.instance_group[0].profile) == []
    assert config.model_warmup[0].batch_size == 1
    assert list(config.model_warmup[0].inputs["x"].dims) == [2, 3]


def with_dims(template, *dims):
    return dataclasses.replace(template, dims=dims)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ((X, dataclasses.replace(Y, shape=(4, 5))), "first axis of 'y' is not dynamic"),
        ((X, with_dims(Y, "n*frames", None)), "the first axes differ: 'n', 'n*frames'"),
        ((with_dims(X, "n", None, "2*n", None), Y), "'n' is not only the first axis of 'x'"),
        ((tensor("x", "input", "float32", "2x3:2x3:4x3"), Y), "no profile allows a batch of 1"),
        (
            (X, tensor("s", "input", "int64", shape=(2,), values=("1x2:2x4:4x8",)), Y),
            "'s' is itself a shape",
        ),
    ],
)
def test_tensors_that_cannot_be_stacked_are_not_batched(tensors, reason):
    config, model = configure(tensors)
    assert config.max_batch_size == 0
    assert reason in model.no_batching
    assert [list(i.dims) for i in config.input] == [
        list(t.shape) for t in tensors if t.mode == "input"
    ]
    with pytest.raises(SpecError, match="max batch 2: "):
        configure(tensors, max_batch=2)
    with pytest.raises(SpecError, match="dynamic batching needs a batch"):
        configure(tensors, batching_delay_us=0)


def test_the_batch_asked_for():
    assert configure((X, Y), max_batch=3)[0].max_batch_size == 3
    config, model = configure((X, Y), max_batch=0)
    assert (config.max_batch_size, model.no_batching) == (0, None)
    assert list(config.input[0].dims) == [-1, 3, -1, 8]
    with pytest.raises(SpecError, match="max batch 9: the plan's profiles allow"):
        configure((X, Y), max_batch=9)


def test_several_profiles():
    x = tensor("x", "input", "float32", "1x3:1x3:1x3", "2x3:4x3:8x3", "16x3:16x3:16x3")
    y = tensor("y", "output", "float32", shape=(-1, 3))
    config, _ = configure((x, y))
    assert list(config.instance_group[0].profile) == ["0", "1", "2"]
    assert config.max_batch_size == 8  # no profile takes 9 to 15
    assert [(w.name, w.batch_size) for w in config.model_warmup] == [
        ("profile 0", 1),
        ("profile 1", 4),
        ("profile 2", 8),
    ]
    config, _ = configure((x, y), profiles=(0,))
    assert (list(config.instance_group[0].profile), config.max_batch_size) == (["0"], 1)
    with pytest.raises(SpecError, match="profile 3: the plan has 0 to 2"):
        configure((x, y), profiles=(3,))


def test_a_batch_alone_is_reshaped():
    x = tensor("x", "input", "int32", "1:2:4", dims=("n",))
    config, _ = configure((x, tensor("y", "output", "int32", shape=(-1,), dims=("n",))))
    for io in (config.input[0], config.output[0]):
        assert list(io.dims) == [1]
        assert io.HasField("reshape")
        assert list(io.reshape.shape) == []
    assert list(config.model_warmup[0].inputs["x"].dims) == [1]


def test_an_input_that_is_a_shape():
    shape = tensor("s", "input", "int32", shape=(2,), values=("1x2:2x4:4x8",))
    x = tensor("x", "input", "float32", "2:8:32", dims=("n",))
    config, model = configure((x, shape, tensor("y", "output", "float32", shape=(-1, -1))))
    assert [io.is_shape_tensor for io in config.input] == [False, True]
    assert list(config.input[1].dims) == [2]
    file = config.model_warmup[0].inputs["s"].input_data_file
    assert np.frombuffer(model.warmup_files[file], np.int32).tolist() == [2, 4]


def test_values_that_the_type_cannot_hold():
    shape = tensor("s", "input", "int32", shape=(1,), values=("1:1:1",))
    for change, error, reason in (
        ({"values": (ShapeRange.parse(str(1 << 31)),)}, PlanError, "does not fit into int32"),
        ({"dtype": "float32"}, UnsupportedError, "is a shape, but of type float32"),
    ):
        with pytest.raises(error, match=reason):
            configure((dataclasses.replace(shape, **change), *STATIC))


def test_batching_delay_and_no_warmup():
    config, _ = configure((X, Y), batching_delay_us=200, warmup=False)
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert list(config.model_warmup) == []


def test_gpus_and_the_rate_limiter():
    (group,) = configure((X, Y))[0].instance_group
    assert (list(group.gpus), group.HasField("rate_limiter")) == ([], False)
    options = {"gpus": (2, 0), "resources": {"memory": 4, "r 2": 1}, "priority": 3}
    (group,) = configure((X, Y), **options)[0].instance_group
    assert list(group.gpus) == [2, 0]
    assert {r.name: r.count for r in group.rate_limiter.resources} == {"memory": 4, "r 2": 1}
    assert group.rate_limiter.priority == 3


def test_warm_up_with_given_inputs(rng):
    x = rng.standard_normal((3, 3, 16, 8)).astype(np.float32)
    config, model = configure((X, Y), warmup_inputs={"x": x})
    zeros, given = config.model_warmup
    assert (zeros.name, given.name, given.batch_size) == ("profile 0", "given inputs", 3)
    assert list(given.inputs["x"].dims) == [3, 16, 8]
    file = given.inputs["x"].input_data_file
    assert model.warmup_files[file] == x[0].tobytes()

    config, model = configure((X, Y), warmup_inputs={"x": x}, max_batch=0, warmup=False)
    (given,) = config.model_warmup
    assert (given.batch_size, list(given.inputs["x"].dims)) == (1, [3, 3, 16, 8])
    assert model.warmup_files[given.inputs["x"].input_data_file] == x.tobytes()


def test_inputs_that_the_warm_up_cannot_run():
    shape = tensor("s", "input", "int32", shape=(2,), values=("1x2:2x4:4x8",))
    y = tensor("y", "output", "float32", shape=(-1, -1))
    values = {"s": np.array([2, 9], np.int32)}
    with pytest.raises(SpecError, match=r"profile 0 does not take \(.*2.*9.*\) as 's'"):
        configure((shape, y), warmup_inputs=values)
    one = np.zeros((4, 3, 16, 8), np.float32)
    with pytest.raises(SpecError, match="a batch of 4, and Triton's largest is 2"):
        configure((X, Y), warmup_inputs={"x": one}, max_batch=2)
    with pytest.raises(SpecError, match="float64"):
        configure((X, Y), warmup_inputs={"x": one.astype(np.float64)})
    with pytest.raises(SpecError, match="z"):
        configure((X, Y), warmup_inputs={"x": one, "z": one})
    x = tensor("x", "input", "float32", "1x3:1x3:1x3", "2x3:4x3:8x3")
    y = tensor("y", "output", "float32", shape=(-1, 3))
    with pytest.raises(SpecError, match="of profile 1, which is not served"):
        configure((x, y), warmup_inputs={"x": np.zeros((4, 3), np.float32)}, profiles=(0,))


def test_a_shape_that_depends_on_data():
    static = tensor("x", "input", "float32", shape=(4, 3))
    found = tensor("y", "output", "int64", shape=(2, -1))
    with pytest.raises(UnsupportedError, match="the shape of output 'y' depends on data"):
        configure((static, found))
    dynamic = dataclasses.replace(found, dims=(None, None))
    assert configure((X, dynamic))[0].output[0].name == "y"
    known = dataclasses.replace(dynamic, name="n", data_dependent=True)
    with pytest.raises(UnsupportedError, match="the shape of output 'n' depends on data"):
        configure((X, Y, known))


@pytest.mark.parametrize("name", ['a"b\\c', "l\nine\t\x01", "größe:0", "a b/c#"])
def test_names_survive_the_text_format(name):
    tensors = tuple(dataclasses.replace(t, name=name) for t in STATIC)
    config, _ = configure(tensors)
    assert config.input[0].name == config.output[0].name == name
    assert list(config.model_warmup[0].inputs) == [name]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"dtype": "float8_e4m3fn"}, "is float8_e4m3fn, which Triton does not support"),
        ({"shape": (), "dims": ()}, "is a scalar, which Triton does not support"),
        ({"shape": (0, 3)}, "is empty"),
    ],
)
def test_tensors_that_triton_does_not_support(bad, reason):
    with pytest.raises(UnsupportedError) as caught:
        configure((STATIC[0], dataclasses.replace(STATIC[1], **bad)))
    assert f"output 'y' {reason}" in str(caught.value)


@pytest.mark.parametrize("name", ["", ".m", "a/b", "a\\b", " m", "a\nb"])
def test_names_that_are_no_folder(name):
    with pytest.raises(SpecError, match="model name"):
        TritonConfig(name=name)


@pytest.mark.parametrize(
    "options", [{"instances": 0}, {"max_batch": -1}, {"batching_delay_us": -1}], ids=str
)
def test_numbers_out_of_range(options):
    with pytest.raises(SpecError, match=r"must be|cannot be"):
        TritonConfig(name="m", **options)


@pytest.mark.parametrize(
    "options",
    [{"gpus": (-1,)}, {"gpus": (0, 0)}, {"resources": {"": 1}}, {"resources": {"a": 0}},
     {"priority": 0}],
    ids=str,
)  # fmt: skip
def test_gpus_and_limits_out_of_range(options):
    with pytest.raises(SpecError, match=r"once, from 0 on|at least 1|1 is the highest"):
        TritonConfig(name="m", **options)


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_deploying_links_the_plan(tmp_path):
    plan = make_plan(tmp_path / "m.plan", (X, Y))
    folder, model = deploy_triton(plan, tmp_path / "repo", TritonConfig(name="m"))
    assert listing(tmp_path / "repo") == ["m/1/model.plan", "m/config.pbtxt"]
    assert (folder / "1" / "model.plan").samefile(tmp_path / "m.plan")
    assert (folder / "config.pbtxt").read_text() == model.config
    assert parse_model_config(model.config).name == "m"
    assert sorted(os.listdir(tmp_path)) == ["m.plan", "m.plan.json", "repo"]


def test_without_links_the_plan_is_copied(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(18, "Invalid cross-device link")

    plan = make_plan(tmp_path / "m.plan", (X, Y))
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder, _ = deploy_triton(plan, tmp_path / "repo", TritonConfig(name="m"))
    assert (folder / "1" / "model.plan").read_bytes() == plan.data
    assert not (folder / "1" / "model.plan").samefile(tmp_path / "m.plan")


def test_deploying_again(tmp_path):
    repository = tmp_path / "repo"
    plan = make_plan(tmp_path / "m.plan", (X, Y))
    folder, _ = deploy_triton(plan, repository, TritonConfig(name="m"))
    before = (folder / "config.pbtxt").stat().st_ino
    deploy_triton(plan, repository, TritonConfig(name="m"))
    assert (folder / "config.pbtxt").stat().st_ino == before
    with pytest.raises(SpecError, match=r"differs \(config.pbtxt\); choose another name"):
        deploy_triton(plan, repository, TritonConfig(name="m", instances=2))
    assert (folder / "config.pbtxt").stat().st_ino == before
    deploy_triton(plan, repository, TritonConfig(name="m", instances=2), force=True)
    assert parse_model_config((folder / "config.pbtxt").read_text()).instance_group[0].count == 2
    (folder / "2").mkdir()
    (folder / "2" / "model.plan").write_bytes(b"another version")
    with pytest.raises(SpecError, match=r"holds 2/model\.plan, which is not"):
        deploy_triton(plan, repository, TritonConfig(name="m"), force=True)
    assert (folder / "2" / "model.plan").read_bytes() == b"another version"
    assert sorted(os.listdir(tmp_path)) == ["m.plan", "m.plan.json", "repo"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    plan = make_plan(tmp_path / "m.plan", (X, Y))
    monkeypatch.setattr(deploy, "write_file", full)
    with pytest.raises(PlanError, match="No space left on device"):
        deploy_triton(plan, tmp_path / "repo", TritonConfig(name="m"))
    assert listing(tmp_path) == ["m.plan", "m.plan.json"]
    assert sorted(os.listdir(tmp_path)) == ["m.plan", "m.plan.json", "repo"]


def test_triton_loads_no_rtx_plans(tmp_path):
    plan = make_plan(tmp_path / "m.plan", (X, Y))
    rtx = dataclasses.replace(plan, data=b"vtrt" + bytes(plan.data[4:]))
    with pytest.raises(UnsupportedError, match="this one is for TensorRT-RTX"):
        deploy_triton(rtx, tmp_path / "repo", TritonConfig(name="m"))
    assert not (tmp_path / "repo").exists()


def test_a_plan_without_a_manifest_needs_its_engine(tmp_path):
    plan = dataclasses.replace(make_plan(tmp_path / "m.plan", (X, Y)), manifest=None)
    with pytest.raises(PlanError, match="no manifest, so only the engine knows its tensors"):
        deploy_triton(plan, tmp_path / "repo", TritonConfig(name="m"))


SHAPE = tensor("s:0", "input", "int64", shape=(2,), values=("1x2:2x4:4x8", "1x2:1x3:1x4"))


@pytest.mark.parametrize(
    ("tag", "version", "tool", "flags"),
    [
        (
            b"ftrt",
            (10, 3, 0, 26),
            "trtexec",
            ["--useCudaGraph", "--noDataTransfers", "--useSpinWait"],
        ),
        (b"ftrt", (11, 1, 0, 106), "trtexec", []),
        (b"vtrt", (1, 6, 1, 120), "tensorrt_rtx", []),
    ],
)
def test_the_trtexec_line(tmp_path, tag, version, tool, flags):
    path = tmp_path / "m.plan"
    data = make_plan(path, (TWO, SHAPE, *STATIC[1:]), version=version)
    plan = dataclasses.replace(data, data=tag + bytes(data.data[4:]))
    load = f"--loadEngine={path}"
    assert trtexec_command(plan, path) == [tool, load, "--shapes=x:2x3,'s:0':2x4", *flags]
    assert trtexec_command(plan, path, profile=1, shapes={"s:0": (1, 4)}) == [
        tool,
        load,
        "--shapes=x:8x3,'s:0':1x4",
        "--useProfile=1",
        *flags,
    ]


def test_a_static_plan_needs_no_shapes_and_a_compatible_one_a_flag(tmp_path):
    plan = make_plan(
        tmp_path / "m.plan", STATIC, version=(11, 1, 0, 1), options={"version_compatible": True}
    )
    assert trtexec_command(plan, Path("m.plan")) == [
        "trtexec",
        "--loadEngine=m.plan",
        "--versionCompatible",
    ]
    lean = dataclasses.replace(plan, lean_runtime=Path("lean.so"))
    assert trtexec_command(lean, Path("m.plan"))[-1] == "--leanDLLPath=lean.so"
    named = dataclasses.replace(plan, plugins=("libx.so", "plugins.py:register"))
    assert trtexec_command(named, Path("m.plan"))[-1] == "--staticPlugins=libx.so"


def test_triton_is_told_of_a_version_compatible_plan(tmp_path):
    plan = make_plan(tmp_path / "m.plan", STATIC, options={"version_compatible": True})
    folder, _ = deploy_triton(plan, tmp_path / "repository", TritonConfig(name="m"))
    assert (
        (folder / "config.pbtxt")
        .read_text()
        .startswith(
            "# For a Triton server whose TensorRT is 10.16.1.11 or later, started with"
            " --backend-config=tensorrt,version-compatible=true.\n"
        )
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"profile": 2}, "profile 2: the plan has 0 to 1"),
        ({"shapes": {"x": (5, 3)}}, "x=5x3 is outside 1x3:2x3:4x3 of profile 0"),
        ({"shapes": {"z": (5, 3)}}, "shape of z: the dynamic inputs are: x, s:0"),
    ],
)
def test_options_that_trtexec_does_not_support(tmp_path, options, reason):
    plan = make_plan(tmp_path / "m.plan", (TWO, SHAPE, *STATIC[1:]))
    with pytest.raises(SpecError, match=reason):
        trtexec_command(plan, Path("m.plan"), **options)


def test_a_name_that_trtexec_cannot_take(tmp_path):
    plan = make_plan(tmp_path / "m.plan", (dataclasses.replace(TWO, name="a,b"),))
    with pytest.raises(SpecError, match="cannot express the input name 'a,b'"):
        trtexec_command(plan, Path("m.plan"))


def test_a_plan_without_weights_goes_nowhere(tmp_path):
    plan = make_plan(tmp_path / "m.plan", STATIC, options={"strip_weights": True})
    with pytest.raises(PlanError, match="its weights were left out; refit it first"):
        deploy_triton(plan, tmp_path / "repository", TritonConfig(name="m"))
    with pytest.raises(PlanError, match="its weights were left out"):
        trtexec_command(plan, tmp_path / "m.plan")
    assert not (tmp_path / "repository").exists()


def test_layouts_and_outputs_in_place(tmp_path):
    packed = tuple(dataclasses.replace(t, format="CHW32") for t in STATIC[:1]) + STATIC[1:]
    plan = make_plan(tmp_path / "m.plan", packed)
    folder, _ = deploy_triton(plan, tmp_path / "repository", TritonConfig(name="m"))
    message = parse_model_config((folder / "config.pbtxt").read_text())
    tensors = (*message.input, *message.output)
    assert [t.is_non_linear_format_io for t in tensors] == [True, False]
    cache = dataclasses.replace(STATIC[0], name="cache")
    updated = dataclasses.replace(STATIC[0], name="z", mode="output", alias="cache")
    plan = make_plan(tmp_path / "cached.plan", (STATIC[0], cache, updated))
    with pytest.raises(UnsupportedError, match="Triton cannot serve this plan") as caught:
        deploy_triton(plan, tmp_path / "repository", TritonConfig(name="cached"))
    assert "'z' is written in the memory of input 'cache'" in caught.value.problems[0]
