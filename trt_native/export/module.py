"""PyTorch modules to ONNX files that TensorRT builds well, with dimensions that have names.

The work is done by ``torch.export`` and the ONNX translation that comes with torch. What is added
here: names for dynamic dimensions (also products of them), a check that they really are dynamic,
a tidy graph, and files that are written whole or not at all.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from trt_native._version import __version__
from trt_native.errors import USER_CODE_ERRORS, ExportError, SpecError, UnsupportedError
from trt_native.export.assumptions import (
    check_assumptions,
    multiple_of,
    place_that_fixes,
    plain_output,
    resized,
)
from trt_native.export.second_extent import check_graph_at
from trt_native.export.structure import CallStructure
from trt_native.export.weight_names import WeightNames, count_uses, weight_names
from trt_native.files import check_writable
from trt_native.graph.onnx_file import save_model, tensor_specs
from trt_native.installing import install_command
from trt_native.progress import Progress, phase
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.shapes import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

__all__ = [
    "BFLOAT16_OPSET",
    "DEFAULT_OPSET",
    "ExportReport",
    "check_opset",
    "eager_module",
    "evaluating",
    "export_module",
    "require_torch",
    "writing",
]

DEFAULT_OPSET = 18
"""Opset that torch's translation writes without converting; every supported TensorRT reads it."""

BFLOAT16_OPSET = 22
"""The default for modules in BF16, which convolutions take from here on."""

_OLDEST_OPSET = 7  # older ones TensorRT's parser does not read
_NOISY_LOGGERS = ("torch", "torch.export", "torch.onnx", "torch._dynamo", "onnxscript", "onnx_ir")
_MOST_TRACED = 1 << 28  # elements of the inputs, which a trace does not compute with
_INNER = "_trt_native_inner"  # the module inside one that was made flat
_SYMBOL = re.compile(r"\b[su]\d+\b")

_logger = logging.getLogger(__name__)
_Axes = Mapping[int, Any] | list[Any] | tuple[Any, ...]
_Dynamic = Mapping[str, _Axes]
_NamedAxes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Record of an export.

    Attributes:
        path: The ONNX file.
        external_data: The file with its weights next to it; None if they are inside.
        opset: Version of the ONNX operator set.
        inputs: The model's inputs, dynamic axes as the text of their dimension.
        outputs: Its outputs.
        parameters: Number of elements in the module's parameters.
        total_bytes: Size of all files written.
        seconds: Duration of the export.
        weights: For each entry of the module's state dict the weights of the model that it is, as
            far as the export was for replacing them.
    """

    path: Path
    external_data: Path | None
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    total_bytes: int
    seconds: float
    weights: WeightNames = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: ir.Model,
        parameters: int,
        path: Path,
        external_data: Path | None,
        total_bytes: int,
        started: float,
    ) -> ExportReport:
        """Report a model that was written; ``started`` is by ``time.perf_counter``."""
        inputs, outputs = tensor_specs(model)
        return cls(
            path=path,
            external_data=external_data,
            opset=model.opset_imports[""],
            inputs=inputs,
            outputs=outputs,
            parameters=parameters,
            total_bytes=total_bytes,
            seconds=time.perf_counter() - started,
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it, without the names of the weights."""
        external = str(self.external_data) if self.external_data else None
        found = {**dataclasses.asdict(self), "path": str(self.path), "external_data": external}
        del found["weights"]
        return found


@shows_progress
def export_module(
    module: nn.Module,
    inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    path: str | Path,
    dynamic: _Dynamic | None = None,
    input_names: Sequence[str] | str | None = None,
    output_names: Sequence[str] | str | None = None,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
    refittable: bool = False,
    progress: AnyProgress = None,
) -> ExportReport:
    """Export any module, in evaluation mode, to one ONNX file.

    Weights above protobuf's limit of 2 GB go to ``<name>.data`` next to it. Nothing is left behind
    by an export that fails or is interrupted, and an earlier file at ``path`` stays as it was.

    Args:
        module: The module to export. Its mode is restored afterwards.
        inputs: Example arguments for ``forward``: a sequence by position, a mapping by parameter
            name, or one tensor. The tensors are on the module's device and of its dtype; only their
            shapes and dtypes matter. They may be nested in mappings, lists, tuples and dataclasses.
            What is not a tensor, such as a flag, becomes a constant of the graph.
        kwargs: Further arguments by parameter name.
        path: The file to write; its folder must exist.
        dynamic: Per input (by its name in the ONNX), the axes that stay dynamic and the name of
            their dimension, which may be a ``torch.export.Dim``, whose bounds are not used; or a
            list with an entry for each axis, None where it is fixed. One name in several places is
            one dimension. A product such as ``"batch*frames"`` is allowed, and ``"height*8"`` for
            an extent that is always a multiple. The example's extents there must be large enough
            that none of them shrinks to 1 on its way through the module; an input that has the
            extent 1 there is repeated to 2.
        input_names: Names in the ONNX. Default: the names of ``forward``'s parameters; for tensors
            nested in them followed by their keys, fields or numbers, joined by ``_``.
        output_names: Names in the ONNX. Default: the keys of a mapping or the fields of a
            dataclass, ``output`` for a tensor, else ``output_0``, ``output_1``, ...; parts of
            nested outputs are joined by ``_``. What is not a tensor, such as None, is left out.
        opset: ONNX operator-set version; :data:`DEFAULT_OPSET` (:data:`BFLOAT16_OPSET`) if None.
        metadata: Entries for the model's own key-value pairs.
        refittable: Keep equal weights apart, so that each can be replaced in a plan.
        progress: Receives the phase and, where weights are written, the number of bytes.

    Returns:
        A record of the files written and of the model in them.

    Raises:
        SpecError: the inputs, names or dimensions do not fit the module or each other.
        ExportError: torch cannot export the module, a dimension declared dynamic is a constant
            in it, it computes something else at other extents, or the file cannot be written.
        UnsupportedError: torch or onnxscript is not installed.
    """
    started = time.perf_counter()
    path = Path(path)
    require_torch()
    module = eager_module(module)
    check_writable(path)
    model, weights = _exported_model(
        module,
        *CallStructure.of(module, inputs, kwargs),
        dynamic=dynamic,
        input_names=input_names,
        output_names=output_names,
        opset=opset,
        metadata=metadata,
        refittable=refittable,
        progress=progress,
    )
    with writing(path):
        data, total_bytes = save_model(model, path, progress)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    report = ExportReport.of(model, parameters, path, data, total_bytes, started)
    return dataclasses.replace(report, weights=weights)


def _exported_model(
    module: nn.Module,
    call: CallStructure,
    inputs: Mapping[str, Tensor],
    *,
    dynamic: _Dynamic | None = None,
    input_names: Sequence[str] | str | None = None,
    output_names: Sequence[str] | str | None = None,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
    refittable: bool = False,
    progress: Progress | None = None,
) -> tuple[ir.Model, WeightNames]:
    """The module as an ONNX model in memory, its weights those of the module, not copied."""
    check_opset(opset)
    # Copies: torch takes one tensor in two places for one input.
    named = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    names = _matched(input_names, list(named), "input_names")
    axes = _checked_dynamic(dynamic or {}, dict(zip(names, named.values(), strict=True)))
    by_parameter = {parameter: axes[name] for parameter, name in zip(named, names, strict=True)}
    named = _enlarged(named, by_parameter)
    traced = module if call.is_plain else _flat_module(module, call)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(evaluating(module))
        with phase(progress, "Tracing the module"):
            program = _trace(traced, named, by_parameter)
            _check_extents(program)
            symbols = _symbol_names(program, by_parameter)
            check_assumptions(program, traced, named, by_parameter, symbols)
        opset = opset or _default_opset(module)
        with phase(progress, "Translating to ONNX"):
            model, uses = _translated(program, opset, keep_equal=refittable)
        if any(by_parameter.values()):
            with phase(progress, "Exporting at other extents"):
                _check_second_extent(model, traced, named, by_parameter, opset, refittable)
    _name_tensors(model, names, output_names, _default_names(program, names))
    _name_dimensions(model, symbols, axes)
    model.producer_name, model.producer_version = "trt-native", __version__
    model.metadata_props.update(metadata or {})
    return model, weight_names(model, module, uses) if refittable else {}


def _translated(
    program: ExportedProgram, opset: int, *, keep_equal: bool
) -> tuple[ir.Model, Counter[tuple[int, int]]]:
    """A traced program as a tidy ONNX model, and how often its weights were used before that."""
    model = _translate(program, opset)
    _name_weights(model)
    _fold_transposed_weights(model)
    uses = count_uses(model)
    _fold(model, keep_equal=keep_equal)
    _name_nodes(model)
    return model, uses


def _check_second_extent(
    model: ir.Model,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: _NamedAxes,
    opset: int,
    keep_equal: bool,
) -> None:
    """Reject a model that has extents of its example built in, by an export at twice these.

    Raises:
        ExportError: it computes something else than the module there.
    """
    example = {dim: inputs[n].shape[axis] for n, dims in axes.items() for axis, dim in dims.items()}
    plain = {dim: 2 * extent for dim, extent in example.items()}
    extents = {dim: _product(dim, plain) or extent for dim, extent in plain.items()}
    elements = sum(tensor.numel() for tensor in inputs.values())
    if elements * 2 ** max(map(len, axes.values())) > _MOST_TRACED:
        _logger.warning("not checked at twice the extents of the example, which is very large")
        return
    larger = resized(inputs, axes, extents)
    try:
        program = _trace(module, larger, axes)
        second, _ = _translated(program, opset, keep_equal=keep_equal)
    except ExportError as error:  # as the module may, at extents that it is not for
        _logger.debug("no export at other extents: %s", error.message)
        return
    check_graph_at(model, second, module, larger, extents)


def require_torch() -> None:
    """Raise :class:`UnsupportedError` where torch or onnxscript is not installed."""
    try:
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            f"exporting needs PyTorch and onnxscript ({error.name} is not installed):"
            f" {install_command('export')}"
        ) from None


def eager_module(module: Any) -> nn.Module:
    """The module itself, or the one inside a result of ``torch.compile``.

    Raises:
        SpecError: it is not a module, or one of TorchScript.
    """
    import torch

    module = getattr(module, "_orig_mod", module)
    if not isinstance(module, torch.nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise SpecError(
            f"not a torch.nn.Module of Python code, which is needed here: {type(module).__name__}"
        )
    return module


# From the arguments to a traced program ----------------------------------------------------------


def _flat_module(module: nn.Module, call: CallStructure) -> nn.Module:
    """A module with a parameter for each tensor in the arguments of another."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, _INNER, module)

        def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
            tensors = {**dict(zip(call.names, args, strict=False)), **kwargs}
            args, kwargs = call.rebuild(tensors)
            return getattr(self, _INNER)(*args, **kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter("self", kind),
        *(inspect.Parameter(n, kind) for n in call.names),
    ]
    Flat.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    Flat.__name__ = type(module).__name__
    flat = Flat()
    flat.training = False  # of itself alone: the parts of the module have modes of their own
    return flat


def _name_weights(model: ir.Model) -> None:
    """Name the weights as in the module that was exported, also where that was made flat."""
    for name, value in list(model.graph.initializers.items()):
        if name.startswith(f"{_INNER}."):
            value.name = name.removeprefix(f"{_INNER}.")


def _matched(given: Sequence[str] | str | None, default: list[str], what: str) -> list[str]:
    names = default if given is None else [given] if isinstance(given, str) else list(given)
    if len(names) != len(default) or len(set(names)) != len(names):
        raise SpecError(f"{what} needs {len(default)} different names, found {names}")
    return names


def _checked_dynamic(dynamic: _Dynamic, inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """``dynamic`` with an entry for every input, after checking it against the examples."""
    if not isinstance(dynamic, Mapping):
        raise SpecError(f"dynamic needs the axes of each input by name, found {dynamic!r}")
    known = ", ".join(inputs)
    problems = [
        f"{name!r} is not an input; the inputs: {known}" for name in dynamic if name not in inputs
    ]
    extents: dict[str, int] = {}
    given = {name: _axis_names(name, dynamic.get(name, {})) for name in inputs}
    for name, axes in given.items():
        shape = inputs[name].shape
        for axis, dim in axes.items():
            if not re.fullmatch(r"(\w+\*)*\w+", dim) or dim.isdecimal():
                problems.append(f"{dim!r} is neither a name nor a product such as batch*frames")
            elif axis not in range(len(shape)):
                problems.append(f"{name} has {len(shape)} axes, no axis {axis}")
            elif shape[axis] % multiple_of(dim):
                problems.append(f"{dim} is {shape[axis]} in the examples, and not such a multiple")
            elif extents.setdefault(dim, shape[axis]) != shape[axis]:
                problems.append(f"{dim} is both {extents[dim]} and {shape[axis]} in the examples")
    for dim, extent in extents.items():
        product = _product(dim, extents)
        if product is not None and product != extent:
            problems.append(f"{dim} is {extent} in the examples, but its factors give {product}")
    if problems:
        raise SpecError(f"dynamic dimensions do not fit: {'; '.join(sorted(problems))}")
    return given


def _enlarged(inputs: dict[str, Tensor], axes: _NamedAxes) -> dict[str, Tensor]:
    """The example with dynamic extents of 2 or more: torch takes a 1 for a constant."""
    found = {d: max(2, inputs[n].shape[a]) for n, dims in axes.items() for a, d in dims.items()}
    extents = {dim: _product(dim, found) or extent for dim, extent in found.items()}
    same = all(
        inputs[n].shape[a] == extents[d] for n, dims in axes.items() for a, d in dims.items()
    )
    return inputs if same else resized(inputs, axes, extents)


def _axis_names(name: str, axes: _Axes) -> dict[int, str]:
    """Names of an input's dynamic axes."""
    if not isinstance(axes, (Mapping, list, tuple)):
        raise SpecError(
            f"dynamic axes of {name!r}: found {axes!r}; write for example {{0: 'batch'}}"
        )
    named = axes.items() if isinstance(axes, Mapping) else enumerate(axes)
    return {
        axis: dim if isinstance(dim, str) else str(getattr(dim, "__name__", dim))
        for axis, dim in named
        if dim is not None
    }


def _product(dim: str, extents: Mapping[str, Any]) -> Any:
    """The extent that a product's factors give; None for a plain name or unknown factors."""
    factors = dim.split("*")
    if len(factors) == 1 or not all(f in extents or f.isdecimal() for f in factors):
        return None
    return math.prod(extents.get(f) or int(f) for f in factors)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's and onnxscript's chatter away from the user's terminal."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for the time of a block."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _trace(
    module: nn.Module, inputs: dict[str, Tensor], axes: Mapping[str, Mapping[int, str]]
) -> ExportedProgram:
    import torch
    import torch.fx.experimental._config

    tracing: Any = torch.fx.experimental._config
    # AUTO rather than named Dims: those cannot say that one axis is a product of others, and
    # fail where the module merely limits a range.
    auto = torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(axes[name], auto) or None for name in inputs}
    hook = module.register_forward_pre_hook(
        lambda _module, _args, kwargs: _tie_dimensions(kwargs, axes), with_kwargs=True
    )
    end_hook = module.register_forward_hook(lambda _module, _args, output: plain_output(output))
    try:
        # Leaves extents that are 1 in this run symbols, for _check_extents to see.
        with torch.no_grad(), tracing.patch(backed_size_oblivious=True):
            return torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)
    except USER_CODE_ERRORS as error:  # anything the module's own code may raise
        raise ExportError(
            f"torch cannot trace {type(module).__name__}: {_brief(error)}", _lines(error)
        ) from error
    finally:
        hook.remove()
        end_hook.remove()


def _tie_dimensions(inputs: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]]) -> None:
    """Declare to the tracer which axes are equal, and which are products of others."""
    import torch

    check: Any = torch._check  # has no annotations
    extents: dict[str, Any] = {}
    for name, dims in axes.items():
        for axis, dim in dims.items():
            extent = inputs[name].shape[axis]
            check(extents.setdefault(dim, extent) == extent)
    for dim, extent in extents.items():
        product = _product(dim, extents)
        if product is not None:
            check(extent == product)


def _check_extents(program: ExportedProgram) -> None:
    """Reject an example in whose run a dynamic extent becomes 1 somewhere.

    Torch's decompositions may take such an extent for a constant, silently.
    """
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for extent in getattr(value, "shape", ()):
            if not isinstance(extent, int) and extent.node.hint == 1:
                modules = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
                place = _own_scope(modules[-1] if modules else "") or "the module"
                raise ExportError(
                    f"a dynamic extent is 1 inside {place} with this example, which torch would"
                    " take for a constant: use an example with larger dynamic dimensions"
                )


def _own_scope(scope: str) -> str:
    """A name in the module that was exported, also where that was made flat."""
    return re.sub(rf"^{_INNER}(\.|$)", "", scope)


def _symbol_names(
    program: ExportedProgram, axes: Mapping[str, Mapping[int, str]]
) -> dict[str, str]:
    """The tracer's symbols and the names of their dimensions.

    Raises:
        ExportError: the module turned a dynamic dimension into a constant, or made two of them
            one and the same.
    """
    inputs = set(program.graph_signature.user_inputs)
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in inputs]
    symbols: dict[str, str] = {}
    problems = []
    for shape, (name, dims) in zip(shapes, axes.items(), strict=True):
        for axis, dim in dims.items():
            symbol = str(shape[axis])
            if symbol.isdecimal():
                place = place_that_fixes(program, name, axis)
                problems.append(f"{dim} (axis {axis} of {name}) is always {symbol}{place}")
            elif _SYMBOL.fullmatch(symbol) and symbols.setdefault(symbol, dim) != dim:
                problems.append(f"{dim} is always equal to {symbols[symbol]}")
    if problems:
        raise ExportError(
            f"the module's code fixes dimensions declared dynamic: {'; '.join(problems)};"
            " change the code, or the declaration"
        )
    return symbols


def check_opset(opset: int | None) -> None:
    """Reject an opset that does not exist; one that torch cannot write fails after the export."""
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not _OLDEST_OPSET <= opset <= newest:
        raise SpecError(f"opset {opset}: choose one from {_OLDEST_OPSET} to {newest}")


def _default_opset(module: nn.Module) -> int:
    kinds = {str(parameter.dtype) for parameter in module.parameters()}
    return BFLOAT16_OPSET if "torch.bfloat16" in kinds else DEFAULT_OPSET


def _translate(program: ExportedProgram, opset: int) -> ir.Model:
    import torch

    try:
        result = torch.onnx.export(
            program, dynamo=True, opset_version=opset, optimize=False, verbose=False
        )
    except Exception as error:  # errors of its passes come in many kinds
        raise ExportError(
            f"torch cannot translate the module to ONNX: {_brief(error)}", _lines(error)
        ) from error
    assert result is not None  # noqa: S101  # for the type checker
    if result.model.opset_imports.get("") != opset:
        raise ExportError(f"opset {opset} is out of reach; {DEFAULT_OPSET} is what torch writes")
    return result.model


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _brief(error: BaseException) -> str:
    """First line of the innermost cause's message."""
    error = _innermost(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _lines(error: BaseException) -> list[str]:
    return [line for line in str(error).splitlines() if line.strip()][:40]


# From the translated model to the file -----------------------------------------------------------


def _fold(model: ir.Model, *, keep_equal: bool) -> None:
    """Fold constants and drop unused nodes and values.

    Args:
        model: The model.
        keep_equal: Whether weights with the same values stay apart.

    ``onnxscript.optimizer.optimize`` does the same and more, but its pattern matching takes
    longer than the whole export.
    """
    from onnxscript.optimizer import fold_constants_ir

    try:
        fold_constants_ir(model)
    except Exception as error:  # of any kind, for nodes that it does not expect
        raise ExportError(
            f"onnxscript cannot fold the constants of the module: {_brief(error)}", _lines(error)
        ) from error
    merge = () if keep_equal else (common.DeduplicateInitializersPass(),)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        *merge,
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
    ):
        step(model)


def _fold_transposed_weights(model: ir.Model) -> None:
    """Give MatMul the weight it multiplies by, in place of the weight of nn.Linear, transposed."""
    graph = model.graph
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        tensor: Any = weight.const_value if weight is not None else None
        if weight is None or tensor is None or not weight.is_initializer():
            continue
        turned = graph.initializers.get(f"{weight.name}.T")
        if turned is None:
            # A view: its bytes are put in order one tensor at a time, when they are written.
            raw = tensor.raw.permute(*node.attributes["perm"].as_ints())
            turned = ir.Value(
                name=f"{weight.name}.T",
                shape=ir.Shape(raw.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=type(tensor)(raw, name=f"{weight.name}.T"),
            )
            graph.register_initializer(turned)
        node.outputs[0].replace_all_uses_with(turned)
        graph.remove(node, safe=True)


def _default_names(program: ExportedProgram, inputs: Sequence[str]) -> list[str]:
    """Names of the outputs, by where they are in what the module returns."""
    from torch.utils import _pytree as tree

    spec = program.call_spec.out_spec
    count = len(program.graph_signature.user_outputs)
    paths = (
        []
        if spec is None
        else tree.tree_leaves_with_path(tree.tree_unflatten(range(spec.num_leaves), spec))
    )
    names = []
    for path, _ in paths:
        keys = [str(getattr(e, "key", getattr(e, "idx", getattr(e, "name", "")))) for e in path]
        named = bool(path) and not isinstance(path[0], tree.SequenceKey)
        name = "_".join(keys if named else ["output", *keys])
        names.append(f"{name}_output" if name in inputs else name)
    if len(names) != count or len(set(names)) != count:
        names = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    return ["output"] if names == ["output_0"] else names


def _name_tensors(
    model: ir.Model, inputs: list[str], outputs: Sequence[str] | str | None, default: list[str]
) -> None:
    names = _matched(outputs, default, "output_names")
    if both := sorted(set(names) & set(inputs)):
        raise SpecError(f"output_names: {', '.join(both)} is the name of an input")
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, names, strict=True):
        value.name = name
    common.NameFixPass()(model)


def _name_dimensions(model: ir.Model, symbols: Mapping[str, str], axes: _NamedAxes) -> None:
    graph = model.graph
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(_renamed(axis, symbols) for axis in value.shape)
    for value in graph.inputs:
        for axis, dim in axes[value.name or ""].items():
            assert value.shape is not None  # noqa: S101  # for the type checker
            value.shape[axis] = dim


def _renamed(axis: int | ir.SymbolicDim, symbols: Mapping[str, str]) -> int | str | None:
    if isinstance(axis, int) or axis.value is None:
        return axis if isinstance(axis, int) else None
    return _SYMBOL.sub(lambda match: symbols.get(match[0], match[0]), axis.value)


def _name_nodes(model: ir.Model) -> None:
    """Name nodes after their module, as ``down_blocks.0.conv1/Conv``; drop torch's metadata.

    The metadata would carry source lines and the paths of this machine.
    """
    for node in model.graph:
        scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, ""))
        scope = _own_scope(scopes[-2] if len(scopes) > 1 else "")
        node.name = f"{scope}/{node.op_type}"
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    common.NameFixPass()(model)


_SCOPES = "pkg.torch.onnx.name_scopes"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing a model into :class:`ExportError`."""
    try:
        try:
            yield
        except ir.serde.SerdeError as error:  # around what reading a weight raised
            raise _innermost(error) from None
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from None
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"the exported model is not valid ONNX: {_brief(error)}", _lines(error)
        ) from None
