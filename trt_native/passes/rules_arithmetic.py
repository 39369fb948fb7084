"""Rules of :mod:`~trt_native.passes.lower_operators` for sums, products and maxima along axes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from string import ascii_letters, ascii_lowercase

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import FLOAT
from trt_native.passes.array_builder import ArrayBuilder, OperatorRule, Site, terms_at

__all__ = ["RULES", "spelled_out"]

_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
_MOST_FACTORS = 1 << 24  # elements of a matrix
_LARGEST_DETERMINANT = 4
_AXIS_AS_INPUT = 20  # since this opset DFT has it so

Write = Callable[[ArrayBuilder], None]


def _cum_prod(site: Site) -> Write | None:
    """Multiply, of twice as many elements in each step."""
    given, extents = site.constant(1), site.extents(0)
    if given is None or not extents:
        return None
    rank, axis = len(extents), int(given) % len(extents)
    count = extents[axis]
    if not count:
        return None
    length, from_behind, exclusive = count, site.int("reverse"), site.int("exclusive")

    def shifted(new: ArrayBuilder, x: ir.Value, by: int) -> ir.Value:
        if from_behind:
            return new.pad(new.slice(x, axis, by), rank, axis, 0, by, 1)
        return new.pad(new.slice(x, axis, 0, -by), rank, axis, by, 0, 1)

    def write(new: ArrayBuilder) -> None:
        new.keep_fp32("running product")
        found = new.op("Identity", new.node.inputs[0])
        if exclusive:
            found = shifted(new, found, 1)
        for step in _doubled(length):
            found = new.op("Mul", found, shifted(new, found, step))
        new.finish(found)

    return write


def _doubled(length: int) -> list[int]:
    return [1 << power for power in range((length - 1).bit_length())]


def _dft(site: Site) -> Write | None:
    """Multiply by the matrix of the transform, real and imaginary parts side by side."""
    extents, length = site.extents(0), site.constant(1)
    axis = _dft_axis(site)
    if not extents or axis is None or (length is None and site.has(1)):
        return None
    rank = len(extents)
    axis %= rank
    count, parts = extents[axis], extents[-1]
    if rank < 3 or axis == rank - 1 or not count or parts not in (1, 2):
        return None
    inverse, onesided = site.int("inverse"), site.int("onesided")
    default = 2 * (count - 1) if inverse and onesided else count
    size = default if length is None else int(np.ravel(length)[0])
    if size < 1 or count * size * 4 > _MOST_FACTORS:
        return None
    matrix = _dft_matrix(count, size, parts, bool(inverse), bool(onesided))
    rows, made = matrix.shape[2:]
    order = [*(i for i in range(rank - 1) if i != axis), axis, rank - 1]
    back = [int(i) for i in np.argsort(order)]
    around = [0] * (rank - 2)

    def write(new: ArrayBuilder) -> None:
        new.keep_fp32("Fourier transform")
        x = new.op("Transpose", new.wide(new.node.inputs[0]), perm=order)
        x = new.reshape(x, [*around, count * parts])
        flat = matrix.reshape(count * parts, rows * made)
        found = new.op("MatMul", x, flat.astype(np.float32))
        found = new.reshape(found, [*around, rows, made])
        new.finish(new.op("Transpose", found, perm=back))

    return write


def _dft_axis(site: Site) -> int | None:
    if site.opset < _AXIS_AS_INPUT:
        return site.int("axis", 1)
    given = site.constant(2)
    if given is not None:
        return int(np.ravel(given)[0])
    return None if site.has(2) else -2


def _dft_matrix(count: int, size: int, parts: int, inverse: bool, onesided: bool) -> Array:
    """What a unit of each element and part adds to each element and part of the result."""
    columns = []
    for unit in (1, 1j)[:parts]:
        signals = np.eye(count) * unit
        if inverse and onesided:
            columns.append(np.fft.irfft(signals, size)[..., None])
            continue
        found = np.fft.ifft(signals, size) if inverse else np.fft.fft(signals, size)
        kept = found[:, : size // 2 + 1] if onesided else found
        columns.append(np.stack([kept.real, kept.imag], axis=-1))
    return np.stack(columns, axis=1)


def _col2im(site: Site) -> Write | None:
    """Add up the elements of columns that fall on each pixel, one axis after the other."""
    image, block = site.constant(1), site.constant(2)
    if image is None or block is None:
        return None
    sizes, kernel, rank = image.tolist(), block.tolist(), len(image)
    steps, spread = site.ints("strides", [1] * rank), site.ints("dilations", [1] * rank)
    pads = site.ints("pads", [0] * 2 * rank)
    counts = [
        (size + pads[i] + pads[i + rank] - spread[i] * (kernel[i] - 1) - 1) // steps[i] + 1
        for i, size in enumerate(sizes)
    ]

    def write(new: ArrayBuilder) -> None:
        x = new.reshape(new.node.inputs[0], [0, -1, *kernel, *counts])
        pairs = [axis for i in range(rank) for axis in (2 + i, 2 + rank + i)]
        x = new.op("Transpose", x, perm=[0, 1, *pairs])
        x = new.reshape(x, [0, 0, *(k * n for k, n in zip(kernel, counts, strict=True))])
        for i, size in enumerate(sizes):
            places = np.arange(kernel[i])[:, None] * spread[i] - pads[i]
            places = (places + np.arange(counts[i]) * steps[i]).reshape(-1)
            x = new.pad(x, 2 + rank, 2 + i, 0, 1)  # a zero, for pixels with fewer elements
            x = new.weighted(x, 2 + i, 2 + rank, terms_at(places, size), None)
        new.finish(x)

    return write


def _det(site: Site) -> Write | None:
    """Expand by the first row, with each minor computed once."""
    extents = site.extents(0)
    size = extents[-1] if extents and len(extents) > 1 else None
    if not extents or not size or size > _LARGEST_DETERMINANT or extents[-2] != size:
        return None
    rank, count = len(extents), size

    def write(new: ArrayBuilder) -> None:
        new.keep_fp32("differences of products")
        x = new.wide(new.node.inputs[0])
        rows = [new.op("Gather", x, np.array(i), axis=rank - 2) for i in range(count)]
        minors: dict[Sequence[int], ir.Value] = {}
        for used in range(1, count + 1):
            row = rows[count - used]
            elements = [new.op("Gather", row, np.array(i), axis=rank - 2) for i in range(count)]
            minors = {
                columns: _expanded(new, columns, elements, minors)
                for columns in itertools.combinations(range(count), used)
            }
        (found,) = minors.values()
        new.finish(found if count > 1 else new.op("Identity", found))

    return write


def _expanded(
    new: ArrayBuilder,
    columns: Sequence[int],
    elements: Sequence[ir.Value],
    minors: Mapping[Sequence[int], ir.Value],
) -> ir.Value:
    """The determinant of the last rows and some columns, from those without the first row."""
    if len(columns) == 1:
        return elements[columns[0]]
    total = None
    for index, column in enumerate(columns):
        others = tuple(c for c in columns if c != column)
        product = new.op("Mul", elements[column], minors[others])
        sign = "Sub" if index % 2 else "Add"
        total = product if total is None else new.op(sign, total, product)
    assert total is not None  # noqa: S101  # for the type checker
    return total


def _reduce_bool(site: Site) -> Write | None:
    """Reduce truth values as 0 and 1."""
    if site.kind() is not ir.DataType.BOOL:
        return None

    def write(new: ArrayBuilder) -> None:
        node = new.node
        x = new.cast(node.inputs[0], ir.DataType.INT32)
        inputs = [x, *node.inputs[1:]]
        (found,) = new.add_with(node.op_type, inputs, 1, node.attributes, x.dtype)
        zero = new.number(0, x)  # of no values the result is the least or largest number
        new.finish(new.op("Greater", found, zero, kind=ir.DataType.BOOL))

    return write


def _max_pool_of_bytes(site: Site) -> Write | None:
    """Find maxima of bytes in FP32, which has all of them."""
    node = site.node
    if site.kind() not in _BYTES or len(node.outputs) > 1:
        return None

    def write(new: ArrayBuilder) -> None:
        x = new.cast(node.inputs[0], FLOAT)
        (found,) = new.add_with(node.op_type, [x], 1, node.attributes, FLOAT)
        new.finish(found)

    return write


def _mat_mul(site: Site) -> Write | None:
    """Give vectors an axis of one element."""
    ranks = [None if (one := site.extents(i)) is None else len(one) for i in (0, 1)]
    if 1 not in ranks or None in ranks:
        return None

    def write(new: ArrayBuilder) -> None:
        left, right = new.node.inputs
        dropped = []
        if ranks[0] == 1:
            left = new.unsqueeze(left, [0])
            dropped.append(-2)
        if ranks[1] == 1:
            right = new.unsqueeze(right, [1])
            dropped.append(-1)
        new.finish(new.squeeze(new.op("MatMul", left, right), dropped))

    return write


def _hardmax(site: Site) -> Write | None:
    """Give a vector an axis of one element."""
    extents = site.extents(0)
    if extents is None or len(extents) != 1:
        return None

    def write(new: ArrayBuilder) -> None:
        x = new.unsqueeze(new.node.inputs[0], [0])
        new.finish(new.squeeze(new.op("Hardmax", x, axis=1), [0]))

    return write


def _einsum(site: Site) -> Write | None:
    """Write small letters, and letters for the axes of an ellipsis."""
    given = site.string("equation", "").replace(" ", "")
    shapes = [site.extents(index) for index in range(len(site.node.inputs))]
    terms, _, result = given.partition("->")
    spelled = spelled_out(terms.split(","), shapes)
    if spelled is None or ("..." in given and "->" not in given):
        return None
    operands, around = spelled
    if "->" not in given:  # the letters that occur once, in the order of the alphabet
        once = (letter for letter in set(terms) - {","} if terms.count(letter) == 1)
        result = "".join(sorted(once))
    equation = ",".join(operands) + "->" + result.replace("...", around)
    letters = "".join(sorted(set(equation) - set(",->")))
    if not letters.islower() and len(letters) <= len(ascii_lowercase):
        equation = equation.translate(str.maketrans(letters, ascii_lowercase[: len(letters)]))
    if equation == given:
        return None

    def write(new: ArrayBuilder) -> None:
        new.finish(new.op("Einsum", *new.node.inputs, equation=equation))

    return write


def spelled_out(
    terms: Sequence[str], shapes: Sequence[list[int | None] | None]
) -> tuple[list[str], str] | None:
    """The operands' letters without ellipses, and what stands for an ellipsis of the result.

    None where ranks are unknown, or an axis of an ellipsis is repeated for others.
    """
    used = set("".join(terms))
    free = [letter for letter in ascii_letters if letter not in used]
    ranks = []
    for term, shape in zip(terms, shapes, strict=False):
        if shape is None or len(terms) != len(shapes):
            return None
        ranks.append(len(shape) - len(term.replace("...", "")) if "..." in term else 0)
    most = max(ranks, default=0)
    if min(ranks, default=0) < 0 or most > len(free):
        return None
    around = "".join(free[:most])
    extents: dict[str, set[int | None]] = {letter: set() for letter in around}
    found = []
    for term, shape, rank in zip(terms, shapes, ranks, strict=True):
        letters = term.replace("...", around[most - rank :])
        found.append(letters)
        for letter, extent in zip(letters, shape or [], strict=False):
            if letter in extents:
                extents[letter].add(extent)
    several = any(len(one) > 1 for one in extents.values())
    shared = sum("..." in term for term in terms) > 1
    unknown = shared and any(None in one for one in extents.values())
    return None if several or unknown else (found, around)


def _space_to_depth(site: Site) -> Write | None:
    """Order the channels of the other mode."""
    extents = site.extents(0)
    channels = extents[1] if extents else None
    if channels is None or site.string("mode", "DCR") != "CRD":
        return None
    block = site.int("blocksize")
    order = np.arange(block * block * channels).reshape(block * block, channels).T.reshape(-1)

    def write(new: ArrayBuilder) -> None:
        x = new.op("SpaceToDepth", new.node.inputs[0], blocksize=block)
        new.finish(new.op("Gather", x, order, axis=1))

    return write


RULES: Mapping[str, OperatorRule] = {
    "Col2Im": _col2im,
    "CumProd": _cum_prod,
    "DFT": _dft,
    "Det": _det,
    "Einsum": _einsum,
    "Hardmax": _hardmax,
    "MatMul": _mat_mul,
    "MaxPool": _max_pool_of_bytes,
    "ReduceMax": _reduce_bool,
    "ReduceMin": _reduce_bool,
    "SpaceToDepth": _space_to_depth,
}
