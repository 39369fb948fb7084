"""Reductions with commands and with builds by TensorRT-RTX."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.planted_builds import PARSER_CRASH, PLANT
from helpers.tiny_models import BOOL, FLOAT, tensor
from onnx import helper, numpy_helper

from trt_native.config import BuildConfig
from trt_native.debug.checks import (
    BuildCheck,
    CommandCheck,
    Outcome,
    VerifyCheck,
    is_same_failure,
)
from trt_native.debug.preparation import Form
from trt_native.debug.reduce import reduce_model
from trt_native.errors import SpecError, UnsupportedError
from trt_native.shapes import ProfileSpec


class Function:
    """A check in this process: what a function of the model returns, as an exit code."""

    def __init__(self, function, name=""):
        self.function, self.name = function, name

    def run(self, model, timeout_s):
        code = self.function(onnx.load(model))
        return Outcome(code != 0, f"exit code {code}")

    def close(self):
        pass

    def identity(self):
        return {"function": self.name}


def has(*operators):
    def fails(model):
        return 3 * ({*operators} <= {node.op_type for node in model.graph.node})

    return Function(fails, str(operators))


def has_node(name):
    return Function(lambda model: int(any(node.name == name for node in model.graph.node)))


def short(folder):
    """A model of three nodes."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Floor", ["a"], ["b"], name="floor"),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    shape = [2, 2]
    inputs, outputs = [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)]
    return tiny_models.save(folder / "short.onnx", nodes, inputs, outputs)


def python(code):
    """A command that runs code with the model as ``graph``."""
    lines = f"import sys, onnx; graph = onnx.load(sys.argv[1]).graph; {code}"
    return CommandCheck(shlex.join([sys.executable, "-c", lines]))


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


class TestCommands:
    def test_one_operator_is_what_is_left(self, layers, tmp_path):
        model = layers(helper.make_node("Floor", ["@"], ["f"], name="floor"))
        trials = []
        found = reduce_model(model, tmp_path / "out", has("Floor"), on_trial=trials.append)
        assert operators(found.path) == ["Floor"]
        assert found.nodes_before == 61
        assert found.nodes_after == 1
        assert found.form is Form.FOLDED
        assert found.first.kind == found.last.kind == "exit code 3"
        assert found.checks == len(trials) <= 12
        assert trials[0].nodes == 61
        assert trials[0].fails
        onnx.checker.check_model(onnx.load(found.path), full_check=True)
        assert {file.name for file in (tmp_path / "out").iterdir()} == {
            ".lock",
            "reduced.onnx",
            "results.jsonl",
        }

    def test_two_nodes_far_apart_are_what_is_left(self, layers, tmp_path):
        model = layers(
            helper.make_node("Floor", ["@"], ["f"]), helper.make_node("Erf", ["x"], ["e"])
        )
        found = reduce_model(model, tmp_path / "out", has("Floor", "Erf"))
        assert sorted(operators(found.path)) == ["Erf", "Floor"]

    def test_what_the_command_names_is_tried_first(self, layers, tmp_path):
        model = layers(helper.make_node("Floor", ["@"], ["f"], name="the/floor"))
        check = python(
            "found = [n for n in graph.node if n.op_type == 'Floor'];"
            " print(*(n.name for n in found)); sys.exit(len(found))"
        )
        found = reduce_model(model, tmp_path / "out", check)
        assert operators(found.path) == ["Floor"]
        assert found.checks == 3  # of the whole, of the node, and with smaller extents

    def test_nodes_between_are_bypassed(self, layers, tmp_path):
        def fails(model):
            made = {name: node for node in model.graph.node for name in node.output}

            def above(node):
                sources = [made[name] for name in node.input if name in made]
                return {node.op_type}.union(*map(above, sources))

            nodes = model.graph.node
            return int(any(n.op_type == "Erf" and "Floor" in above(n) for n in nodes))

        nodes = [helper.make_node("Floor", ["@"], ["f"])]
        nodes += [helper.make_node("Relu", ["@"], [f"r{i}"]) for i in range(30)]
        nodes += [helper.make_node("Erf", ["@"], ["e"])]
        found = reduce_model(layers(*nodes), tmp_path / "out", Function(fails))
        assert operators(found.path) == ["Floor", "Erf"]
        assert found.checks < 80

    def test_weights_and_inputs_are_small(self, layers, tmp_path):
        model = layers()
        found = reduce_model(model, tmp_path / "out", has_node("layer20"))
        reduced = onnx.load(found.path)
        assert [node.name for node in reduced.graph.node] == ["layer20"]
        (weight,) = reduced.graph.initializer
        rng = np.random.default_rng(0)
        whole = [0.1 * rng.standard_normal((32, 32), np.float32) for _ in range(15)]
        expected = whole[5].astype(np.float32)[:2, :2]
        np.testing.assert_array_equal(numpy_helper.to_array(weight), expected)

    def test_functions_are_inlined(self, tmp_path):
        body = [helper.make_node("Floor", ["a"], ["b"]), helper.make_node("Exp", ["b"], ["c"])]
        opsets = [helper.make_opsetid("", 18)]
        function = helper.make_function("own", "F", ["a"], ["c"], body, opsets)
        nodes = [helper.make_node("F", [f"x{i}"], [f"x{i + 1}"], domain="own") for i in range(5)]
        model = tiny_models.save(
            tmp_path / "m.onnx",
            nodes,
            [tensor("x0", FLOAT, [2, 8])],
            [tensor("x5", FLOAT, [2, 8])],
            domains={"own": 1},
            functions=[function],
        )

        def fails(model):
            parts = (model.graph, *model.functions)
            return int(any(node.op_type == "Floor" for part in parts for node in part.node))

        found = reduce_model(model, tmp_path / "out", Function(fails))
        assert operators(found.path) == ["Floor"]

    def test_a_failure_of_the_form_needs_the_form(self, tmp_path):
        """A failure that is gone with fixed dimensions is reduced with dynamic ones."""
        nodes = [helper.make_node("Relu", [f"x{i}"], [f"x{i + 1}"]) for i in range(10)]
        nodes[6].op_type = "Floor"
        shape = ["n", 8]
        model = tiny_models.save(
            tmp_path / "m.onnx",
            nodes,
            [tensor("x0", FLOAT, shape)],
            [tensor("x10", FLOAT, shape)],
        )

        def fails(model):
            axes = [d for v in model.graph.input for d in v.type.tensor_type.shape.dim]
            floor = any(node.op_type == "Floor" for node in model.graph.node)
            return int(floor and any(axis.dim_param for axis in axes))

        found = reduce_model(model, tmp_path / "out", Function(fails))
        assert found.form is Form.INLINED
        assert operators(found.path) == ["Floor"]

    def test_a_body_becomes_the_model(self, tmp_path):
        inner = [helper.make_node("Relu", ["x"], ["a"])]
        inner += [helper.make_node("Sin", ["a"], ["s"]), helper.make_node("Floor", ["s"], ["t"])]
        then = helper.make_graph(inner, "then", [], [tensor("t", FLOAT, [4])])
        other = helper.make_graph(
            [helper.make_node("Neg", ["x"], ["o"])], "other", [], [tensor("o", FLOAT, [4])]
        )
        branch = helper.make_node("If", ["c"], ["i"], then_branch=then, else_branch=other)
        nodes = [helper.make_node("Exp", ["x"], ["e"]), branch]
        nodes.append(helper.make_node("Add", ["e", "i"], ["y"]))
        model = tiny_models.save(
            tmp_path / "m.onnx",
            nodes,
            [tensor("x", FLOAT, [4]), tensor("c", BOOL, [])],
            [tensor("y", FLOAT, [4])],
        )
        check = CommandCheck("! grep -qa Floor")
        assert operators(reduce_model(model, tmp_path / "out", check).path) == ["Floor"]

    def test_external_weights_are_followed_and_put_inside(self, tmp_path):
        weights = {"w": np.ones((700, 700), np.float32), "v": np.ones((700, 700), np.float32)}
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
            helper.make_node("MatMul", ["a", "v"], ["y"], name="second"),
        ]
        whole = tmp_path / "whole.onnx"
        shape = tensor("x", FLOAT, [1, 700]), tensor("y", FLOAT, [1, 700])
        tiny_models.save(whole, nodes, [shape[0]], [shape[1]], weights)
        model = tmp_path / "m.onnx"
        onnx.save(onnx.load(whole), model, save_as_external_data=True, location="m.data")
        found = reduce_model(model, tmp_path / "out", has_node("second"))
        reduced = onnx.load(found.path, load_external_data=False)
        assert [node.name for node in reduced.graph.node] == ["second"]
        assert all(not tensor.external_data for tensor in reduced.graph.initializer)
        assert (tmp_path / "m.data").exists()

    def test_a_command_that_takes_too_long_does_not_fail(self, tmp_path):
        check = python(
            "import time; found = [n for n in graph.node if n.op_type == 'Floor'];"
            " len(graph.node) < 2 and time.sleep(60); sys.exit(bool(found))"
        )
        found = reduce_model(short(tmp_path), tmp_path / "out", check, timeout_s=3)
        assert found.nodes_after == 2
        assert "Floor" in operators(found.path)

    def test_exit_codes_and_signals_must_be_the_same(self, tmp_path):
        check = python(
            "import os, signal; len(graph.node) < 2 and sys.exit(4);"
            " 'Floor' in str(graph) and os.kill(os.getpid(), signal.SIGSEGV)"
        )
        found = reduce_model(short(tmp_path), tmp_path / "out", check)
        assert found.last.kind == "SIGSEGV"
        assert found.nodes_after == 2

    def test_what_a_command_leaves_running_is_ended(self, tmp_path):
        process = tmp_path / "process"
        command = f"sleep 300 & echo $! > {process}; false"
        reduce_model(short(tmp_path), tmp_path / "out", CommandCheck(command + " # {}"))
        left = Path(f"/proc/{process.read_text().strip()}/stat")

        def is_ended():
            return not left.exists() or left.read_text().rpartition(")")[2].split()[0] == "Z"

        ends = time.monotonic() + 30  # it was killed, and goes when the kernel gets to it
        while not is_ended() and time.monotonic() < ends:
            time.sleep(0.05)
        assert is_ended()


class TestResuming:
    def test_an_interrupted_reduction_goes_on_where_it_was(self, layers, tmp_path):
        model = layers(helper.make_node("Floor", ["@"], ["f"]))
        whole = reduce_model(model, tmp_path / "whole", has("Floor"))

        def interrupt(trial):
            if trial.number == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reduce_model(model, tmp_path / "out", has("Floor"), on_trial=interrupt)
        results = tmp_path / "out" / "results.jsonl"
        results.write_text(results.read_text() + '{"key": "cut o')
        found = reduce_model(model, tmp_path / "out", has("Floor"))
        assert found.recalled == 4
        assert found.checks == whole.checks - 4
        assert found.path.read_bytes() == whole.path.read_bytes()
        again = reduce_model(model, tmp_path / "out", has("Floor"))
        assert again.checks == 0
        assert again.path.read_bytes() == whole.path.read_bytes()

    def test_another_reduction_needs_another_folder(self, layers, tmp_path):
        model = layers(helper.make_node("Floor", ["@"], ["f"]))
        reduce_model(model, tmp_path / "out", has("Floor"))
        with pytest.raises(SpecError, match="holds the reduction of another model"):
            reduce_model(model, tmp_path / "out", has("Relu"))
        layers()
        with pytest.raises(SpecError, match="holds the reduction of another model"):
            reduce_model(model, tmp_path / "out", has("Floor"))

    def test_a_folder_in_which_nothing_failed_can_be_used_again(self, layers, tmp_path):
        model = layers(helper.make_node("Floor", ["@"], ["f"]))
        with pytest.raises(SpecError, match="does not fail"):
            reduce_model(model, tmp_path / "out", has("Unique"))
        assert reduce_model(model, tmp_path / "out", has("Floor")).path.is_file()

    def test_a_folder_with_other_files_is_left_alone(self, layers, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").touch()
        with pytest.raises(SpecError, match="holds other files"):
            reduce_model(layers(), tmp_path / "out", has("Relu"))
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["precious"]

    def test_a_folder_in_use_is_refused(self, layers, tmp_path):
        model = layers(helper.make_node("Floor", ["@"], ["f"]))

        def nested(trial):
            reduce_model(model, tmp_path / "out", has("Floor"))

        with pytest.raises(SpecError, match="another process uses it"):
            reduce_model(model, tmp_path / "out", has("Floor"), on_trial=nested)


class TestRefusals:
    def test_a_model_that_does_not_fail(self, layers, tmp_path):
        with pytest.raises(SpecError, match="does not fail; there is nothing to reduce"):
            reduce_model(layers(), tmp_path / "out", has("Floor"))

    def test_a_failure_without_the_pattern(self, layers, tmp_path):
        with pytest.raises(SpecError, match="fails, but not with 'no such'"):
            reduce_model(layers(), tmp_path / "out", has("Relu"), pattern="no such")
        with pytest.raises(SpecError, match="not a regular expression"):
            reduce_model(layers(), tmp_path / "out", has("Relu"), pattern="(")

    def test_a_failure_that_is_gone_once_written_again(self, layers, tmp_path):
        model = layers()
        check = CommandCheck(f"! cmp -s {shlex.quote(str(model))}")
        with pytest.raises(UnsupportedError, match="read and written it again"):
            reduce_model(model, tmp_path / "out", check)

    def test_an_empty_command(self):
        with pytest.raises(SpecError, match="the check is empty"):
            CommandCheck(" ")


@pytest.mark.parametrize(
    ("found", "same"),
    [
        (Outcome(True, "BuildError", signs=("a", "c")), True),
        (Outcome(True, "BuildError", signs=("c",)), False),
        (Outcome(True, "BuildError"), False),
        (Outcome(True, "SIGSEGV", signs=("a",)), False),
        (Outcome(False, "BuildError", signs=("a",)), False),
    ],
)
def test_a_failure_is_the_same_by_its_kind_and_one_sign(found, same):
    first = Outcome(True, "BuildError", lines=("x",), signs=("a", "b"))
    assert is_same_failure(found, first, None) == same


@pytest.mark.backend
class TestBuilds:
    @pytest.fixture(autouse=True)
    def _backend(self):
        pytest.importorskip("tensorrt_rtx")

    def reduced(self, model, folder, failure="build", config=None, **options):
        check = BuildCheck(config or BuildConfig(), "rtx", model, folder, failure)
        return reduce_model(model, folder, check, **options)

    def test_the_refused_operator_is_what_is_left(self, layers, tmp_path):
        planted = helper.make_node("Mod", ["@", "x"], ["m"], name="the/mod", fmod=0)
        found = self.reduced(layers(planted), tmp_path / "out")
        assert operators(found.path) == ["Mod"]
        assert found.checks <= 5
        assert any("Mod 'the/mod'" in line for line in found.last.lines)

    def test_other_refusals_are_other_failures(self, layers, tmp_path):
        planted = [
            helper.make_node("Mod", ["@", "x"], ["m"], name="mod", fmod=0),
            helper.make_node("Frobnicate", ["@"], ["y0"], name="frob", domain="my"),
            helper.make_node("Add", ["y0", "x"], ["y1"]),
        ]
        model = layers(*planted, domains={"my": 1})
        proto = onnx.load(model)
        proto.graph.value_info.append(tensor("y0", FLOAT, [4, 32]))
        onnx.save(proto, model)
        config = BuildConfig(precision="fp32")
        found = self.reduced(model, tmp_path / "a", config=config, pattern="no Frobnicate")
        assert operators(found.path) == ["Frobnicate"]
        found = self.reduced(model, tmp_path / "b", config=config, pattern="fmod")
        assert operators(found.path) == ["Mod"]

    def test_a_crash_is_reduced_to_its_node(self, layers, tmp_path, plant, monkeypatch):
        model = layers(helper.make_node("Floor", ["@"], ["f"], name="crashing"))
        for name, value in plant(PARSER_CRASH.format(node="crashing")).items():
            monkeypatch.setenv(name, value)
        found = self.reduced(model, tmp_path / "out", "crash")
        assert operators(found.path) == ["Floor"]
        assert found.last.kind == "SIGFPE"
        assert any("crashing [Floor]" in line for line in found.last.lines)

    @pytest.mark.slow
    @pytest.mark.usefixtures("started_builds")
    def test_a_slow_build_is_one_over_the_limit(self, tmp_path, plant, monkeypatch):
        model = short(tmp_path)
        code = PLANT.format(
            body="time.sleep(30 * any('floor' in network.get_layer(i).name"
            " for i in range(network.num_layers))); return build()"
        )
        for name, value in plant(code).items():
            monkeypatch.setenv(name, value)
        folder = tmp_path / "out"
        check = BuildCheck(BuildConfig(), "rtx", model, folder, "slow", slow_s=3)
        found = reduce_model(model, folder, check)
        assert operators(found.path) == ["Floor"]
        assert found.last.lines == ("the build takes longer than 3 s",)

    def test_an_error_is_not_a_slow_build(self, layers, tmp_path):
        model = layers(helper.make_node("Mod", ["@", "x"], ["m"], name="mod", fmod=0))
        check = BuildCheck(BuildConfig(), "rtx", model, tmp_path / "out", "slow", slow_s=60)
        with pytest.raises(SpecError, match="but with BuildError") as e:
            reduce_model(model, tmp_path / "out", check)
        assert "Mod 'mod'" in str(e.value)

    def test_a_request_that_does_not_fit_is_no_failure_of_the_model(self, tmp_path):
        model = tiny_models.conv(tmp_path / "m.onnx")
        with pytest.raises(SpecError, match="does not fail in this way, but with SpecError") as e:
            self.reduced(model, tmp_path / "out")
        assert "the requested shapes do not fit the model" in str(e.value)

    def test_ranges_and_named_options_are_cut_down(self, tmp_path):
        nodes = [
            helper.make_node("Relu", ["x"], ["a"], name="relu"),
            helper.make_node("Mod", ["a", "z"], ["m"], name="mod", fmod=0),
            helper.make_node("Exp", ["m"], ["y"], name="exp"),
        ]
        shape = ["n", 8]
        model = tiny_models.save(
            tmp_path / "m.onnx",
            nodes,
            [tensor("x", FLOAT, shape), tensor("z", FLOAT, [8])],
            [tensor("y", FLOAT, shape)],
        )
        spec = ProfileSpec({"n": "1:3:4"})
        config = BuildConfig(profiles=(spec,), keep_fp32=("exp", "op:Relu"), break_fusions=("a",))
        found = self.reduced(model, tmp_path / "out", config=config, profile=spec)
        assert operators(found.path) == ["Mod"]
        assert found.form is Form.FOLDED

    def test_wrong_results_are_reduced_to_the_node_that_makes_them(
        self, layers, tmp_path, plant, monkeypatch
    ):
        """Plans run by onnx.reference, which is made to compute Floor wrongly."""
        code = """
        import contextlib
        from pathlib import Path
        import trt_native.verify.check as check
        @contextlib.contextmanager
        def open_session(plan):
            import onnx
            from onnx.reference import ReferenceEvaluator
            name, folder = Path(plan.manifest.model["file"]).name, plan.path.parent
            model = onnx.load(next(p for p in (folder / name, folder.parent / name) if p.exists()))
            for node in model.graph.node:
                node.op_type = node.op_type.replace("Floor", "Ceil")
            names = [value.name for value in model.graph.output]
            evaluator = ReferenceEvaluator(model)
            run = lambda inputs: dict(zip(names, evaluator.run(None, dict(inputs))))
            inputs, outputs = (
                tuple(t for t in plan.manifest.tensors if t.mode == mode)
                for mode in ("input", "output")
            )
            yield check.OpenPlan(inputs, outputs, run)
        check.open_session = open_session
        """
        for name, value in plant(code).items():
            monkeypatch.setenv(name, value)
        nodes = [helper.make_node("Relu", ["x"], ["a"], name="first")]
        nodes.append(helper.make_node("Floor", ["a"], ["b"], name="floor"))
        nodes += [
            helper.make_node("Exp", ["b"], ["c"], name="third"),
            helper.make_node("Neg", ["c"], ["y"], name="last"),
        ]
        inputs, outputs = [tensor("x", FLOAT, [2, 8])], [tensor("y", FLOAT, [2, 8])]
        model = tiny_models.save(tmp_path / "out.onnx", nodes, inputs, outputs)
        check = VerifyCheck(BuildConfig(precision="fp32"), "rtx", model, tmp_path / "out", 0.01)
        found = reduce_model(model, tmp_path / "out", check)
        assert operators(found.path) == ["Floor"]
        assert found.last.kind == "wrong results"
        assert "relative L2" in " ".join(found.last.lines)

    def test_a_model_that_does_not_fail_here_is_checked_again(self, tmp_path):
        model = short(tmp_path)
        with pytest.raises(SpecError, match="nothing to reduce"):
            self.reduced(model, tmp_path / "out")
        lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
        assert len(lines) == 1

    def test_results_say_how_each_check_ended(self, layers, tmp_path):
        planted = helper.make_node("Mod", ["@", "x"], ["m"], name="mod", fmod=0)
        found = self.reduced(layers(planted), tmp_path / "out")
        lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
        header, *results = map(json.loads, lines)
        assert header["fails"] == "build"
        assert len(results) == found.checks
        assert results[0]["kind"] == "BuildError"
