"""Broken ONNX files: ours refuses them or reads them right, and survives what TensorRT does."""

from __future__ import annotations

import os
import random
import traceback
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.child_server import ChildServer
from helpers.mutations import BYTES, SPLICES, attempt, onnx_edited
from helpers.program import trt_native
from helpers.seed_models import write_seeds
from helpers.tiny_models import FLOAT, tensor
from onnx import TensorProto, helper

from trt_native.builder import build, isolated
from trt_native.config import BuildConfig
from trt_native.errors import ModelError, TrtNativeError, UnsupportedError
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.shapes import ProfileSpec

MUTATED_MODELS = 500
COMMAND_BUILDS = 5
"""How many of them are also built by the command, besides those that TensorRT crashed on."""
CHILD_EVERY = 26
"""A dry run starts a process; what that does, ``rewritten`` and BUILDS do with every mutant."""
BUILDS = Path(__file__).with_name("build_server.py")


@pytest.fixture
def seeds(tmp_path):
    """Seeds, and around them what a file must not reach."""
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(1 << 16))
    (folder / "link").symlink_to("../secret")
    os.mkfifo(folder / "fifo")
    return write_seeds(folder)


def mutants(seeds, count, seed):
    """Numbered mutants: every fifth one of bytes, the rest of the structure."""
    rng = random.Random(seed)
    contents = [path.read_bytes() for path in seeds]
    for number in range(count):
        data = contents[number % len(contents)]
        if number % 5:
            yield number, onnx_edited(rng, data)
        else:
            mutate = (*BYTES, *SPLICES)[number // 5 % (len(BYTES) + len(SPLICES))]
            other = (rng.choice(contents),) if mutate in SPLICES else ()
            yield number, mutate(rng, data, *other)


def rewritten(path):
    """All that is done to a model before TensorRT sees it."""
    inputs, _ = tensor_specs(read_model(path))
    names = {axis for tensor in inputs for axis in tensor.shape or () if isinstance(axis, str)}
    given = ProfileSpec.parse(f"{name}=1:2:4" for name in names if name.isidentifier())
    config = BuildConfig(profiles=(given,) if given.dims else ())
    prepared = build.prepare(path, config, backend="rtx")
    with build.lower(prepared):
        pass


@pytest.mark.backend
def test_the_seeds_are_good(command, seeds, tmp_path):
    for path in seeds:
        assert command("inspect", path, "--html", tmp_path / "page.html").exit_code == 0
        rewritten(path)
    with ChildServer(BUILDS) as server:
        answers = {path.stem: server.ask(str(path)) for path in seeds}
    assert {name for name, answer in answers.items() if "bytes" not in answer} <= {
        "custom",  # an operator that nobody knows
        "coupled",  # batch*frames is out of range for the sum of any two dimensions
        "reshape",  # its values must be given, too
    }, answers


@pytest.mark.backend
@pytest.mark.timeout(600)
def test_mutated_models(command, seeds, tmp_path, monkeypatch):
    built, crashed, by_command = [], [], []
    asked = isolated.inspect_in_child

    def ask_about_some(path, backend):
        if int(path.stem[1:]) % CHILD_EVERY:
            raise UnsupportedError("not asked, for it takes a process")
        return asked(path, backend)

    monkeypatch.setattr(isolated, "inspect_in_child", ask_about_some)
    with ChildServer(BUILDS) as server:
        for number, data in mutants(seeds, MUTATED_MODELS, 8):
            path = seeds[0].with_name(f"m{number}.onnx")
            path.write_bytes(data)
            shown = ("--html", tmp_path / "page.html") if number % 2 else ("--json",)
            inspected = command("inspect", path, *shown)
            if number % CHILD_EVERY == 0:
                command("build", path, "--dry-run", "--backend", "rtx")
            command("quantize", path, "-o", tmp_path / "q.onnx", "--format", "int8-weights")
            _, error = attempt(rewritten, path, kind=Exception)
            assert error is None or isinstance(error, TrtNativeError), fully(path, error)
            if error is not None:
                continue
            assert inspected.exit_code == 0
            answer = server.ask(str(path))
            assert not answer.keys() & {"traceback", "hang"}, f"{path}: {answer}"
            if "bytes" in answer:
                built.append(path)
            elif "signal" in answer:
                crashed.append(path)
            if "signal" in answer or len(by_command) < COMMAND_BUILDS:
                by_command.append(path)
    print(f"{len(built)} built, {len(crashed)} crashed TensorRT: {[p.name for p in crashed]}")
    assert built
    for path in by_command:
        check_command(path, crashes=path in crashed)


def fully(path, error):
    return f"{path}: {''.join(traceback.format_exception(error))}"


def check_command(path, *, crashes):
    """The command outlives its build, and says in one line what became of it."""
    result = trt_native(
        *("build", path, "--no-cache", "--backend", "rtx", "--timeout", "30s"),
        *("-o", path.with_suffix(".plan"), *(f"--dim={name}=1:2:4" for name in dimensions(path))),
    )
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode in (0, 1), (path, result)
    assert len(errors) == result.returncode, result.stderr
    assert path.with_suffix(".plan").exists() == (result.returncode == 0)
    if crashes and result.returncode:
        assert "crashed with SIG" in errors[0] or "cannot" in errors[0], result.stderr


def dimensions(path):
    inputs, _ = tensor_specs(read_model(path))
    names = {axis for tensor in inputs for axis in tensor.shape or () if isinstance(axis, str)}
    return sorted(name for name in names if name.isidentifier())


# External weights


def external(name, location, **fields):
    weight = TensorProto(name=name, data_type=FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), *fields.items()):
        weight.external_data.add(key=key, value=str(value))
    return weight


def in_initializer(weight):
    return [helper.make_node("Add", ["x", weight.name], ["y"])], [weight], []


def in_constant(weight):
    nodes = [
        helper.make_node("Constant", [], ["c"], value=weight),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    return nodes, [], []


def in_function(weight):
    nodes, _, _ = in_constant(weight)
    opsets = [helper.make_opsetid("", 18)]
    body = helper.make_function("my", "F", ["x"], ["y"], nodes, opsets)
    return [helper.make_node("F", ["x"], ["y"], domain="my")], [], [body]


def in_branch(weight):
    nodes, weights, _ = in_initializer(weight)
    branch = helper.make_graph(nodes, "b", [], [tensor("y", FLOAT, [4])], weights)
    condition = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    nodes = [helper.make_node("If", ["t"], ["z"], then_branch=branch, else_branch=branch)]
    nodes.append(helper.make_node("Add", ["x", "z"], ["y"]))
    return nodes, [condition], []


@pytest.mark.parametrize("place", [in_initializer, in_constant, in_function, in_branch])
@pytest.mark.parametrize(
    ("location", "fields", "message"),
    [
        ("../secret", {}, "lies outside the model's folder"),
        ("/etc/passwd", {}, "lies outside the model's folder"),
        ("link", {}, "lies outside the model's folder"),
        ("loop", {}, "lies outside the model's folder"),
        ("inner/../../secret", {}, "lies outside the model's folder"),
        ("none", {}, "is missing"),
        ("fifo", {}, "is missing"),
        ("", {}, "is missing"),
        ("w" * 300, {}, "cannot be read"),
        ("good", {"offset": 8}, "is too short"),
        ("good", {"length": 8}, "has too little"),
        ("good", {"offset": 2**70}, "external weights|not an ONNX file"),
        ("good", {"offset": -8}, "not an ONNX file"),
        ("good", {"length": "x"}, "not an ONNX file"),
    ],
)
def test_external_weights_stay_in_their_folder(tmp_path, place, location, fields, message):
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / "good").write_bytes(np.ones(4, np.float32).tobytes())
    (folder / "link").symlink_to("../secret")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    path = write(folder, place, location, **fields)
    with pytest.raises(ModelError, match=message):
        read_model(path)
    read_model(write(folder, place, "good"))


def write(folder, place, location, **fields):
    nodes, weights, functions = place(external("w", location, **fields))
    shape = [tensor(name, FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", shape[:1], shape[1:], weights)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("what", ["fifo", "/dev/zero", "/dev/null", "folder", "loop", "zeros"])
def test_what_is_no_file(command, tmp_path, what):
    path = tmp_path / "m.onnx"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "zeros":
        with path.open("wb") as file:
            file.truncate(5 * 2**30)
    else:
        path.symlink_to(path if what == "loop" else what)
    for words in (
        ("inspect", path),
        ("build", path, "--dry-run"),
        ("build", path, "--no-cache"),
        ("quantize", path, "-o", tmp_path / "q.onnx", "--format", "int8-weights"),
        ("calibrate", path, "--data", tmp_path),
    ):
        result = command(*words)
        assert result.exit_code == 1
        assert str(path) in result.stderr.replace("\n", "")
