"""Models made of some of the nodes of a model, computed by onnx.reference."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from helpers import seed_models, tiny_models
from helpers.tiny_models import BOOL, FLOAT, INT64, tensor
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_native.debug.preparation import Form, prepare
from trt_native.debug.subgraphs import Subject, reads
from trt_native.shapes import ProfileSpec

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def values_of(model, inputs):
    """All values of the main graph."""
    everything = onnx.ModelProto()
    everything.CopyFrom(model)
    del everything.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    everything.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    found = ReferenceEvaluator(everything).run(None, inputs)
    return {**inputs, **dict(zip(names, found, strict=True))}


def run(model, values):
    """Outputs of a model whose inputs are among the values."""
    given = {value.name: values[value.name] for value in model.graph.input}
    names = [value.name for value in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(None, given), strict=True))


def subject_of(path, folder, form=Form.FIXED, profile=None):
    folder.mkdir(exist_ok=True)
    subject = prepare(path, folder, form, profile)
    assert subject is not None
    whole = subject.model
    onnx.load_external_data_for_model(whole, str(folder))
    return Subject(whole, subject.types, subject.constants)


@pytest.mark.parametrize("form", [Form.FOLDED, Form.FIXED, Form.AS_IT_IS])
def test_parts_of_random_graphs_compute_what_the_whole_does(draw, tmp_path, form):
    compared = 0
    for seed in range(40):
        made = draw(seed)
        if made is None or (made.dims and form is Form.AS_IT_IS):
            continue
        path = tmp_path / f"{seed}.onnx"
        onnx.save(made.model, path)
        profile = ProfileSpec({name: extents[0] for name, extents in made.dims.items()})
        subject = subject_of(path, tmp_path / str(seed), form, profile)
        inputs = {v.name: made.inputs[0][v.name] for v in subject.model.graph.input}
        values = values_of(subject.model, inputs)
        rng = random.Random(seed)
        for _ in range(4):
            start, end = sorted(rng.sample(range(len(subject) + 1), 2))
            kept = {*range(start, end)} - {rng.randrange(len(subject))}
            part = subject.cut(kept)
            if part is None:
                continue
            if all(v.type.tensor_type.HasField("shape") for v in part.graph.output):
                onnx.checker.check_model(part)
            assert sum(node.op_type != "Constant" for node in part.graph.node) == len(kept)
            for name, array in run(part, values).items():
                np.testing.assert_array_equal(array, values[name])
                compared += 1
    assert compared > 60


def test_outputs_are_what_others_read_and_the_models_own():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Split", ["a"], ["b", "c", "unread"], num_outputs=3),
        helper.make_node("Add", ["b", "c"], ["y"]),
        helper.make_node("Neg", ["y"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [tensor("x", FLOAT, [6])], [tensor("y", FLOAT, [2]), tensor("z", FLOAT, [2])]
    )
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    )
    subject = Subject(model, {v.name: v.type for v in model.graph.value_info})

    def outputs(kept, **options):
        return [value.name for value in subject.cut(kept, **options).graph.output]

    assert outputs([0]) == ["a"]
    assert outputs([1]) == ["b", "c"]
    assert outputs([0, 1, 2, 3]) == ["y", "z"]
    assert outputs([0, 1, 2, 3], all_outputs=False) == ["z"]
    assert outputs([0, 1, 2]) == ["y"]
    assert subject.cut([]) is None


def test_what_a_body_reads_from_around_it_is_an_input(tmp_path):
    subject = subject_of(seed_models.branches(tmp_path / "m.onnx"), tmp_path / "work")
    assert reads(subject.nodes[0]) == ["c", "x"]
    part = subject.cut([0])
    assert {value.name for value in part.graph.input} == {"x", "c"}
    values = {"x": np.full((2, 8), -1, np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(run(part, values)["y"], np.zeros((2, 8), np.float32))


def test_readers_of_bypassed_nodes_read_their_input(tmp_path):
    then = helper.make_graph(
        [helper.make_node("Neg", ["b"], ["n"])], "then", [], [tensor("n", FLOAT, [3])]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["b"], ["i"])], "other", [], [tensor("i", FLOAT, [3])]
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
        helper.make_node("Cast", ["y"], ["z"], to=INT64),
    ]
    path = tiny_models.save(
        tmp_path / "m.onnx",
        nodes,
        [tensor("x", FLOAT, [3]), tensor("c", BOOL, [])],
        [tensor("z", INT64, [3])],
    )
    subject = subject_of(path, tmp_path / "work")
    assert [subject.bypassable(index) for index in range(4)] == ["x", "a", None, None]
    part = subject.cut([2, 3], bypassed=[0, 1])
    onnx.checker.check_model(part)
    values = {"x": np.array([-1, 2, 3], np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(run(part, values)["z"], [1, -2, -3])


def test_shapes_that_nodes_compute_are_constants_of_a_part(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["batch"], axis=0),
        helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["a", "shape"], ["y"]),
    ]
    path = tiny_models.save(
        tmp_path / "m.onnx",
        nodes,
        [tensor("x", FLOAT, ["n", 4])],
        [tensor("y", FLOAT, ["n", 2, 2])],
        {"first": np.array([0]), "rest": np.array([2, 2])},
    )
    subject = subject_of(path, tmp_path / "work", profile=ProfileSpec({"n": "1:3:5"}))
    part = subject.cut([4])
    assert [value.name for value in part.graph.input] == ["a"]
    (shape,) = (numpy_helper.to_array(t) for t in part.graph.initializer)
    np.testing.assert_array_equal(shape, [3, 2, 2])
    folded = subject_of(path, tmp_path / "work", Form.FOLDED, ProfileSpec({"n": 3}))
    assert [node.op_type for node in folded.nodes] == ["Relu", "Reshape"]


def test_nodes_that_a_text_names():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="block.1/relu"),
        helper.make_node("Det", ["a"], ["b"]),
        helper.make_node("Det", ["b"], ["c"]),
    ]
    graph = helper.make_graph(nodes, "g", [tensor("x", FLOAT, [2, 2])], [tensor("c", FLOAT, [])])
    subject = Subject(helper.make_model(graph), {})
    assert subject.named_in("it failed at node block.1/relu [Relu]: Det") == [0]
    assert subject.named_in("the tensor 'b' (Det) is wrong") == [1]
    assert subject.named_in("there is no (Det)") == [1]
    assert subject.named_in("Determined by nothing") == []


def test_what_is_rare_is_suspicious_and_what_was_there_before_is_not():
    nodes = [helper.make_node("Relu", [f"x{i}"], [f"x{i + 1}"]) for i in range(5)]
    nodes.append(helper.make_node("Det", ["x5"], ["y"]))
    graph = helper.make_graph(nodes, "g", [tensor("x0", FLOAT, [2, 2])], [tensor("y", FLOAT, [])])
    subject = Subject(helper.make_model(graph), {})
    suspicion = subject.suspicion()
    assert suspicion[5] > suspicion[4] > suspicion[2] == suspicion[3] > 0
    assert suspicion[0] > suspicion[1] > suspicion[2]
    assert subject.novelty() == [1.0, 1.0, 0.3, 0.3, 0.3, 1.0]
