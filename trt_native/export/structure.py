"""The structure around the tensors that a module takes and returns.

An engine has a flat list of tensors. A module may take and return them in dictionaries, lists,
tuples and dataclasses, with numbers, texts and flags, which an exported graph has as constants.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import keyword
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from trt_native.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CallStructure", "OutputStructure", "arguments_of", "is_constant"]

_CONSTANTS = (bool, int, float, complex, str, bytes, range, slice, Enum)
_MOST_SHOWN = 60


class CallStructure:
    """The arguments of a module, of which the tensors are an engine's inputs.

    Made by :meth:`of`.

    Attributes:
        names: For each tensor the parameter that it is for, or within which it is, followed by the
            keys, fields or numbers of its place, joined by ``_``.
        is_plain: Whether every argument is a tensor of a parameter of its own, in their order.
    """

    def __init__(self, module: nn.Module) -> None:
        self._owner = type(module).__name__
        self._signature = inspect.signature(module.forward)
        self._nodes: dict[str, _Node] = {}
        self.names: tuple[str, ...] = ()
        self.is_plain = False

    @classmethod
    def of(
        cls, module: nn.Module, inputs: Any, kwargs: Mapping[str, Any] | None = None
    ) -> tuple[CallStructure, dict[str, Tensor]]:
        """Take the tensors out of the arguments of an example.

        Args:
            module: The module.
            inputs: Arguments of ``forward``: a sequence by position, a mapping by parameter, or one
                tensor. They may be nested in mappings, lists, tuples and dataclasses. What is not a
                tensor is a constant from then on.
            kwargs: Further arguments by parameter.

        Returns:
            The structure, which does not hold the tensors, and the tensors by name.

        Raises:
            SpecError: the arguments do not fit ``forward``, have no tensor, or hold something that
                is neither a tensor nor a constant.
        """
        call = cls(module)
        args, by_name = arguments_of(inputs, kwargs)
        tensors: dict[str, Tensor] = {}
        parameters = call._signature.parameters
        hint = ""
        if isinstance(inputs, Mapping):
            hint = "; a mapping has arguments by name, so put one that is an argument into a list"
        for name, value in call._bind(args, by_name, hint=hint).arguments.items():
            is_rest = parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            call._nodes[name] = _node_of(value, () if is_rest else (name,), "inputs", tensors)
        if not tensors:
            raise SpecError(f"inputs: {call._owner} needs at least one tensor; found none")
        call.names = tuple(tensors)
        kinds = {parameters[name].kind for name in call._nodes}
        call.is_plain = (
            [*parameters][: len(call._nodes)] == [*call._nodes]
            and all(isinstance(node, _TensorNode) for node in call._nodes.values())
            and not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.KEYWORD_ONLY}
        )
        return call, tensors

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Take the tensors out of the arguments of a call.

        Args:
            args: Its positional arguments.
            kwargs: Its keyword arguments. Constants may be left out.

        Returns:
            The tensors by name.

        Raises:
            SpecError: the structure or a constant is not that of the example; all problems in one
                error.
        """
        given = self._bind(args, kwargs, partial=True).arguments
        found = _Found()
        problems = found.problems
        for parameter, value in given.items():
            node = self._nodes.get(parameter)
            if node is not None:
                node.collect(value, parameter, found)
            elif not _is_same(value, self._signature.parameters[parameter].default):
                problems.append(f"{parameter} was not among the inputs of the example")
        for parameter, node in self._nodes.items():
            if parameter not in given and not node.is_optional():
                problems.append(f"{parameter} is missing")
        if problems:
            raise SpecError(
                f"the arguments are not as those that {self._owner} was compiled with:",
                problems=problems,
            )
        return found.tensors

    def rebuild(self, tensors: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put tensors, by name, in their places; returns positional and keyword arguments."""
        values = iter([tensors[name] for name in self.names])
        arguments = {name: node.build(values) for name, node in self._nodes.items()}
        bound = inspect.BoundArguments(self._signature, arguments)
        return bound.args, bound.kwargs

    def describe(self) -> list[Any]:
        """The structure and its constants as JSON holds them, equal only for equal ones."""
        return [[name, node.describe()] for name, node in self._nodes.items()]

    def _bind(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        partial: bool = False,
        hint: str = "",
    ) -> inspect.BoundArguments:
        bind = self._signature.bind_partial if partial else self._signature.bind
        try:
            return bind(*args, **kwargs)
        except TypeError as error:
            raise SpecError(f"inputs do not fit {self._owner}.forward: {error}{hint}") from None


class OutputStructure:
    """The result of a module, of which the tensors are an engine's outputs. Made by :meth:`of`.

    Attributes:
        count: Number of the tensors.
    """

    def __init__(self, node: _Node, count: int) -> None:
        self._node = node
        self.count = count

    @classmethod
    def of(cls, module: nn.Module, output: Any) -> tuple[OutputStructure, tuple[Tensor, ...]]:
        """Take the tensors out of what a module returned.

        Args:
            module: The module, for messages.
            output: What it returned.

        Returns:
            The structure, which does not hold the tensors, and the tensors in order.

        Raises:
            SpecError: there is no tensor, or something that is neither a tensor nor a constant.
        """
        found: dict[str, Tensor] = {}
        node = _node_of(output, ("output",), f"what {type(module).__name__} returns", found)
        if not found:
            raise SpecError(f"{type(module).__name__} returns no tensor")
        return cls(node, len(found)), tuple(found.values())

    def rebuild(self, tensors: Sequence[Any]) -> Any:
        """Put tensors, in order, in their places."""
        return self._node.build(iter(tensors))


def arguments_of(
    inputs: Any, kwargs: Mapping[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an example; see :meth:`CallStructure.of`."""
    further = dict(kwargs or {})
    if isinstance(inputs, Mapping):
        if both := sorted(further.keys() & inputs.keys()):
            raise SpecError(f"kwargs: given twice: {', '.join(map(str, both))}")
        return (), {**inputs, **further}
    if _is_tensor(inputs):
        return (inputs,), further
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), further
    raise SpecError(
        "inputs: give a tensor, a list of arguments by position, or a mapping by parameter; found a"
        f" {type(inputs).__name__}"
    )


# Nodes of a structure ----------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Found:
    """The tensors in a value by name, and where it is not as its structure."""

    tensors: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)


class _Node(Protocol):
    def collect(self, value: Any, place: str, found: _Found) -> None: ...

    def build(self, tensors: Iterator[Any], /) -> Any: ...

    def is_optional(self) -> bool: ...

    def describe(self) -> Any: ...


@dataclasses.dataclass(frozen=True, slots=True)
class _TensorNode:
    name: str

    def collect(self, value: Any, place: str, found: _Found) -> None:
        if _is_tensor(value):
            found.tensors[self.name] = value
        else:
            found.problems.append(f"{place} is a {type(value).__name__}, not a tensor")

    def build(self, tensors: Iterator[Any]) -> Any:
        return next(tensors)

    def is_optional(self) -> bool:
        return False

    def describe(self) -> Any:
        return {"tensor": self.name}


@dataclasses.dataclass(frozen=True, slots=True)
class _ConstantNode:
    value: Any

    def collect(self, value: Any, place: str, found: _Found) -> None:
        if not _is_same(value, self.value):
            found.problems.append(
                f"{place} is {_shown(value)}, and {_shown(self.value)} is a constant of the engine;"
                " compile again for another value"
            )

    def build(self, _: Iterator[Any], /) -> Any:
        return self.value

    def is_optional(self) -> bool:
        return True

    def describe(self) -> Any:
        return {"constant": [type(self.value).__qualname__, repr(self.value)]}


@dataclasses.dataclass(frozen=True, slots=True)
class _ContainerNode:
    """A mapping, list, tuple or dataclass.

    Attributes:
        kind: Its class.
        children: What is in it, by key, number or field.
        empty: A mapping of its class and settings, such as the factory of a ``defaultdict``.
    """

    kind: type[Any]
    children: Mapping[Any, _Node]
    empty: MutableMapping[Any, Any] | None = None

    def collect(self, value: Any, place: str, found: _Found) -> None:
        items = _items(value)
        if items is None or _family(value) != _family_of(self.kind):
            found.problems.append(
                f"{place} is a {type(value).__name__}, not a {self.kind.__name__}"
            )
            return
        for key, child in self.children.items():
            if key in items:
                child.collect(items[key], f"{place}.{key}", found)
            elif not child.is_optional():
                found.problems.append(f"{place}.{key} is missing")
        found.problems.extend(
            f"{place}.{key} was not in the example"
            for key, item in items.items()
            if key not in self.children and item is not None
        )

    def build(self, tensors: Iterator[Any]) -> Any:
        items = {key: child.build(tensors) for key, child in self.children.items()}
        if self.kind in (list, tuple):
            return self.kind(items.values())
        if issubclass(self.kind, tuple):
            return self.kind(*items.values())
        if self.empty is not None:
            made = copy.copy(self.empty)
            made.update(items)
            return made
        return _made_dataclass(self.kind, items)

    def is_optional(self) -> bool:
        return all(child.is_optional() for child in self.children.values())

    def describe(self) -> Any:
        children = [[repr(key), child.describe()] for key, child in self.children.items()]
        return {"kind": f"{self.kind.__module__}.{self.kind.__qualname__}", "items": children}


def _node_of(value: Any, path: tuple[Any, ...], what: str, tensors: dict[str, Tensor]) -> _Node:
    """Describe a value, and add its tensors to those by name."""
    place = ".".join(map(str, path))
    if _is_tensor(value):
        name = _name(path)
        if name in tensors:
            raise SpecError(f"{what}: two tensors would have the name {name!r}; rename {place}")
        tensors[name] = value
        return _TensorNode(name)
    items = _items(value)
    if items is not None:
        children = {key: _node_of(item, (*path, key), what, tensors) for key, item in items.items()}
        return _ContainerNode(type(value), children, _emptied(value))
    if not is_constant(value):
        raise SpecError(
            f"{what}: {place} is a {type(value).__name__}, which is neither a tensor, nor a"
            " mapping, list, tuple or dataclass of tensors, nor a number, text or flag"
        )
    return _ConstantNode(value)


def _name(path: Sequence[Any]) -> str:
    """A name that is a Python identifier, too."""
    name = re.sub(r"\W", "_", "_".join(map(str, path)))
    if not name.isidentifier() or keyword.iskeyword(name):
        name = f"{name}_" if keyword.iskeyword(name) else f"_{name}"
    return name


def _items(value: Any) -> dict[Any, Any] | None:
    """Content of a container, by key, number or field; None for anything else."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _family(value: Any) -> Any:
    return _family_of(type(value))


def _family_of(kind: type[Any]) -> Any:
    """Classes of which one may stand for another in a call."""
    if dataclasses.is_dataclass(kind):
        return kind
    if issubclass(kind, Mapping):
        return Mapping
    return kind if issubclass(kind, tuple) and kind is not tuple else Sequence


def _emptied(value: Any) -> MutableMapping[Any, Any] | None:
    """A copy of a mapping without what is in it; None for other containers, and dataclasses."""
    if not isinstance(value, MutableMapping) or dataclasses.is_dataclass(value):
        return None
    made = copy.copy(value)
    made.clear()
    return made


def _made_dataclass(kind: type[Any], items: Mapping[Any, Any]) -> Any:
    """An object with these fields, or an immutable mapping of these items."""
    if not dataclasses.is_dataclass(kind):
        return kind(items)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    made = kind(**{name: item for name, item in items.items() if fields[name].init})
    for name, item in items.items():
        if not fields[name].init:
            object.__setattr__(made, name, item)
    return made


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def is_constant(value: Any) -> bool:
    """Whether a value is None, a number, a text, a flag or the like, which a graph has built in."""
    import torch

    kinds = (torch.dtype, torch.device, torch.layout, torch.memory_format)
    return value is None or isinstance(value, (*_CONSTANTS, *kinds))


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other) or not is_constant(one):
        return False
    return bool(one == other or (one != one and other != other))  # NaN


def _shown(value: Any) -> str:
    text = repr(value) if is_constant(value) else f"a {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
