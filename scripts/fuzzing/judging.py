"""What a random graph computes by the references, and whether a plan of it computes that, too."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cuda.bindings import driver
from differences import difference
from onnx import TensorProto, helper

from fuzzing.graphs import Array, RandomModel, random_model
from fuzzing.templates import TEMPLATES
from trt_native import BuildConfig, Precision, QuantizationSpec, Session, build_plan
from trt_native.cuda.arrays import DeviceArray
from trt_native.cuda.driver import check
from trt_native.errors import SpecError, TrtNativeError
from trt_native.plans.plan import Plan
from trt_native.shapes import ProfileSpec

__all__ = [
    "BAD",
    "PRECISIONS",
    "Result",
    "Task",
    "model_of",
    "rounded_model",
    "run_second_reference",
    "work",
]

BAD = ("wrong", "edge", "failed", "crashed", "stuck", "error", "interface")
"""Outcomes that are saved."""

_AGREE = 1e-4
_NOISE = 2.0**-20
_ALLOWANCE = 4.0
_FLOOR = 1e-3
_NOISY_REFERENCES = 4
_DIRT = 0x77  # in each byte


@dataclass(frozen=True)
class Mode:
    """How a precision is asked for, and judged.

    Attributes:
        precision: The precision of the build.
        limit: Largest relative L2 error of an output.
        rounding: ONNX type in which the rounding references hold all values.
        noise: Relative size of the noise that the values of some of them have.
        quantized: Whether the graphs have Q/DQ pairs.
        quantization: What the build quantizes.
    """

    precision: Precision
    limit: float
    rounding: int | None = None
    noise: float = _NOISE
    quantized: bool = False
    quantization: QuantizationSpec = field(default_factory=QuantizationSpec)


PRECISIONS = {
    "fp32": Mode(Precision.FP32, 1e-3),
    "fp16": Mode(Precision.FP16, 1e-2, TensorProto.FLOAT16, noise=2.0**-11),
    "bf16": Mode(Precision.BF16, 5e-2, TensorProto.BFLOAT16, noise=2.0**-8),
    "int8": Mode(Precision.FP32, 5e-2, noise=2.0**-10, quantized=True),
    "int8-weights": Mode(
        Precision.INT8_WEIGHTS,
        1e-1,
        TensorProto.FLOAT16,
        quantization=QuantizationSpec(min_coverage=0),
    ),
}
"""Precisions by name. ``int8`` is for graphs with Q/DQ pairs, which say what is rounded how."""


@dataclass(frozen=True)
class Task:
    """What a child does.

    Attributes:
        precision: One of :data:`PRECISIONS`.
        step: ``build`` alone, or ``run``: all.
        seed: Seed of a random graph; None where a model is given.
        nodes: The most operators of a random graph.
        without: Operators that it does not have.
        dense: Whether it has a few operators, and many outputs.
        model: A serialized model.
        inputs: Sets of inputs of it.
        dims: For each dynamic dimension its extents.
        expected: The outputs for each set.
    """

    precision: str
    step: str
    seed: int | None = None
    nodes: int = 8
    without: tuple[str, ...] = ()
    dense: bool = False
    model: bytes = b""
    inputs: tuple[Mapping[str, Array], ...] = ()
    dims: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    expected: tuple[Mapping[str, Array], ...] = ()


@dataclass(frozen=True)
class Result:
    """Outcome of a task.

    Attributes:
        seed: The seed.
        precision: The precision.
        status: ``right``, ``refused``, ``wrong``, ``edge`` (no further from the reference than one
            that rounds), ``failed`` (a plan that does not run), ``crashed``, ``stuck``, ``error``
            (an exception that is not one of the package's), ``interface`` (the plan's tensors are
            not the model's), ``unjudged`` (the references disagree), ``none`` (no graph),
            ``built``.
        detail: The error, or the worst output's.
        operators: The operators of the graph.
        task: The task with its model, where the outcome is one of :data:`BAD`.
    """

    seed: int | None
    precision: str
    status: str
    detail: str = ""
    operators: tuple[str, ...] = ()
    task: Task | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it, without the task."""
        return asdict(replace(self, task=None), dict_factory=_without_task)


def _without_task(items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in items if key != "task"}


def model_of(task: Task) -> RandomModel | None:
    """The random model of a task's seed; None where none came about."""
    assert task.seed is not None  # noqa: S101  # for the type checker
    left_out = {name.lower() for name in task.without}
    chosen = {name: one for name, one in TEMPLATES.items() if name.lower() not in left_out}
    quantized = PRECISIONS[task.precision].quantized
    return random_model(task.seed, chosen, task.nodes, quantized=quantized, dense=task.dense)


def work(task: Task) -> Result:
    """Do one task."""
    logging.getLogger("trt_native").setLevel(logging.CRITICAL)
    try:
        return _judged(task)
    except Exception as error:  # an outcome, too
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"
        )
        return Result(task.seed, task.precision, "error", text[:600], task=task)


def _judged(task: Task) -> Result:
    mode = PRECISIONS[task.precision]
    if task.seed is not None and not task.model:
        made = model_of(task)
        if made is None:
            return Result(task.seed, task.precision, "none")
        task = replace(
            task,
            model=made.model.SerializeToString(),
            inputs=made.inputs,
            expected=made.expected,
            dims=made.dims,
        )
    model = onnx.load_from_string(task.model)
    result = Result(
        task.seed, task.precision, "", operators=tuple(n.op_type for n in model.graph.node)
    )
    try:
        expected = run_second_reference(model, task.inputs)
        first = task.expected or _first_reference(model, task.inputs)
    except Exception as error:  # of either reference
        return replace(result, status="unjudged", detail=str(error)[:200])
    task = replace(task, expected=tuple(expected))
    for one, other in zip(expected, first, strict=True):
        worst = max((difference(one[name], other[name], floor=_FLOOR), name) for name in one)
        if worst[0] > _AGREE:
            text = f"the references disagree on {worst[1]}: {worst[0]:.1e}"
            return replace(result, status="unjudged", detail=text)
    return _built(task, result, mode, model)


def _built(task: Task, result: Result, mode: Mode, model: onnx.ModelProto) -> Result:
    config = BuildConfig(
        precision=mode.precision,
        profiles=_profiles(task.dims),
        quantization=mode.quantization,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(task.model)
        try:
            plan = build_plan(path, config)
        except TrtNativeError as error:
            return replace(result, status="refused", detail=str(error)[:600])
        except Exception as error:  # one of the package's was due
            text = f"{type(error).__name__}: {error}"[:600]
            return replace(result, status="error", detail=text, task=task)
    problem = _interface_problem(plan, task)
    if problem:
        return replace(result, status="interface", detail=problem, task=task)
    if task.step == "build":
        return replace(result, status="built")
    return _compared(plan, task, result, mode, model)


def _profiles(dims: Mapping[str, tuple[int, int]]) -> tuple[ProfileSpec, ...]:
    words = [f"{name}={min(pair)}:{pair[0]}:{max(pair)}" for name, pair in dims.items()]
    return (ProfileSpec.parse(words),) if words else ()


def _interface_problem(plan: Plan, task: Task) -> str:
    """The first difference between the tensors of a plan and those of the references."""
    assert plan.manifest is not None  # noqa: S101  # of a plan just built
    tensors = {tensor.name: tensor for tensor in plan.manifest.tensors}
    for inputs, expected in zip(task.inputs, task.expected, strict=True):
        for name, array in {**inputs, **expected}.items():
            tensor = tensors.get(name)
            if tensor is None:
                return f"no tensor {name}"
            if tensor.dtype != str(array.dtype):
                return f"{name}: {tensor.dtype} for {array.dtype}"
            if len(tensor.shape) != array.ndim or any(
                e not in (-1, wanted) for e, wanted in zip(tensor.shape, array.shape, strict=True)
            ):
                return f"{name}: {tensor.shape} for {array.shape}"
    return ""


def _compared(plan: Plan, task: Task, result: Result, mode: Mode, model: onnx.ModelProto) -> Result:
    try:
        with Session(plan, cuda_graphs=0) as session:
            sets = [_run(session, dict(inputs)) for inputs in task.inputs]
    except TrtNativeError as error:
        return replace(result, status="failed", detail=str(error)[:2500], task=task)
    errors = [
        {name: difference(found[name], array, floor=_FLOOR) for name, array in expected.items()}
        for found, expected in zip(sets, task.expected, strict=True)
    ]
    worst = max(((off, name) for one in errors for name, off in one.items()), default=(0.0, ""))
    status = "right" if worst[0] <= mode.limit else _verdict(errors, task, mode, model)
    detail = f"{worst[1]}: {worst[0]:.2g}" if worst[0] else ""
    return replace(result, status=status, detail=detail, task=task if status in BAD else None)


def _run(session: Session, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs, in memory that held other numbers before: what a plan leaves out shows."""
    first = session.run(inputs, device="cuda")
    into = {name: array for name, array in first.items() if isinstance(array, DeviceArray)}
    for array in into.values():
        if array.nbytes:
            check(driver.cuMemsetD8(array.pointer, _DIRT, array.nbytes))
    check(driver.cuCtxSynchronize())  # it is not ordered with the session's streams
    try:
        found = session.run(inputs, out=into, device="cuda")
    except SpecError:  # an output whose shape depends on the data takes no buffer
        found = first
    return {
        name: array.numpy() if isinstance(array, DeviceArray) else np.asarray(array)
        for name, array in found.items()
    }


def _verdict(
    errors: Sequence[Mapping[str, float]], task: Task, mode: Mode, model: onnx.ModelProto
) -> str:
    """``edge`` where references that round are as far off as the plan, else ``wrong``."""
    allowed = _rounding(model, task, mode)
    edge = all(
        off <= max(mode.limit, _ALLOWANCE * rounding[name])
        for one, rounding in zip(errors, allowed, strict=True)
        for name, off in one.items()
    )
    return "edge" if edge else "wrong"


# ---------------------------------------------------------------- references


def _first_reference(
    model: onnx.ModelProto, sets: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array]]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    names = [output.name for output in model.graph.output]
    with np.errstate(all="ignore"):
        return [
            dict(zip(names, map(np.asarray, evaluator.run(None, dict(inputs))), strict=True))
            for inputs in sets
        ]


def run_second_reference(
    model: onnx.ModelProto, sets: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array]]:
    """By ONNX Runtime, which has no part in the package, without its own fusions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in model.graph.output]
    return [dict(zip(names, session.run(None, dict(inputs)), strict=True)) for inputs in sets]


def _rounding(model: onnx.ModelProto, task: Task, mode: Mode) -> tuple[Mapping[str, float], ...]:
    """The largest errors of references in which every value is rounded or has noise.

    Where two values are nearly equal, another order of a sum decides which is the larger one, so
    that rounding alone does not show how far an index may be off.
    """
    largest = [dict.fromkeys(expected, 0.0) for expected in task.expected]
    for seed in range(_NOISY_REFERENCES + 1):
        if seed == 0 and mode.rounding is None:
            continue
        with contextlib.suppress(Exception):  # without it there is no excuse for an error
            found = run_second_reference(rounded_model(model, mode, seed), task.inputs)
            for one, expected, known in zip(found, task.expected, largest, strict=True):
                for name, array in expected.items():
                    off = difference(one[name], array, floor=_FLOOR)
                    known[name] = max(known[name], off)
    return tuple(largest)


def rounded_model(model: onnx.ModelProto, mode: Mode, seed: int) -> onnx.ModelProto:
    """The model with all its values rounded, and noise of a seed above 0 before that."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        v.name
        for v in (*typed.value_info, *typed.output, *typed.input)
        if v.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    renamed = {}
    for value in model.graph.input:
        if value.name in floats:
            renamed[value.name] = f"{value.name}__in"
            _add_rounding(result.graph, value.name, renamed[value.name], mode, seed)
    for node in model.graph.node:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.input[:] = [renamed.get(name, name) for name in node.input]
        new.output[:] = [f"{n}__raw" if n in floats else n for n in node.output]
        result.graph.node.append(new)
        for name in node.output:
            if name in floats:
                _add_rounding(result.graph, f"{name}__raw", name, mode, seed)
    return result


def _add_rounding(graph: onnx.GraphProto, source: str, target: str, mode: Mode, seed: int) -> None:
    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{target}__step_{len(graph.node)}"
        graph.node.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    value = source
    if seed:
        low, high = 1 - mode.noise, 1 + mode.noise
        own = float(1000 * seed + len(graph.node))
        noise = add("RandomUniformLike", value, low=low, high=high, seed=own)
        value = add("Mul", value, noise)
    if mode.rounding is not None:
        value = add("Cast", add("Cast", value, to=mode.rounding), to=TensorProto.FLOAT)
    graph.node[-1].output[0] = target
