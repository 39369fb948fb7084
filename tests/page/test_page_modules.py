"""The tree of modules by which a graph opens."""

from __future__ import annotations

import pytest

from trt_native.page.modules import MOST_CHILDREN, module_path, module_tree


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("MatMul", ()),
        ("/Softmax", ()),
        ("blocks.0.mlp/MatMul", ("blocks", "0", "mlp")),
        ("/down/blocks.1/attn/MatMul_2", ("down", "blocks", "1", "attn")),
        ("..//", ()),
        ("", ()),
    ],
)
def test_modules_in_a_name(name, path):
    assert module_path(name) == path


def full_names(tree):
    names = []
    for name, parent in tree.modules:
        names.append(name if parent <= 0 else f"{names[parent]}.{name}")
    return names


def test_nodes_are_in_their_modules():
    paths = [("a", "b"), ("a",), (), ("a", "c"), ("d",)]
    tree = module_tree(paths)
    names = full_names(tree)
    assert [names[place] for place in tree.places] == ["a.b", "a", "", "a.c", "d"]


def test_a_module_with_one_child_is_one_with_it():
    tree = module_tree([("a", "b", "c"), ("a", "b", "c"), ("d",)])
    assert [name for name, _ in tree.modules] == ["", "a.b.c", "d"]


def test_parents_come_first_and_children_in_the_order_of_nodes():
    tree = module_tree([("z",), ("a", "x"), ("a", "w"), ("z",)])
    assert all(parent < index for index, (_, parent) in enumerate(tree.modules))
    assert [name for name, _ in tree.modules] == ["", "z", "a", "x", "w"]


@pytest.mark.parametrize("count", [MOST_CHILDREN, MOST_CHILDREN + 1, 5000])
def test_no_module_has_too_many_children(count):
    tree = module_tree([("flat",)] * count + [()])
    children = [0] * len(tree.modules)
    for place in tree.places:
        children[place] += 1
    for _, parent in tree.modules[1:]:
        children[parent] += 1
    assert max(children) <= MOST_CHILDREN
    assert len(tree.places) == count + 1
    assert (len(tree.modules) > 2) == (count > MOST_CHILDREN)


def test_a_graph_without_nodes():
    tree = module_tree([])
    assert (tree.modules, tree.places) == ((("", -1),), ())
