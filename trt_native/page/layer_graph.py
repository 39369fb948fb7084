"""The graph of a plan's layers or kernels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from trt_native.page.graph import Graph, Node, Tensor, shape_text
from trt_native.page.modules import module_path
from trt_native.plans.engine_layers import Layer, LayerTensor

__all__ = ["layer_graph", "layers_of_nodes"]


def layer_graph(
    layers: Sequence[Layer],
    title: str,
    *,
    times: Mapping[str, float] | None = None,
    mark: Callable[[Layer], str] = lambda _: "",
) -> Graph:
    """Connect layers by the names of their tensors.

    Args:
        layers: In the order in which they run.
        title: Name of the graph.
        times: Milliseconds by the name of a layer. Where several have one name, each has its part.
        mark: What is special about a layer; empty for nothing.
    """
    tensors: list[Tensor] = []
    current: dict[str, int] = {}

    def number(tensor: LayerTensor) -> int:
        current[tensor.name] = len(tensors)
        tensors.append(Tensor(tensor.name, tensor.precision, _shape_text(tensor)))
        return current[tensor.name]

    names = Counter(layer.name for layer in layers)
    several = any(layer.profile for layer in layers)
    produced: set[int] = set()
    used: set[int] = set()
    nodes = []
    for layer in layers:
        reads = [current[t.name] if t.name in current else number(t) for t in layer.inputs]
        writes = [number(tensor) for tensor in layer.outputs]
        produced.update(writes)
        used.update(reads)
        time = (times or {}).get(layer.name)
        nodes.append(
            Node(
                name=layer.name,
                kind=layer.kind or "layer",
                path=((f"profile {layer.profile}",) if several else ()) + _path(layer),
                inputs=tuple(dict.fromkeys(reads)),
                outputs=tuple(writes),
                attributes=_attributes(layer),
                precision="" if layer.precision == "unknown" else layer.precision,
                milliseconds=None if time is None else time / names[layer.name],
                mark=mark(layer),
            )
        )
    inputs = tuple(sorted(used - produced))
    outputs = tuple(sorted(produced - used))
    return Graph(title, tuple(nodes), tuple(tensors), inputs, outputs)


def _path(layer: Layer) -> tuple[str, ...]:
    """The innermost module that most nodes in a layer are in."""
    names = layer.nodes or (layer.name.partition(" + ")[0],)
    paths = [module_path(name) for name in names if "/" in name]
    path: tuple[str, ...] = ()
    while True:
        inside = Counter(
            p[len(path)] for p in paths if len(p) > len(path) and p[: len(path)] == path
        )
        name, count = inside.most_common(1)[0] if inside else ("", 0)
        if 2 * count <= len(paths):
            return path
        path = (*path, name)


def _attributes(layer: Layer) -> tuple[tuple[str, str], ...]:
    found = [("kernel", layer.tactic)] if layer.tactic else []
    return (*found, *(("computes", name) for name in layer.nodes))


def _shape_text(tensor: LayerTensor) -> str:
    if tensor.shape is None:
        return ""
    return shape_text(tensor.shape)


def layers_of_nodes(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """The layers that each ONNX node is computed in, by the node's name."""
    found: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        for name in layer.nodes:
            found[name].append(layer)
    return dict(found)
