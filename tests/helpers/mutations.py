"""Broken and hostile files, made from good ones: the same ones in every run."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct

from trt_native.errors import TrtNativeError


def attempt(call, *arguments, kind=TrtNativeError):
    """What a call returns and None; or None and the error, which must be of this kind."""
    try:
        return call(*arguments), None
    except kind as error:
        return None, error


# Bytes

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF)


def truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def shortened(rng: random.Random, data: bytes) -> bytes:
    """As a copy that ended early: a few bytes are lacking."""
    return data[: -rng.randint(1, min(64, len(data)))]


def bits_flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def header_flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(min(64, len(data)))] = rng.choice((*EDGES, rng.randrange(256)))
    return bytes(changed)


def zeroed(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    length = rng.randint(1, len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def noise(rng: random.Random, data: bytes) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 3, 31, 32, 33, 1000)))


def extended(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.choice((1, 7, 4096)))


def cut_out(rng: random.Random, data: bytes) -> bytes:
    start, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:start] + data[end:]


def repeated(rng: random.Random, data: bytes) -> bytes:
    start, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:end] + data[start:]


def spliced(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The start of one file, then the rest of another."""
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def header_swapped(rng: random.Random, data: bytes, other: bytes) -> bytes:
    length = rng.choice((4, 24, 28, 32, 64))
    return other[:length] + data[length:]


BYTES = (
    truncated, shortened, bits_flipped, header_flipped, zeroed, noise, extended, cut_out, repeated,
)  # fmt: skip
SPLICES = (spliced, header_swapped)


def lengths_absurd(rng: random.Random, data: bytes) -> bytes:
    """Eight bytes of the header become a number that no file has as its length."""
    offset = rng.choice((8, 16, 24, 32))
    number = rng.choice((0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1))
    return data[:offset] + struct.pack("<Q", number) + data[offset + 8 :]


# JSON

HOSTILE_VALUES = (
    None, True, False, 0, -1, -2, 2**31, 2**63, 10**400, 1.5, 1e308, "", "x", "-1", "..", "/", "\0",
    "../../../etc/passwd", "/etc/passwd", "$(id)", "'; id; '", "a\nb", "\x1b[2J", "9" * 5000,
    "\ud800", "\N{GREEK SMALL LETTER OMEGA}", "1:2:4", "4:2:1", "1x3x8x8:4x3x8x8", "-1x2",
    [], [[]], {}, {"": ""}, [None], [{}], [-1, -1], ["x"] * 3, {"file": "../x"},
)  # fmt: skip


def json_edited(rng: random.Random, document: object) -> bytes:
    """One to three values of a JSON document removed, doubled or replaced."""
    edited = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(edited))
        if not places:
            break
        holder, key = rng.choice(places)
        action = rng.randrange(8)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif action == 2 and isinstance(holder, dict):
            holder[rng.choice(("", "__class__", "x" * 300, "\x1b[31m"))] = holder.pop(key)
        elif action == 3:
            holder[key] = copy.deepcopy(rng.choice(places)[0])
        else:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE_VALUES))
    return json.dumps(edited).encode()


def json_broken(rng: random.Random, document: object) -> bytes:
    """Text that is JSON only nearly, or far too deep."""
    text = json.dumps(document).encode()
    return rng.choice(
        (
            b"", b"null", b"[]", b"{}", b"1", b'"x"', b"\xff\xfe{}", b"\xef\xbb\xbf" + text,
            b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"[1e999, NaN, -Infinity]",
            text[: rng.randrange(len(text))], text + text, text.replace(b",", b"", 1),
            text.replace(b'"', b"'"), b"\0" * 100, text.decode().encode("utf-16"),
        )
    )  # fmt: skip


def _places(node: object):
    """Every container and key in a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


# ONNX, with its structure kept

_TYPES = tuple(range(30))


def onnx_edited(rng: random.Random, data: bytes) -> bytes:
    """One or two hostile changes of a model that still is a protobuf message."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2))):
        with contextlib.suppress(IndexError):  # the first edit took away what this would change
            rng.choice(EDITS)(rng, model)
    return model.SerializeToString()


def _graph(rng, model):
    """The main graph, a subgraph, or the body of a function."""
    graphs, waiting = [], [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        graphs.append(graph)
        for node in graph.node:
            waiting += [item.g for item in node.attribute if item.HasField("g")]
    return model.graph if rng.random() < 0.5 else rng.choice(graphs)


def _node(rng, model):
    graph = _graph(rng, model)
    return rng.choice(graph.node) if graph.node else model.graph.node.add(op_type="Relu")


def _axes(rng, model):
    """The shape of an input, of an output or of a value."""
    graph = model.graph
    value = rng.choice([*graph.input, *graph.output, *graph.value_info])
    return value.type.tensor_type.shape


def _weight(rng, model):
    weights = list(model.graph.initializer)
    for node in model.graph.node:
        weights += [item.t for item in node.attribute if item.HasField("t")]
    return rng.choice(weights) if weights else model.graph.initializer.add(name="w", data_type=1)


def wrong_extent(rng, model):
    axes = _axes(rng, model)
    axis = rng.choice(axes.dim) if axes.dim else axes.dim.add()
    axis.dim_value = rng.choice((-1, -(2**63), 0, 1, 7, 2**31, 2**40, 2**62, 2**63 - 1))


def symbolic_extent(rng, model):
    axes = _axes(rng, model)
    axis = rng.choice(axes.dim) if axes.dim else axes.dim.add()
    axis.dim_param = rng.choice(
        (
            "",
            "n",
            "n*n",
            "n//0",
            "9**9**9**9",
            "n**99999999",
            "(" * 2000,
            "a b",
            "\x1b[2J",
            "-1",
            "=",
        )
    )


def wrong_rank(rng, model):
    axes = _axes(rng, model)
    if axes.dim and rng.random() < 0.5:
        del axes.dim[rng.randrange(len(axes.dim)) :]
    else:
        axes.dim.extend([type(axes.dim.add())(dim_value=1)] * rng.choice((1, 9, 300)))


def no_shape(rng, model):
    value = rng.choice([*model.graph.input, *model.graph.output])
    if rng.random() < 0.3:
        value.ClearField("type")
    else:
        value.type.tensor_type.ClearField("shape")


def wrong_type(rng, model):
    value = rng.choice([*model.graph.input, *model.graph.output])
    value.type.tensor_type.elem_type = rng.choice((*_TYPES, 255, 2**31 - 1, -1))


def not_a_tensor(rng, model):
    value = rng.choice([*model.graph.input, *model.graph.output])
    inner = rng.choice((value.type.sequence_type.elem_type, value.type.optional_type.elem_type))
    inner.tensor_type.elem_type = 1


def weight_of_other_shape(rng, model):
    weight = _weight(rng, model)
    dims = rng.choice(([], [0], [-1], [2**62], [2**31, 2**31, 2**31], [1] * 300, [7, 7]))
    del weight.dims[:]
    weight.dims.extend(dims)


def weight_of_other_type(rng, model):
    _weight(rng, model).data_type = rng.choice((*_TYPES, 99, -1))


def weight_cut(rng, model):
    weight = _weight(rng, model)
    weight.raw_data = weight.raw_data[: rng.randrange(len(weight.raw_data) + 1)]


def weight_said_twice(rng, model):
    weight = _weight(rng, model)
    if rng.random() < 0.5:
        weight.float_data.extend([1, 2, 3])
    else:
        weight.int32_data.extend([1, 2, 3])
    if rng.random() < 0.3:
        weight.string_data.append(b"\xff")


def weight_elsewhere(rng, model):
    weight = _weight(rng, model)
    weight.data_location = weight.EXTERNAL
    weight.ClearField("raw_data")
    location = rng.choice(
        ("", ".", "..", "../secret", "/etc/passwd", "/dev/zero", "none", "w" * 300, "a\0b",
         "weights.bin", "link", "fifo", "\x1b[2J")
    )  # fmt: skip
    offset = rng.choice(("0", "-1", "4", "x", "9" * 30, str(2**62), ""))
    length = rng.choice(("0", "-1", "4", "x", "9" * 30, str(2**62), ""))
    del weight.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value or rng.random() < 0.2:
            weight.external_data.add(key=key, value=value)


def weight_gone(rng, model):
    if model.graph.initializer:
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


def weight_doubled(rng, model):
    model.graph.initializer.add().CopyFrom(_weight(rng, model))


def weight_sparse(rng, model):
    weight = _weight(rng, model)
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(weight)
    sparse.dims.extend(weight.dims)


def node_gone(rng, model):
    graph = _graph(rng, model)
    if graph.node:
        del graph.node[rng.randrange(len(graph.node))]


def node_doubled(rng, model):
    graph = _graph(rng, model)
    if graph.node:
        graph.node.add().CopyFrom(rng.choice(graph.node))


def nodes_shuffled(rng, model):
    graph = _graph(rng, model)
    nodes = [type(node).FromString(node.SerializeToString()) for node in graph.node]
    rng.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


def cycle(rng, model):
    graph = _graph(rng, model)
    first, last = graph.node[0] if graph.node else None, graph.node[-1] if graph.node else None
    if first is not None and first.input and last.output:
        first.input[0] = last.output[0]


def wire_cut(rng, model):
    node = _node(rng, model)
    names = node.input if rng.random() < 0.5 else node.output
    name = rng.choice(("", "dangling", "x", "y", "\x1b[2J", "n" * 5000))
    if names and rng.random() < 0.7:
        names[rng.randrange(len(names))] = name
    else:
        names.append(name)


def wires_gone(rng, model):
    node = _node(rng, model)
    del rng.choice((node.input, node.output))[:]


def other_operator(rng, model):
    node = _node(rng, model)
    node.op_type = rng.choice(
        ("", "Nonsense", "Conv", "MatMul", "Gemm", "Reshape", "If", "Loop", "Scan", "Softmax",
         "Resize", "Constant", "QuantizeLinear", "DequantizeLinear", "Einsum", "Cast")
    )  # fmt: skip


def other_domain(rng, model):
    _node(rng, model).domain = rng.choice(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "no.such"))


def same_names(rng, model):
    for node in model.graph.node:
        node.name = rng.choice(("", "same", "\x1b[2J", "n" * 5000))


def attribute_gone(rng, model):
    node = _node(rng, model)
    if node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]


def attribute_of_other_type(rng, model):
    node = _node(rng, model)
    attribute = rng.choice(node.attribute) if node.attribute else node.attribute.add(name="axis")
    attribute.type = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))


def attribute_absurd(rng, model):
    node = _node(rng, model)
    name = rng.choice(
        ("axis", "pads", "strides", "group", "to", "transB", "equation", "body", "value")
    )
    for position, known in enumerate(node.attribute):
        if known.name == name:
            del node.attribute[position]
            break
    attribute = node.attribute.add(name=name)
    number = rng.choice((-1, 0, 2**31, 2**63 - 1, -(2**63)))
    if rng.random() < 0.5:
        attribute.type, attribute.i = attribute.INT, number
    else:
        attribute.type = attribute.INTS
        attribute.ints.extend([number] * rng.choice((0, 1, 4, 300)))


def absurd_opset(rng, model):
    if rng.random() < 0.2:
        del model.opset_import[:]
    for opset in model.opset_import:
        opset.version = rng.choice((0, -1, 1, 6, 99, 2**40))
    if rng.random() < 0.3:
        model.opset_import.add(domain="", version=rng.choice((1, 13, 18, 99)))


def absurd_ir_version(rng, model):
    model.ir_version = rng.choice((0, -1, 1, 2, 3, 99, 2**62))


def ends_gone(rng, model):
    del rng.choice((model.graph.input, model.graph.output))[:]


def ends_doubled(rng, model):
    values = rng.choice((model.graph.input, model.graph.output))
    if values:
        values.add().CopyFrom(rng.choice(values))


def ends_renamed(rng, model):
    values = rng.choice((model.graph.input, model.graph.output))
    if values:
        rng.choice(values).name = rng.choice(("", "dangling", "same", "\x1b[2J", "n" * 5000))


def function_of_itself(rng, model):
    """A function that calls itself, as no expansion of it ever ends."""
    from onnx import helper

    name, domain = "Self", "my"
    node = helper.make_node(name, ["a"], ["b"], domain=domain)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    model.functions.append(helper.make_function(domain, name, ["a"], ["b"], [node], opsets))
    target = _node(rng, model)
    target.op_type, target.domain = name, domain
    model.opset_import.append(helper.make_opsetid(domain, 1))


def metadata_absurd(rng, model):
    for key in ("", "\x1b[2J", "same", "same"):
        model.metadata_props.add(key=key, value="v" * 10_000)
    model.producer_name = "\x1b]0;title\x07[bold]"


EDITS = (
    wrong_extent, symbolic_extent, wrong_rank, no_shape, wrong_type, not_a_tensor,
    weight_of_other_shape, weight_of_other_type, weight_cut, weight_said_twice, weight_elsewhere,
    weight_gone, weight_doubled, weight_sparse, node_gone, node_doubled, nodes_shuffled, cycle,
    wire_cut, wires_gone, other_operator, other_domain, same_names, attribute_gone,
    attribute_of_other_type, attribute_absurd, absurd_opset, absurd_ir_version, ends_gone,
    ends_doubled, ends_renamed, function_of_itself, metadata_absurd,
)  # fmt: skip
