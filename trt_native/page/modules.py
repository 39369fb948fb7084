"""The tree of modules that nodes are in, by which a graph opens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["MOST_CHILDREN", "ModuleTree", "module_path", "module_tree"]

MOST_CHILDREN = 60
"""Children that a module may have; those of a larger one are divided into parts."""

_PART = 30

_Child: TypeAlias = "int | _Module"


@dataclass(frozen=True, slots=True)
class ModuleTree:
    """Modules, each behind its parent; the first is the whole graph.

    Attributes:
        modules: Name and index of the parent of each; -1 for the first.
        places: Index of the module of each node.
    """

    modules: tuple[tuple[str, int], ...]
    places: tuple[int, ...]


def module_path(name: str) -> tuple[str, ...]:
    """Modules in a node's name, outermost first.

    Exporters write ``blocks.0.mlp/MatMul`` or ``/blocks.0/mlp/MatMul``: what follows the last slash
    is the node itself.
    """
    scopes = name.split("/")[:-1]
    return tuple(part for scope in scopes for part in scope.split(".") if part)


@dataclass(slots=True, eq=False)
class _Module:
    name: str
    children: list[_Child] = field(default_factory=list)
    named: dict[str, _Module] = field(default_factory=dict)

    def inside(self, name: str) -> _Module:
        if name not in self.named:
            self.named[name] = _Module(name)
            self.children.append(self.named[name])
        return self.named[name]


def module_tree(paths: Sequence[Sequence[str]]) -> ModuleTree:
    """Make the tree of nodes whose modules are given.

    A module whose only child is a module is one with it. Children are in the order of the nodes.

    Args:
        paths: Modules of each node, outermost first.
    """
    root = _Module("")
    for node, path in enumerate(paths):
        module = root
        for name in path:
            module = module.inside(name)
        module.children.append(node)
    modules: list[tuple[str, int]] = []
    places = [0] * len(paths)
    waiting: list[tuple[_Module, int]] = [(root, -1)]
    while waiting:
        module, parent = waiting.pop()
        index = len(modules)
        modules.append((module.name, parent))
        inner = []
        for child in _in_parts(module.children):
            if isinstance(child, int):
                places[child] = index
            else:
                inner.append((_merged(child), index))
        waiting.extend(reversed(inner))
    return ModuleTree(tuple(modules), tuple(places))


def _merged(module: _Module) -> _Module:
    names = [module.name]
    while len(module.children) == 1 and isinstance(only := module.children[0], _Module):
        module = only
        names.append(module.name)
    return _Module(".".join(names), module.children)


def _in_parts(children: Sequence[_Child]) -> Sequence[_Child]:
    while len(children) > MOST_CHILDREN:
        children = [
            _Module(f"part {number}", part)
            for number, part in enumerate(_runs(children, _PART), start=1)
        ]
    return children


def _runs(items: Iterable[_Child], length: int) -> Iterator[list[_Child]]:
    iterator = iter(items)
    while run := list(itertools.islice(iterator, length)):
        yield run
