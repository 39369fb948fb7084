"""Reading an ONNX file without loading its weights, telling what is in it, and writing one."""

from __future__ import annotations

import contextlib
import inspect
import mmap
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from trt_native.errors import BuildError, ModelError, SpecError
from trt_native.files import is_within, open_regular_file, sha256_of_file
from trt_native.graph.functions import check_inlined_size
from trt_native.graph.mapped_model import load_mapped
from trt_native.graph.sparse import densify
from trt_native.graph.validity import (
    all_tensors,
    graph_problems,
    root_cause,
    wraps_graph_errors,
)
from trt_native.progress import Progress, byte_phase
from trt_native.shapes import TensorSpec
from trt_native.units import format_bytes

__all__ = [
    "CHANGED_KEY",
    "ModelSummary",
    "check_name",
    "check_unchanged",
    "dtype_name",
    "file_states",
    "hash_files",
    "model_files",
    "operator_names",
    "read_model",
    "save_model",
    "save_models",
    "save_temporary",
    "summarize",
    "tensor_specs",
    "value_spec",
    "weight_links",
]

# Protobuf ends at 2 GiB; the graph itself needs some of that.
_MAX_INLINE_BYTES = 2**31 - 2**26
_MOST_PROTOBUF_BYTES = 2**31
_MOST_THREADS = 8
_IR_VERSION = 4  # the first in which weights need not be inputs
_IN_FLIGHT_BYTES = 256 * 2**20  # of weights that are written, in all threads together
_LISTED = 10
_PLAN_TAGS = (b"ftrt", b"vtrt")
_LINKED_KEY = "trt_native.linked"
_PLACEHOLDERS = ("", "?", "-1")

CHANGED_KEY = "trt_native.changed"
"""Key, in the ``meta`` of a model, of whether it differs from the file that it was read from."""


def read_model(path: Path) -> ir.Model:
    """Load an ONNX file; weights stay on disk, but external ones are checked to be there in full.

    Axes of inputs that have neither an extent nor a name get one, such as ``x_0`` for the first of
    ``x``.

    Raises:
        ModelError: the file is missing, empty, truncated or not ONNX, or external weights are
            missing, too short, or outside the model's folder.
    """
    try:
        with open_regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            is_plan = file.read(4) in _PLAN_TAGS
        model = _load(path) if 0 < size <= _MOST_PROTOBUF_BYTES and not is_plan else None
    except IsADirectoryError:
        raise ModelError(f"{path}: is a folder, not an ONNX file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}") from None
    except Exception as error:  # onnx_ir and protobuf raise many kinds on malformed bytes
        raise ModelError(f"{path}: not an ONNX file, or truncated ({root_cause(error)})") from None
    if is_plan:
        raise ModelError(
            f"{path}: not an ONNX file, but a TensorRT plan; name the ONNX file that it was built"
            " from"
        )
    if not size:
        raise ModelError(f"{path}: is empty; export or copy the model again")
    if model is None:
        raise ModelError(
            f"{path}: not an ONNX file: it has {format_bytes(size)}, and none has more than 2 GiB;"
            " larger models keep their weights in files next to them"
        )
    functions = (function.opset_imports for function in model.functions.values())
    for imports in (model.opset_imports, *functions):
        if (version := imports.pop("ai.onnx", None)) is not None:
            imports.setdefault("", version)  # the same domain
    if not model.graph.outputs or not model.opset_imports:
        raise ModelError(f"{path}: not an ONNX model: it has no graph with outputs")
    try:
        _forget_placeholders(model)
        _name_axes(model.graph)
        problems = list(dict.fromkeys(graph_problems(model)))
        check_inlined_size(model)
        _check_external_weights(path, model)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}") from None
    except Exception as error:
        raise ModelError(f"{path}: its graph is malformed ({root_cause(error)})") from None
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise ModelError(
            f"{path}: its graph is malformed: {problems[0]}{more}", problems[1:_LISTED]
        )
    return model


def _load(path: Path) -> ir.Model:
    """Load a file, with sparse constants made dense."""
    mapped = load_mapped(path)
    count = densify(mapped.proto)  # onnx_ir reads no sparse tensors
    linked = _follow_links(mapped.proto, path)
    model = ir.from_proto(mapped.proto)
    mapped.complete(model)
    model.meta[_LINKED_KEY] = linked
    if count:
        model.meta[CHANGED_KEY] = True
    return model


def _follow_links(model: onnx.ModelProto, path: Path) -> dict[str, dict[Path, Path]]:
    """Name files of weights by what links lead to, next to what the model's own link leads to.

    So does a cache of downloads hold them. onnx_ir follows no link out of the folder that it knows.

    Returns:
        For each name that is relative to the folder of the resolved model, the links that lead to
        it, with the file.
    """
    folder, target = path.parent.resolve(), path.resolve().parent
    linked: dict[str, dict[Path, Path]] = {}
    for entry in _locations_of(model) if folder != target else ():
        if _leads_out(entry.value) or not (path.parent / entry.value).exists():
            continue
        link = path.parent / entry.value
        file = link.resolve()
        if file.is_relative_to(target) and not file.is_relative_to(folder):
            entry.value = str(file.relative_to(target))
            linked.setdefault(entry.value, {})[link] = file
    return linked


def _locations_of(message: Any) -> Iterator[onnx.StringStringEntryProto]:
    """The locations of external weights anywhere in a message of ONNX."""
    if isinstance(message, onnx.TensorProto):
        yield from (entry for entry in message.external_data if entry.key == "location")
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _locations_of(item)


def _leads_out(location: str) -> bool:
    """Whether the text of a location leaves the folder that it is relative to."""
    normal = os.path.normpath(location)
    return os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir


def _forget_placeholders(model: ir.Model) -> None:
    """Make unnamed axes of those that exporters call ``?`` or -1."""
    for graph in model.graphs():
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.outputs, *made):
            if value.shape is not None and any(map(_is_placeholder, value.shape)):
                value.shape = ir.Shape(None if _is_placeholder(a) else a for a in value.shape)
                model.meta[CHANGED_KEY] = True


def _name_axes(graph: ir.Graph) -> None:
    """Name the axes of inputs that have neither an extent nor a name after input and axis."""
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    taken = {_axis(axis) for value in inputs for axis in value.shape or ()}
    for value in inputs:
        if value.shape is None or None not in map(_axis, value.shape):
            continue
        word = re.sub(r"\W", "_", str(value.name))
        axes = [_axis(axis) for axis in value.shape]
        for index in (index for index, axis in enumerate(axes) if axis is None):
            name = f"{'' if word[:1].isalpha() else 'input'}{word}_{index}"
            while any(name in str(text) for text in taken):  # expressions hold names, too
                name += "_"
            taken.add(name)
            axes[index] = name
        value.shape = ir.Shape(axes)


def _is_placeholder(axis: int | ir.SymbolicDim) -> bool:
    return axis < 0 if isinstance(axis, int) else axis.value in _PLACEHOLDERS


def _check_external_weights(path: Path, model: ir.Model) -> None:
    problems: dict[str, str] = {}
    # A cache of downloads may hold links, to files that are next to each other elsewhere.
    folders = (path.parent.resolve(), path.resolve().parent)
    for tensor in _external_tensors(model):
        name = str(tensor.location)
        # onnx_ir does not reach those in functions
        tensor.base_dir = folders[1] if name in model.meta[_LINKED_KEY] else path.parent
        if name not in problems and (problem := _external_problem(tensor, folders)):
            problems[name] = problem
    if problems:
        lines = [f"{location} {problem}" for location, problem in problems.items()]
        raise ModelError(f"external weights: {'; '.join(lines)}")


def _external_problem(tensor: ir.ExternalTensor, folders: Iterable[Path]) -> str | None:
    file = Path(tensor.path)
    try:
        outside = not any(is_within(file, folder) for folder in folders)
        if outside or _leads_out(str(tensor.location)):
            return "lies outside the model's folder, which is not followed"
        if not file.is_file():
            return f"is missing (first needed by {tensor.name!r})"
        with open_regular_file(file) as opened:
            size = os.fstat(opened.fileno()).st_size
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    length = tensor.nbytes if tensor.length is None else tensor.length
    if (tensor.offset or 0) < 0 or length < 0 or length < tensor.nbytes:
        return f"has too little for {tensor.name!r}: it needs {tensor.nbytes} bytes, not {length}"
    end = (tensor.offset or 0) + length
    if end > size:
        return f"is too short: {tensor.name!r} needs {end} bytes, the file has {size}"
    return None


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    return (tensor for tensor in all_tensors(model) if isinstance(tensor, ir.ExternalTensor))


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Contents of an ONNX file.

    Attributes:
        inputs: Inputs that a caller supplies; initializers are not among them.
        outputs: Outputs.
        opsets: Operator-set version by domain; the default domain is ``""``.
        operators: How often each operator occurs, subgraphs included, most frequent first.
        parameters: Number of elements in all weights.
        weight_bytes: Size of all weights.
        file_bytes: Size of the ONNX file, without external weights.
        producer: Program and version that wrote the file.
        metadata: The file's own key-value pairs.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opsets: Mapping[str, int]
    operators: Mapping[str, int]
    parameters: int
    weight_bytes: int
    file_bytes: int
    producer: str
    metadata: Mapping[str, str]


@wraps_graph_errors
def summarize(path: Path, model: ir.Model) -> ModelSummary:
    """Describe a model that was read from ``path``."""
    operators = Counter(_operator(node) for node in model.graph.all_nodes())
    weights = [
        value.const_value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    ]
    inputs, outputs = tensor_specs(model)
    return ModelSummary(
        inputs=inputs,
        outputs=outputs,
        opsets=dict(model.opset_imports),
        operators=dict(operators.most_common()),
        parameters=sum(int(weight.size) for weight in weights),
        weight_bytes=sum(int(weight.nbytes) for weight in weights),
        file_bytes=path.stat().st_size,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        metadata=dict(model.metadata_props),
    )


def operator_names(model: ir.Model) -> dict[str, str]:
    """Each operator that occurs, subgraphs included, with the name of the first node that uses it.

    Operators outside the default domain are written ``domain::Operator``.
    """
    names: dict[str, str] = {}
    for node in model.graph.all_nodes():
        names.setdefault(_operator(node), node.name or "")
    return names


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def tensor_specs(model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs that a caller supplies, and the outputs."""
    graph = model.graph
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    return tuple(map(value_spec, inputs)), tuple(map(value_spec, graph.outputs))


def value_spec(value: ir.Value) -> TensorSpec:
    """Name, type and shape of a value, as far as the file records them."""
    shape = None if value.shape is None else tuple(_axis(axis) for axis in value.shape)
    return TensorSpec(value.name or "", dtype_name(value.dtype), shape)


def _axis(axis: int | ir.SymbolicDim) -> int | str | None:
    return axis if isinstance(axis, int) else axis.value


def dtype_name(dtype: ir.DataType | None) -> str:
    """The NumPy or ml_dtypes name of an ONNX element type; ``unknown`` for none."""
    if dtype is None:
        return "unknown"
    try:
        return str(dtype.numpy())
    except TypeError:
        return str(dtype.name).lower()


def hash_files(
    path: Path, model: ir.Model, hash_file: Callable[[Path], str] = sha256_of_file
) -> dict[str, Any]:
    """Name, size and SHA-256 of the ONNX file and of every file of external weights.

    Args:
        path: The ONNX file.
        model: What was read from it.
        hash_file: Returns the SHA-256 of a file in hexadecimal.

    Raises:
        ModelError: a file cannot be read.
    """
    name = path.name.encode(errors="backslashreplace").decode()  # JSON is text, names may not be
    files = [(path, name), *((file, location) for location, file in _weight_files(model))]
    try:
        onnx, *external = (
            {"file": name, "bytes": file.stat().st_size, "sha256": hash_file(file)}
            for file, name in files
        )
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    return {**onnx, "external": external}


def model_files(path: Path, model: ir.Model) -> tuple[Path, ...]:
    """The ONNX file, and the files of external weights of the model that was read from it."""
    return (path, *(file for _, file in _weight_files(model)))


def weight_links(model: ir.Model) -> dict[Path, Path]:
    """The links that were followed to external weights next to a linked model, each with its file.

    They are not among :func:`model_files`, which has the files.
    """
    followed: Mapping[str, Mapping[Path, Path]] = model.meta[_LINKED_KEY]
    return {link: file for links in followed.values() for link, file in links.items()}


def _weight_files(model: ir.Model) -> list[tuple[str, Path]]:
    return sorted(
        {(str(tensor.location), Path(tensor.path)) for tensor in _external_tensors(model)}
    )


def file_states(files: Iterable[Path]) -> dict[Path, tuple[int, int, int]]:
    """Inode, size and time of files, which change when one is written or replaced."""
    states = {}
    for file in files:
        try:
            state = file.stat()
            states[file] = (state.st_ino, state.st_size, state.st_mtime_ns)
        except OSError:
            states[file] = (0, 0, 0)  # gone
    return states


def check_unchanged(states: Mapping[Path, tuple[int, int, int]], work: str) -> None:
    """Refuse a result that may have the weights of one file and the name of another.

    Args:
        states: The result of :func:`file_states` before the work.
        work: What was done meanwhile and what to do again, as ``the plan was built; build it``.

    Raises:
        ModelError: a file changed.
    """
    present = file_states(states)
    changed = [str(file) for file, state in states.items() if present[file] != state]
    if changed:
        raise ModelError(
            f"{', '.join(changed)} changed while {work} again once the file is complete"
        )


def save_model(
    model: ir.Model,
    path: Path,
    progress: Progress | None = None,
    *,
    external: bool = False,
    durable: bool = True,
) -> tuple[Path | None, int]:
    """Write a model, with weights too large to be inside in ``<name>.data`` next to it.

    The files are complete and valid, or not there at all; then an earlier one stays as it was.

    Args:
        model: The model.
        path: Its file.
        progress: Receives progress callbacks.
        external: Whether weights of any size go there.
        durable: As for :func:`save_models`.

    Returns:
        The file with the weights, if any, and the size of all files.

    Raises:
        OSError: a file cannot be written.
        onnx.checker.ValidationError: the model is not valid.
    """
    in_two = external or _weight_bytes(model) > _MAX_INLINE_BYTES
    data = Path(f"{path}.data") if in_two else None
    sizes = save_models({path: model}, data, progress, durable=durable)
    return data, sum(sizes.values())


@wraps_graph_errors
def save_temporary(model: ir.Model, path: Path) -> None:
    """Write a changed model and its weights to a temporary folder, for TensorRT to parse.

    Raises:
        BuildError: the folder cannot be written to, or has too little space.
        ModelError: the graph is malformed.
    """
    try:
        _write_model(model, path, f"{path.name}.data")
    except OSError as error:
        raise BuildError(
            f"cannot write the rewritten model to {path.parent}: {error.strerror or error}; point"
            " the environment variable TMPDIR at a folder with more space"
        ) from error


def check_name(path: Path) -> None:
    """Check the name of an ONNX file to write, which the file itself may hold.

    Raises:
        SpecError: it is not UTF-8.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise SpecError(
            f"cannot write {str(path)!r}: not UTF-8, as ONNX needs; name another"
        ) from None


def _weight_bytes(model: ir.Model) -> int:
    weights = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in weights if value.const_value)


def save_models(
    models: Mapping[Path, ir.Model],
    data: Path | None,
    progress: Progress | None,
    *,
    durable: bool = True,
) -> dict[Path, int]:
    """Check models and write them, all or none.

    Args:
        models: The models by file; all files in one folder.
        data: The file for the weights of the first model, which the others share where they have
            the same; None if weights are inside.
        progress: Receives progress callbacks.
        durable: Wait until the files are on disk, so that they outlive a loss of power.

    Returns:
        The size of each file.

    Raises:
        OSError: a file cannot be written.
        onnx.checker.ValidationError: a model is not valid.
        SpecError: the file for the weights holds those of another model, or its name is not UTF-8.
    """
    first = next(iter(models))
    check_name(first)
    if data is not None and (others := _users(data) - set(models)):
        raise SpecError(
            f"cannot write {data}: {min(others).name} next to it has its weights there; name"
            " another output"
        )
    total = _weight_bytes(models[first])

    external = data.name if data else None
    with (
        byte_phase(progress, "Writing the weights", total) as written_bytes,
        tempfile.TemporaryDirectory(prefix=f".{first.name}.", dir=first.parent) as name,
    ):

        def on_tensor(tensor: ir.TensorProtocol, info: Any) -> None:
            written_bytes(info.offset + tensor.nbytes)

        folder = Path(name)
        for path, model in models.items():
            written = folder / path.name
            if path == first:
                _write_model(model, written, external, on_tensor)
            else:
                _take_shared_weights(model, ir.load(folder / first.name))
                ir.save(model, written)
            onnx.checker.check_model(str(written))
        return _publish(folder, first, durable=durable)


def _write_model(
    model: ir.Model,
    path: Path,
    external_data: str | None,
    on_tensor: Callable[[ir.TensorProtocol, Any], None] | None = None,
) -> None:
    """Write a model, its weights in several threads, each of which reads and converts some.

    Args:
        model: The model.
        path: Its file.
        external_data: Name of the file for its weights; None if they are inside.
        on_tensor: Called with each of the weights in a file of their own before it is written, and
            onnx_ir's record of it; by one thread at a time.

    Raises:
        OSError: a file cannot be written.
    """
    model.ir_version = max(model.ir_version, _IR_VERSION)
    options: dict[str, Any] = {}
    if "max_workers" in inspect.signature(ir.save).parameters:  # onnx_ir 1.1 and later
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        options = {"max_workers": threads, "max_in_flight_bytes": _IN_FLIGHT_BYTES}
    ir.save(model, path, external_data=external_data, callback=on_tensor, **options)


def _take_shared_weights(model: ir.Model, saved: ir.Model) -> None:
    """Replace weights that a saved model has in its data file by references to that file."""
    for name, value in model.graph.initializers.items():
        other = saved.graph.initializers.get(name)
        theirs = other.const_value if other is not None else None
        if not isinstance(theirs, ir.ExternalTensor):
            continue
        own = value.const_value
        assert own is not None  # noqa: S101  # for the type checker
        same = own.dtype == theirs.dtype and own.shape == theirs.shape
        if same and own.tobytes() == theirs.tobytes():
            value.const_value = theirs


def _users(data: Path) -> set[Path]:
    """The ONNX files next to a file of weights that name it."""
    users = set()
    for file in data.parent.glob("*.onnx") if data.exists() else ():
        with (
            contextlib.suppress(OSError, ValueError),  # an empty file cannot be mapped
            open_regular_file(file) as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(os.fsencode(data.name)) >= 0:
                users.add(file)
    return users


def _publish(folder: Path, path: Path, *, durable: bool) -> dict[Path, int]:
    """Move the finished files to their place, and remove weights that only the replaced file had.

    With weights in a second file the ONNX goes first and comes last: at no moment is there one
    next to weights that are not its own.
    """
    files = sorted(folder.iterdir(), key=lambda file: file.suffix != ".data")
    if durable:
        _synchronize(files)
    targets = {file: path.with_name(file.name) for file in files}
    sizes = {target: file.stat().st_size for file, target in targets.items()}
    weights = {target for target in targets.values() if target.suffix == ".data"}
    earlier = Path(f"{path}.data")  # of an earlier export that was larger
    if earlier not in weights and _users(earlier) == {path}:
        weights.add(earlier)
    if any(file.exists() for file in weights):
        for target in targets.values():
            if target not in weights:
                target.unlink(missing_ok=True)
    for file in weights - set(targets.values()):
        file.unlink(missing_ok=True)
    for file, target in targets.items():
        file.replace(target)
    if durable:
        _synchronize([path.parent])
    return sizes


def _synchronize(paths: Iterable[Path]) -> None:
    """Wait until files or the entries of folders are on disk."""
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:
            if path.is_dir():  # as Windows says of every folder
                continue
            raise
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
