"""Write operators that the backend's parser refuses out by ONNX's own function bodies.

ONNX defines some operators by others. Where the parser refuses a node of such an operator, the
node becomes the nodes of its definition, with constants and static shapes folded; so do those of
them that the parser refuses in turn. A node stays as it is where a part of its definition has no
form that the parser takes.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from trt_native.backends.base import Backend
from trt_native.backends.parser_support import is_used, one_node_model, refused_nodes
from trt_native.graph.folding import fold_constants
from trt_native.graph.inference import infer_around, infer_values
from trt_native.graph.nodes import FLOAT, all_nodes, constant_of, input_of, is_fp32, opset_of
from trt_native.graph.opset import means_the_same
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass, PassContext, count_text
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder
from trt_native.passes.split_fp32_products import hides_products
from trt_native.schemas import schema_of

__all__ = ["LowerFunctions", "written_out"]

_SOFTMAX_INSIDE = ("Attention", "FlexAttention")  # its sums are kept in FP32
_MASK = 3  # the place of an attention's mask
_BIAS, _MASKED_ROWS = "AttnBiasT", "RowAllMasked"  # as the definition of Attention calls them
_WINDOWS = ("left_window_size", "right_window_size")
_LENGTHS = 6  # the place of nonpad_kv_seqlen, which the parser ignores
_MOST_ROUNDS = 8  # bodies inside bodies
_BODIES: dict[tuple[str, str, bytes], bytes | None] = {}


class LowerFunctions(GraphPass):
    """The function body of operators that the parser refuses."""

    name = "lower_functions"
    title = "Writing out operators that TensorRT lacks"
    early = True  # the precision is chosen for what is computed in the end

    def needed(self, model: ir.Model) -> bool:
        """Whether the parser refuses a node, in bodies too, that can be written out."""
        return bool(self._found(model))

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Write the nodes out, or leave out outputs of theirs that nothing reads."""
        found = self._found(model)
        names, opset = NameAuthority(model), opset_of(model)
        for node, body in found.items():
            if body is None:
                _drop_unused_outputs(node)
                continue
            replace_by_model(ReplacementBuilder(node, names, opset), body)
            for domain, version in body.opset_imports.items():
                model.opset_imports.setdefault(domain, version)
        return _record(found)

    def preview(self, model: ir.Model) -> Mapping[str, Any]:
        """Counts of the nodes to write out."""
        return _record(self._found(model))

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The operators that were written out."""
        parts = {
            "written out by ONNX's own definition": record["nodes"],
            "without outputs that nothing reads": record.get("fewer_outputs", {}),
        }
        return "\n".join(f"{text}: {count_text(nodes)}" for text, nodes in parts.items() if nodes)

    def _found(self, model: ir.Model) -> dict[ir.Node, ir.Model | None]:
        """What to write nodes as; None for one that only has an output too many."""
        backend, opsets = self.context.backend, model.opset_imports
        if backend is None:
            return {}
        nodes = [
            node
            for node in all_nodes(model.graph)
            if _has_body(node, opsets) or _unused_outputs(node, opsets)
        ]
        infer_around(model, nodes)
        refused = refused_nodes(nodes, opsets, backend)
        spare = [node for node in refused if _unused_outputs(node, opsets)]
        too_many = set(spare) - refused_nodes(spare, opsets, backend, used_only=True).keys()
        found = {
            node: written_out(node, opsets, backend)
            for node in nodes
            if node not in too_many and (node in refused or _is_parsed_wrong(node, self.context))
        }
        return dict.fromkeys(too_many) | {
            node: body for node, body in found.items() if body is not None
        }


def _record(found: Mapping[ir.Node, ir.Model | None]) -> dict[str, Any]:
    written = Counter(node.op_type for node, body in found.items() if body is not None)
    fewer = Counter(node.op_type for node, body in found.items() if body is None)
    return {"nodes": dict(written), **({"fewer_outputs": dict(fewer)} if fewer else {})}


def _unused_outputs(node: ir.Node, opsets: Mapping[str, int]) -> list[ir.Value]:
    """The optional outputs of a node that nothing reads."""
    if len(node.outputs) < 2 or node.domain:
        return []
    schema = schema_of(node.op_type, opsets.get("", 1))
    given = () if schema is None else zip(node.outputs, schema.outputs, strict=False)
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return [
        value
        for value, parameter in given
        if parameter.option == optional and value.name and not is_used(value)
    ]


def _drop_unused_outputs(node: ir.Node) -> None:
    for value in node.outputs:
        if not is_used(value):
            value.name = ""
    while len(node.outputs) > 1 and not node.outputs[-1].name:
        node.resize_outputs(len(node.outputs) - 1)


def _is_parsed_wrong(node: ir.Node, context: PassContext) -> bool:
    """Whether the parser takes a node, and what it makes of it does not build, or differs."""
    if node.op_type != "Attention" or node.domain or context.backend is None:
        return False
    if not context.backend.capabilities.attention_layer or input_of(node, _LENGTHS) is not None:
        return True
    if _has_window(node) or _may_hide_all_keys(input_of(node, _MASK)):
        return True
    # The products of the layer cannot be split, and no fused kernel computes in FP32.
    return is_fp32(input_of(node, 0)) and hides_products(context)


def _has_window(node: ir.Node) -> bool:
    """Whether each query sees some keys beside it only, which the layer does not know."""
    return any(node.attributes.get_int(side, -1) >= 0 for side in _WINDOWS)


def _may_hide_all_keys(mask: ir.Value | None) -> bool:
    """Whether a query may see no key: ONNX's result is 0 then, and the layer's is not a number."""
    if mask is None:
        return False
    known = constant_of(mask)
    if known is None:
        return True
    array = known.numpy()
    seen = array if array.dtype == bool else array.astype(np.float32) > -np.inf
    return not seen.any(axis=-1).all()


def _has_body(node: ir.Node, opsets: Mapping[str, int]) -> bool:
    return node.domain in opsets and bool(_schema(node.op_type, opsets[node.domain], node.domain))


@functools.lru_cache(maxsize=1024)
def _schema(op_type: str, opset: int, domain: str) -> Any:  # without types for its bodies
    """The schema of an operator that ONNX defines by others; None for all else."""
    try:
        schema: Any = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    return schema if schema.has_function or schema.has_context_dependent_function else None


@wraps_graph_errors
def written_out(node: ir.Node, opsets: Mapping[str, int], backend: Backend) -> ir.Model | None:
    """Write a node out until the parser takes all of it.

    Args:
        node: The node, with types and shapes.
        opsets: Version by domain.
        backend: The TensorRT to ask.

    Returns:
        A model of the nodes, whose inputs, or initializers in their place, are called ``i0`` and
        so on after the node's inputs, and its outputs ``o0``. None where it cannot be.
    """
    question = one_node_model(node, opsets, exact=True)
    if question is None:
        return None
    key = (backend.name, backend.version, question.model.SerializeToString(deterministic=True))
    if key not in _BODIES:
        _BODIES[key] = _written_out(question.model, backend)
    content = _BODIES[key]
    return None if content is None else ir.from_proto(onnx.load_model_from_string(content))


def _written_out(proto: onnx.ModelProto, backend: Backend) -> bytes | None:
    model = ir.from_proto(proto)
    pending = list(model.graph)
    for _ in range(_MOST_ROUNDS):
        if not pending:
            break
        if not expand(model, pending):
            return None
        pending = list(refused_nodes(all_nodes(model.graph), model.opset_imports, backend))
    written = ir.to_proto(model).SerializeToString()
    return None if pending or backend.parser_refusals([written]) != [""] else written


def expand(model: ir.Model, nodes: list[ir.Node]) -> bool:
    """Put the function bodies of nodes in their places, and fold; False where one has none."""
    for number, node in enumerate(nodes):
        function = _function(node, model.opset_imports)
        if function is None:
            return False
        node.overload = function.overload = f"body{number}"
        for index, value in enumerate(node.outputs):
            value.name = value.name or f"unused{number}_{index}"  # what is inlined takes the name
        for name, attribute in tuple(node.attributes.items()):
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                del node.attributes[name]  # the body has it already
        model.functions[function.identifier()] = function
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    fold_constants(model)
    _type_scans(model)
    infer_values(model)
    return True


def _type_scans(model: ir.Model) -> None:
    """Give scans' bodies what ONNX infers the rest from: types of inputs, and constants."""
    for node in model.graph:
        if node.op_type != "Scan" or node.domain:
            continue
        states = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
        inputs = zip(node.inputs, node.attributes["body"].as_graph().inputs, strict=True)
        for index, (outer, inner) in enumerate(inputs):
            if outer is not None and outer.shape is not None:
                inner.type = outer.type
                inner.shape = ir.Shape(outer.shape[1:] if index >= states else outer.shape)
        _copy_constants(model, node.attributes["body"].as_graph())


def _copy_constants(model: ir.Model, body: ir.Graph) -> None:
    """Make nodes inside a body of the constants that it reads from outside."""
    for name, value in tuple(model.graph.initializers.items()):
        users = [(user, place) for user, place in value.uses() if user.graph is body]
        if users and value.const_value is not None:
            inside = ir.Value(name=f"{name}__inside", type=value.type, shape=value.shape)
            constant = ir.node("Constant", [], {"value": value.const_value}, outputs=[inside])
            body.insert_before(body[0], constant)
            for user, place in users:
                user.replace_input_with(place, inside)


def _function(node: ir.Node, opsets: Mapping[str, int]) -> ir.Function | None:
    """The body of a node, in the opset of the model."""
    schema = _schema(node.op_type, opsets.get(node.domain, 0), node.domain)
    if schema is None:
        return None
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.name:
            default = ir.serde.deserialize_attribute(attribute.default_value)
            node.attributes[name] = default
    if node.op_type in _SOFTMAX_INSIDE and "softmax_precision" not in node.attributes:
        node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", FLOAT)
    proto = _body(schema, node, opsets)
    if proto is None:
        return None
    for imported in proto.opset_import:
        wanted = opsets.get(imported.domain, imported.version)
        if imported.version != wanted and not _fits(proto, imported, wanted):
            return None
        imported.version = wanted
    _match_outputs(proto, len(node.outputs))
    if node.op_type == "Attention" and not _is_masked(node):
        _leave_out_mask(proto)
    return ir.serde.deserialize_function(proto)


def _is_masked(node: ir.Node) -> bool:
    given = any(input_of(node, index) is not None for index in (_MASK, _LENGTHS))
    return given or _has_window(node) or bool(node.attributes.get_int("is_causal", 0))


def _leave_out_mask(proto: onnx.FunctionProto) -> None:
    """Let the body of an attention without a mask add no zeros, and select no rows."""
    for node in proto.node:
        added = [name for name in node.input if name != _BIAS]
        if node.op_type == "Add" and len(added) == 1:
            node.CopyFrom(onnx.helper.make_node("Identity", added, node.output))
        elif node.op_type == "Where" and node.input[0] == _MASKED_ROWS:
            node.CopyFrom(onnx.helper.make_node("Identity", [node.input[2]], node.output))


def _match_outputs(proto: onnx.FunctionProto, count: int) -> None:
    """Leave a body the outputs of a call; one that it lacks is not asked for, and gets a value."""
    del proto.output[count:]
    computed = {name for node in proto.node for name in node.output} | set(proto.input)
    lacking = [name for name in proto.output if name not in computed]
    proto.node.extend(
        onnx.helper.make_node("Constant", [], [name], value_int=0) for name in lacking
    )


def _body(schema: Any, node: ir.Node, opsets: Mapping[str, int]) -> onnx.FunctionProto | None:
    proto = onnx.FunctionProto()
    most = opsets.get("", 0) if node.domain else opsets[node.domain]
    if schema.has_context_dependent_function:
        versions = schema.context_dependent_function_opset_versions
        version = max((v for v in versions if v <= most), default=versions[0])
        types = [
            onnx.TypeProto() if value is None else ir.serde.serialize_value(value).type
            for value in node.inputs
        ]
        content = schema.get_context_dependent_function_with_opset_version(
            version,
            ir.serde.serialize_node(node).SerializeToString(),
            [one.SerializeToString() for one in types],
        )
    else:
        versions = schema.function_opset_versions
        version = max((v for v in versions if v <= most), default=versions[0])
        content = schema.get_function_with_opset_version(version)
    if not content:
        return None
    proto.ParseFromString(content if isinstance(content, bytes) else content.SerializeToString())
    return proto


def _fits(proto: onnx.FunctionProto, imported: onnx.OperatorSetIdProto, wanted: int) -> bool:
    """Whether a body means the same in another opset."""
    nodes = all_nodes(ir.serde.deserialize_function(proto))
    return not imported.domain and all(
        bool(node.domain) or means_the_same(node.op_type, imported.version, wanted)
        for node in nodes
    )


def replace_by_model(new: ReplacementBuilder, body: ir.Model) -> None:
    """Replace a node by the nodes of a model that :func:`written_out` made."""
    node = new.node
    inputs = {f"i{index}": value for index, value in enumerate(node.inputs) if value is not None}
    named = [value.name for value in body.graph.outputs]
    made = dict(zip(named, new.adopt(body, inputs), strict=True))
    outputs: list[ir.Value | None] = []
    for index, old in enumerate(node.outputs):
        value = made.get(f"o{index}")
        if value is not None and (value.producer() is None or value in inputs.values()):
            value = new.add("Identity", [value], old.dtype)
        outputs.append(value)
    new.replace(*outputs)
