#!/usr/bin/env python3
"""Find the tensor at which a broken fusion, or another spelling, makes a wrong plan right.

  probe_breaks.py MODEL.onnx --precision fp16 --dim b=2

Builds the model once for each tensor between its nodes, with the fusion broken there, once for
each spelling of images made of tokens, and once for each kind of node kept in FP32. Every plan is
run on the same random inputs, of the smallest and of the largest shapes, and compared with
``trt_native.reference``. Needs a GPU; with ``--build-only`` it only builds.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from child_process import Child, for_each
from differences import difference
from onnx import TensorProto, numpy_helper

from trt_native import BuildConfig, Precision, Session, build_plan
from trt_native.errors import TrtNativeError
from trt_native.reference.evaluator import evaluator
from trt_native.shapes import ProfileSpec

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A plan to build and to run.

    Attributes:
        label: The name in the table.
        path: The model.
        config: How to build it.
        sets: Inputs and outputs for each shape.
        runs: Whether to run the plan.
    """

    label: str
    path: Path
    config: BuildConfig
    sets: tuple[tuple[dict[str, Array], dict[str, Array]], ...]
    runs: bool


def work(task: Task) -> tuple[str, float]:
    """The label, and the largest relative error of an output; infinite where there is no plan."""
    try:
        plan = build_plan(task.path, task.config)
        if not task.runs:
            return task.label, 0.0
        with Session(plan, cuda_graphs=0) as session:
            found = [session.run(inputs) for inputs, _ in task.sets]
    except TrtNativeError as error:
        return f"{task.label}: {error.message}"[:160], float("inf")
    return task.label, max(
        difference(outputs[name], array)
        for outputs, (_, expected) in zip(found, task.sets, strict=True)
        for name, array in expected.items()
    )


# ---------------------------------------------------------------- spellings


def _static_batches(model: onnx.ModelProto) -> int:
    """Reshape to constants, 0 for the batch that was computed."""
    typed = {
        v.name: v for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    }
    changed = 0
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.output[0] not in typed:
            continue
        dims = [d.dim_value for d in typed[node.output[0]].type.tensor_type.shape.dim]
        if len(dims) < 3 or 0 in dims[1:]:
            continue
        name = f"{node.output[0]}__shape"
        if node.input[1].endswith(("__shape", "__spelled")):
            continue
        shape = np.array([0, *dims[1:]], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(shape, name))
        node.input[1] = name
        del node.attribute[:]
        changed += 1
    return changed


def _reshape_first(model: onnx.ModelProto) -> int:
    """Tokens to (N, H, W, C) and then to (N, C, H, W), not the axes first and then the shape."""
    _static_batches(model)
    changed = 0
    for transpose, reshape in _pairs(model, "Transpose", "Reshape"):
        dims = _dims(model, reshape)
        if dims is None or len(dims) != 4:
            continue
        _set_shape(model, reshape, [0, dims[2], dims[3], dims[1]])
        _swap(transpose, reshape, [0, 3, 1, 2])
        changed += 1
    return changed


def _reshape_last(model: onnx.ModelProto) -> int:
    """An image to (N, H, W, C) and then to tokens."""
    _static_batches(model)
    changed = 0
    for reshape, transpose in _pairs(model, "Reshape", "Transpose"):
        dims = _dims(model, reshape)
        perm = next(list(a.ints) for a in transpose.attribute if a.name == "perm")
        if dims is None or len(dims) != 3 or perm != [0, 2, 1]:
            continue
        made = {o: n.op_type for n in model.graph.node for o in n.output}
        if made.get(reshape.input[0]) != "Conv":
            continue
        _set_shape(model, reshape, [0, dims[2], dims[1]])
        _swap(reshape, transpose, None, perm=[0, 2, 3, 1])
        changed += 1
    return changed


def _both(model: onnx.ModelProto) -> int:
    return _reshape_first(model) + _reshape_last(model)


def _pairs(
    model: onnx.ModelProto, first: str, second: str
) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    made = {output: node for node in model.graph.node for output in node.output}
    return [
        (made[node.input[0]], node)
        for node in model.graph.node
        if node.op_type == second and node.input[0] in made and made[node.input[0]].op_type == first
    ]


def _dims(model: onnx.ModelProto, reshape: onnx.NodeProto) -> list[int] | None:
    for tensor in model.graph.initializer:
        if tensor.name == reshape.input[1]:
            return [int(extent) for extent in numpy_helper.to_array(tensor)]
    return None


def _set_shape(model: onnx.ModelProto, reshape: onnx.NodeProto, dims: list[int]) -> None:
    name = f"{reshape.output[0]}__spelled"
    model.graph.initializer.append(numpy_helper.from_array(np.array(dims, np.int64), name))
    reshape.input[1] = name


def _swap(
    first: onnx.NodeProto,
    second: onnx.NodeProto,
    new_perm: list[int] | None,
    perm: list[int] | None = None,
) -> None:
    """Let the second node, as a node of the first one's kind, follow what it follows now."""
    one, two = onnx.NodeProto(), onnx.NodeProto()
    one.CopyFrom(second)
    two.CopyFrom(first)
    one.input[0], two.input[0] = first.input[0], first.output[0]
    one.output[0], two.output[0] = first.output[0], second.output[0]
    transpose = two if first.op_type == "Transpose" else one
    del transpose.attribute[:]
    transpose.attribute.append(onnx.helper.make_attribute("perm", new_perm or perm))
    first.CopyFrom(one)
    second.CopyFrom(two)


SPELLINGS: dict[str, Callable[[onnx.ModelProto], int]] = {
    "constant batches": _static_batches,
    "reshape, then transpose": _reshape_first,
    "transpose, then reshape back": _reshape_last,
    "both of these": _both,
}


# ---------------------------------------------------------------- running


def variants(
    model: onnx.ModelProto, path: Path, config: BuildConfig, folder: Path
) -> Iterator[tuple[str, Path, BuildConfig]]:
    """Labels, models and configurations."""
    yield "as it is", path, config
    for label, spell in SPELLINGS.items():
        spelled = onnx.ModelProto()
        spelled.CopyFrom(model)
        if spell(spelled):
            target = folder / f"{label}.onnx"
            onnx.save(spelled, target)
            yield label, target, config
    kinds = {node.op_type for node in model.graph.node}
    if config.precision is not Precision.FP32:
        for kind in sorted(kinds & {"Conv", "MatMul", "LayerNormalization", "Erf", "Transpose"}):
            yield f"{kind} in FP32", path, dataclasses.replace(config, keep_fp32=(f"op:{kind}",))
    typed = onnx.shape_inference.infer_shapes(model).graph
    found = {
        value.name
        for value in typed.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
        or len(value.type.tensor_type.shape.dim) > 1  # not a shape
    }
    for node in model.graph.node:
        for name in node.output:
            if name in found:
                broken = dataclasses.replace(config, break_fusions=(name,))
                yield f"broken at {name} ({node.op_type})", path, broken


def reference(
    model: onnx.ModelProto, dims: dict[str, int]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Random inputs, and the outputs for them."""
    generator = np.random.default_rng(0)
    inputs = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or dims[d.dim_param] for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        is_float = kind.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
        numbers = generator.standard_normal(shape) if is_float else generator.integers(0, 3, shape)
        inputs[value.name] = numbers.astype(dtype)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    names = [output.name for output in graph.output]
    return inputs, dict(zip(names, evaluator(graph, opsets).run(None, inputs), strict=True))


def main(
    model: Annotated[Path, typer.Argument(help="The model.")],
    precision: str = "fp16",
    dim: Annotated[list[str] | None, typer.Option(help="NAME=EXTENT or NAME=MIN:OPT:MAX.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = os.cpu_count() or 1,
    limit: Annotated[float, typer.Option(help="Relative error of a right plan.")] = 1e-2,
    build_only: Annotated[bool, typer.Option("--build-only", help="No GPU.")] = False,
) -> None:
    """Print the error of each variant, the right ones first."""
    proto = onnx.load(model)
    dims = {name: extents.split(":") for name, extents in (word.split("=") for word in dim or [])}
    corners = [{name: int(extents[end]) for name, extents in dims.items()} for end in (0, -1)]
    sets = tuple(reference(proto, corner) for corner in corners)
    config = BuildConfig(
        precision=Precision(precision), profiles=(ProfileSpec.parse(dim),) if dim else ()
    )
    results: list[tuple[str, float]] = []

    def serve(child: Child, task: Task) -> None:
        answer = child.ask(task)
        results.append(answer if isinstance(answer, tuple) else (f"{task.label}: lost", np.inf))

    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            Task(label, path, one, sets, not build_only)
            for label, path, one in variants(proto, model, config, Path(folder))
        ]
        for_each(serve, tasks, work, jobs=jobs, patience_s=120)
    for label, error in sorted(results, key=lambda pair: pair[1]):
        print(f"{'right' if error <= limit else 'wrong'} {error:8.2g}  {label}")


if __name__ == "__main__":
    typer.run(main)
