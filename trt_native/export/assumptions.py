"""What torch assumed of dynamic dimensions while it traced a module.

A branch in Python, or a loop over the parts of a split, is traced for the example alone; torch
notes as a guard which extents take the same way. At extents that do not, the exported graph and the
module are run and compared.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_native.errors import USER_CODE_ERRORS, ExportError
from trt_native.export.structure import is_constant
from trt_native.graph.dims import evaluate_dimension

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

__all__ = [
    "MOST_ELEMENTS",
    "check_assumptions",
    "close_values",
    "multiple_of",
    "place_that_fixes",
    "plain_output",
    "resized",
]

_LOGGER = logging.getLogger(__name__)
_OWN_CHECKS = "_tie_dimensions"  # the function that declares the dimensions to the tracer
_CALLER = "nn/modules/module.py"  # calls forward; innermost for code without a file
_SMALL = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
_TOLERANCE = 1e-2  # relative L2 error: the same operations, in any type

MOST_ELEMENTS = 1 << 24
"""Elements that inputs may have together to try other extents with."""

_Axes = Mapping[str, Mapping[int, str]]
_Extents = dict[str, int]


def plain_output(output: Any) -> Any:
    """What a module returns with dataclasses as mappings, and without constants."""
    if dataclasses.is_dataclass(output) and not isinstance(output, (type, Mapping)):
        output = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, Mapping):
        items = ((key, plain_output(value)) for key, value in output.items())
        return {key: value for key, value in items if not is_constant(value)}
    if isinstance(output, (tuple, list)) and type(output) in (tuple, list):
        return type(output)(value for value in map(plain_output, output) if not is_constant(value))
    return output


def check_assumptions(
    program: ExportedProgram,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: _Axes,
    symbols: Mapping[str, str],
) -> None:
    """Reject an exported graph that computes something else than the module at other extents.

    Args:
        program: The traced module.
        module: The module, in evaluation mode.
        inputs: The example by parameter.
        axes: For each of them, its dynamic axes and their dimensions.
        symbols: Torch's symbols, and the dimensions that they stand for.

    Raises:
        ExportError: it does, at extents where an assumption does not hold and the module works.
    """
    example = {
        dim: inputs[name].shape[axis] for name, dims in axes.items() for axis, dim in dims.items()
    }
    tried = []
    for condition in _assumptions(program):
        text = re.sub(r"\bs\d+\b", lambda m: symbols.get(m[0], m[0]), str(condition))
        for extents in _falsifying(condition, example, symbols, program):
            if extents not in tried:
                tried.append(extents)
                where = ", ".join(f"{d}={n}" for d, n in extents.items() if n != example[d])
                _check_at(program, module, resized(inputs, axes, extents), where, text)


def _check_at(
    program: ExportedProgram, module: nn.Module, inputs: dict[str, Tensor], where: str, text: str
) -> None:
    if sum(tensor.numel() for tensor in inputs.values()) > MOST_ELEMENTS:
        _LOGGER.warning("not checked at %s: the export takes it that %s", where, text)
    elif not _agree(program, module, inputs):
        raise ExportError(
            f"at {where} the exported graph would not compute what the module does, whose code took"
            f" a way that is right only where {text}; make it independent of the extent, declare"
            " the dimension static, or, if it is always a multiple of a number, as such (h*8)"
        )


def _assumptions(program: ExportedProgram) -> Iterator[Any]:
    """The guards that torch noted of the module's own branches, and equalities of torch's code.

    The other guards of torch's code are about its strides; they do not change the graph.
    """
    import torch

    package = str(Path(torch.__file__).parent)
    for node in program.graph.nodes:
        for extent in getattr(node.meta.get("val"), "shape", ()):
            if not isinstance(extent, int):
                for guard in extent.node.shape_env.guards:
                    place = str(guard.sloc.framework_loc)
                    own = package not in place or _CALLER in place
                    if _OWN_CHECKS not in place and (own or guard.expr.func.__name__ == "Equality"):
                        yield guard.expr
                return


def place_that_fixes(program: ExportedProgram, name: str, axis: int) -> str:
    """The line of code that makes a dynamic extent a constant, as ", by FILE:LINE", or nothing.

    Args:
        program: The traced module.
        name: The parameter with the extent.
        axis: Its axis.
    """
    import torch

    package = str(Path(torch.__file__).parent)
    for node in program.graph.nodes:
        environment = getattr(getattr(node.meta.get("val"), "fake_mode", None), "shape_env", None)
        if environment is None:
            continue
        sources = getattr(environment, "source_to_var", {})
        ending = f"[{name!r}].size()[{axis}]"
        fixed = {symbol for source, symbol in sources.items() if str(source).endswith(ending)}
        for guard in environment.guards:
            frame = guard.sloc.framework_loc
            file = getattr(frame, "filename", package)
            if guard.expr.free_symbols & fixed and not file.startswith(package):
                return f", by {file}:{frame.lineno}"
        return ""
    return ""


def _falsifying(
    condition: Any, example: _Extents, symbols: Mapping[str, str], program: ExportedProgram
) -> list[_Extents]:
    """Extents of all dimensions at which a condition does not hold: smallest and largest tried."""
    free = {symbol: symbols.get(str(symbol), "") for symbol in condition.free_symbols}
    limits: dict[str, set[int]] = {dim: set() for dim in free.values()}
    if "" in limits:
        return []
    for symbol, bounds in program.range_constraints.items():
        if symbol in free:
            beyond = (bounds.lower - 1, bounds.upper + 1)
            limits[free[symbol]] |= {int(bound) for bound in beyond if bound.is_Integer}
    ranges = [
        sorted({*_SMALL, example[dim] + 1, 2 * example[dim], *(n for n in more if n > 0)})
        for dim, more in limits.items()
    ]
    found = []
    for extents in itertools.product(*ranges):
        chosen = dict(zip(limits, extents, strict=True))
        possible = all(extent % multiple_of(dim) == 0 for dim, extent in chosen.items())
        if possible and not condition.subs({s: chosen[dim] for s, dim in free.items()}):
            found.append({**example, **chosen})
    ends = found[:1] + found[1:][-1:]
    return [{dim: _extent(dim, extents) for dim in extents} for extents in ends]


def multiple_of(dim: str) -> int:
    """The number that a dimension is a multiple of: 8 for ``h*8``, 1 for a name."""
    return math.prod(int(factor) for factor in dim.split("*") if factor.isdecimal())


def _extent(dim: str, extents: _Extents) -> int:
    """The extent of a dimension, or of an expression of dimensions."""
    found = evaluate_dimension(dim, extents)
    return found if isinstance(found, int) else extents[dim]


def resized(inputs: Mapping[str, Tensor], axes: _Axes, extents: _Extents) -> dict[str, Tensor]:
    """The example repeated, or cut, to other extents."""
    import torch

    found = dict(inputs)
    for name, dims in axes.items():
        for axis, dim in dims.items():
            tensor = found[name]
            index = torch.arange(extents[dim], device=tensor.device) % tensor.shape[axis]
            found[name] = tensor.index_select(axis, index)
    return found


def _agree(program: ExportedProgram, module: nn.Module, inputs: dict[str, Tensor]) -> bool:
    """Whether the traced graph computes what the module does, or the module fails as well."""
    import torch
    from torch.utils._pytree import tree_leaves

    def run(function: Any, *args: Any, **kwargs: Any) -> list[Any]:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return tree_leaves(plain_output(function(*args, **kwargs)))

    try:
        expected = run(module, **inputs)
    except USER_CODE_ERRORS as error:  # the module's code may raise any
        _LOGGER.debug("the module itself fails at other extents: %s", error)
        return True
    graph: Any = torch.fx.Interpreter(program.module(check_guards=False))
    try:  # node by node: its forward would check the extents
        found = run(graph.run, *inputs.values(), enable_io_processing=False)
    except Exception as error:
        _LOGGER.debug("the traced module fails at other extents: %s", error)
        return False
    return len(found) == len(expected) and all(map(close_values, found, expected))


def close_values(found: Any, expected: Any) -> bool:
    """Whether values of two computations of the same operations are equal, but for rounding."""
    import torch

    if not isinstance(expected, torch.Tensor):
        return bool(found == expected)
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        return False
    f, e = (torch.nan_to_num(tensor.to(torch.float64)) for tensor in (found, expected))
    return bool(torch.linalg.vector_norm(f - e) <= _TOLERANCE * torch.linalg.vector_norm(e))
