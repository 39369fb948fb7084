"""Models made of some of the nodes of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

__all__ = ["Subject", "bodies", "reads"]


@dataclass(frozen=True)
class Subject:
    """A model, and what is known of the values between its nodes.

    Nodes are numbered in their order, but for ``Constant`` nodes, which go with what reads them.

    Attributes:
        model: The model; weights may be external.
        types: Types and shapes of values, by name, as far as they are known.
        constants: Values that are known although nodes compute them, such as shapes, by name.
    """

    model: onnx.ModelProto
    types: Mapping[str, onnx.TypeProto]
    constants: Mapping[str, onnx.TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        nodes = [node for node in graph.node if not _is_constant(node)]
        made = {name: index for index, node in enumerate(nodes) for name in node.output if name}
        readers: dict[str, list[int]] = {}
        for index, node in enumerate(nodes):
            for name in reads(node):
                readers.setdefault(name, []).append(index)
        set_once = object.__setattr__
        set_once(self, "nodes", nodes)
        set_once(self, "_made", made)
        set_once(self, "_readers", readers)
        set_once(self, "_fixed", {n.output[0]: n for n in graph.node if _is_constant(n)})
        set_once(self, "_weights", {tensor.name: tensor for tensor in graph.initializer})
        set_once(self, "_inputs", {value.name: value for value in graph.input})
        set_once(self, "_outputs", {value.name: value for value in graph.output})

    nodes: Sequence[onnx.NodeProto] = field(init=False, repr=False)
    _made: Mapping[str, int] = field(init=False, repr=False)
    _readers: Mapping[str, list[int]] = field(init=False, repr=False)
    _fixed: Mapping[str, onnx.NodeProto] = field(init=False, repr=False)
    _weights: Mapping[str, onnx.TensorProto] = field(init=False, repr=False)
    _inputs: Mapping[str, onnx.ValueInfoProto] = field(init=False, repr=False)
    _outputs: Mapping[str, onnx.ValueInfoProto] = field(init=False, repr=False)

    def __len__(self) -> int:
        return len(self.nodes)

    def neighbours(self) -> list[set[int]]:
        """For each node those that it exchanges a value with."""
        found: list[set[int]] = [set() for _ in self.nodes]
        for name, index in self._made.items():
            for reader in self._readers.get(name, ()):
                if reader != index:
                    found[index].add(reader)
                    found[reader].add(index)
        return found

    def suspicion(self) -> list[float]:
        """How rare each node is: by operator, attributes, what it reads from, and types.

        What is everywhere in a model is everywhere in others, and known to work. A node next to a
        rare one has half of its suspicion.
        """
        levels = list(zip(*map(self._signatures, self.nodes), strict=True))
        counts = [Counter(level) for level in levels]
        own = [
            sum(1 / count[signature] for count, signature in zip(counts, signatures, strict=True))
            for signatures in zip(*levels, strict=True)
        ]
        near = [max((own[i] for i in others), default=0.0) for others in self.neighbours()]
        return [one + other / 2 for one, other in zip(own, near, strict=True)]

    def novelty(self) -> list[float]:
        """How probable it is that a node is the first, in their order, with which a model fails.

        One that is like an earlier one has been there without a failure.
        """
        seen: set[tuple[object, ...]] = set()
        weights = []
        for node in self.nodes:
            signatures = tuple(self._signatures(node))
            weights.append(0.3 if signatures in seen else 1.0)
            seen.add(signatures)
        return weights

    def _signatures(self, node: onnx.NodeProto) -> Iterator[tuple[object, ...]]:
        attributes = b"".join(sorted(a.SerializeToString() for a in node.attribute))
        sources = (self._made.get(name) for name in node.input)
        types = tuple(self.types[n].SerializeToString() for n in node.input if n in self.types)
        operator = node.domain, node.op_type
        yield operator
        yield *operator, attributes
        yield *operator, *(self.nodes[i].op_type if i is not None else "" for i in sources)
        yield *operator, attributes, types

    def named_in(self, text: str) -> list[int]:
        """The nodes that a text names, by name or output; else the first of each operator in it."""
        words = _words(text)
        by_name = [
            index
            for index, node in enumerate(self.nodes)
            if {node.name, *node.output} & words - {""}
        ]
        if by_name:
            return by_name
        first = {node.op_type: index for index, node in reversed([*enumerate(self.nodes)])}
        return sorted(index for operator, index in first.items() if operator in words)

    def connectors(self) -> list[int]:
        """The nodes that can be bypassed, read what another one makes, and are read by another."""
        return [
            index
            for index, node in enumerate(self.nodes)
            if self.bypassable(index) in self._made
            and any(name in self._readers for name in node.output)
        ]

    def bypassable(self, index: int) -> str | None:
        """An input that may take the place of a node's only output, being of its type and shape."""
        node = self.nodes[index]
        if len(node.output) != 1 or node.output[0] not in self.types:
            return None
        made = self.types[node.output[0]]
        if not _is_static(made):
            return None
        return next(
            (n for n in node.input if n not in self._weights and self._type(n) == made), None
        )

    def cut(
        self,
        kept: Collection[int],
        *,
        bypassed: Collection[int] = (),
        all_outputs: bool = True,
    ) -> onnx.ModelProto | None:
        """The model of some of the nodes.

        Its inputs are what these read and no other of them makes. Its outputs are the model's that
        they make, and what they make for other nodes alone.

        Args:
            kept: Numbers of the nodes.
            bypassed: Numbers of others that are :meth:`bypassable`; their readers read their
                input.
            all_outputs: Keep outputs of the model that a kept node reads, too.

        Returns:
            The model; None where an input has no known type and rank, or there is no node.
        """
        nodes = self._kept_nodes(kept, bypassed)
        read = dict.fromkeys(name for node in nodes for name in reads(node))
        fixed = [self._fixed[name] for name in read if name in self._fixed]
        made = {name for node in (*nodes, *fixed) for name in node.output if name}
        free = [name for name in read if name not in made]
        inputs = self._input_infos([n for n in free if n not in self._weights])
        outputs = self._output_infos(nodes, set(read), all_outputs)
        if not nodes or inputs is None:
            return None
        model = onnx.ModelProto()
        model.CopyFrom(self._shell())
        graph = model.graph
        graph.node.extend([*fixed, *nodes])
        graph.input.extend(info for info in inputs if info.name not in self.constants)
        graph.output.extend(outputs)
        graph.initializer.extend(self._weights[n] for n in free if n in self._weights)
        graph.initializer.extend(self.constants[i.name] for i in inputs if i.name in self.constants)
        graph.value_info.extend(self._custom_infos(nodes, {o.name for o in outputs}))
        return model

    def restricted(self, model: onnx.ModelProto) -> Subject:
        """The subject of a model that was cut from this one."""
        return replace(self, model=model)

    def _shell(self) -> onnx.ModelProto:
        shell = onnx.ModelProto()
        for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version"):
            setattr(shell, name, getattr(self.model, name))
        shell.opset_import.extend(self.model.opset_import)
        shell.functions.extend(self.model.functions)
        shell.metadata_props.extend(self.model.metadata_props)
        shell.graph.name = self.model.graph.name or "graph"
        return shell

    def _kept_nodes(self, kept: Collection[int], bypassed: Collection[int]) -> list[onnx.NodeProto]:
        sources = {self.nodes[i].output[0]: self.bypassable(i) or "" for i in bypassed}
        for name in sources:
            while sources[name] in sources:
                sources[name] = sources[sources[name]]
        nodes = [self.nodes[index] for index in sorted(kept)]
        return [_renamed(node, sources) for node in nodes] if sources else nodes

    def _input_infos(self, names: Sequence[str]) -> list[onnx.ValueInfoProto] | None:
        """Inputs, those of the model first; None where the type of one is unknown."""
        ordered = [name for name in self._inputs if name in names]
        ordered += [name for name in names if name not in self._inputs]
        infos = []
        for name in ordered:
            known = self._type(name)
            if name in self._inputs:
                infos.append(self._inputs[name])
            elif known is None or not known.tensor_type.HasField("shape"):
                return None
            else:
                infos.append(onnx.ValueInfoProto(name=name, type=known))
        return infos

    def _output_infos(
        self, nodes: Sequence[onnx.NodeProto], read: set[str], all_outputs: bool
    ) -> list[onnx.ValueInfoProto]:
        names: list[str] = []
        for node in nodes:
            own = [name for name in node.output if name]
            used = [n for n in own if n not in read and (n in self._readers or n in self._outputs)]
            if all_outputs:
                used += [n for n in own if n in read and n in self._outputs]
            if not used and own and not any(name in read for name in own):
                used = own[:1]
            names += used
        ordered = [name for name in self._outputs if name in names]
        ordered += [name for name in names if name not in self._outputs]
        return [self._outputs.get(n) or self._info(n) for n in ordered]

    def _info(self, name: str) -> onnx.ValueInfoProto:
        return onnx.ValueInfoProto(name=name, type=self._type(name))

    def _type(self, name: str) -> onnx.TypeProto | None:
        if name in self._inputs:
            return self._inputs[name].type
        return self.types.get(name)

    def _custom_infos(
        self, nodes: Sequence[onnx.NodeProto], outputs: set[str]
    ) -> Iterator[onnx.ValueInfoProto]:
        """What the file says of values that ONNX cannot infer."""
        for node in nodes:
            for name in node.output if node.domain not in ("", "ai.onnx") else ():
                if name in self.types and name not in outputs:
                    yield self._info(name)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs directly inside a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads, those that its bodies read from around it too."""
    found = dict.fromkeys(name for name in node.input if name)
    for body in bodies(node):
        own = {value.name for value in (*body.input, *body.initializer)}
        own |= {name for inner in body.node for name in inner.output}
        names = [name for inner in body.node for name in reads(inner)]
        names += [value.name for value in body.output]
        found.update(dict.fromkeys(name for name in names if name not in own))
    return list(found)


def _is_constant(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def _is_static(kind: onnx.TypeProto) -> bool:
    tensor = kind.tensor_type
    return tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A node that reads other values in the place of these, in its bodies, too."""
    if not any(name in names for name in reads(node)):
        return node
    new = onnx.NodeProto()
    new.CopyFrom(node)
    _rename(new, names)
    return new


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    for body in bodies(node):
        own = {v.name for v in (*body.input, *body.initializer)}
        own |= {name for inner in body.node for name in inner.output}
        inside = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            _rename(inner, inside)
        for value in body.output:
            value.name = inside.get(value.name, value.name)


def _words(text: str) -> set[str]:
    """The words of a text, with and without the signs around them."""
    words = set(text.split())
    return words | {word.strip("'\"`.,:;()[]{}<>") for word in words}
