#!/usr/bin/env python3
"""ONNX's own node tests through a build and a session, or without a GPU through a build alone.

Each test is built in FP32, one with reduced types as it is (precision auto), one in FP64 as FP32.
Where that is refused it is built with the values of small integer inputs as those of shapes, and
then with all inputs but the first as constants. The outputs are compared with those that ONNX
gives. What TensorRT refuses is counted by operator; what it computes
otherwise than ONNX says, and what crashes or is stuck, is named. A wrong result makes the exit code
1. ``--bare`` builds the models by TensorRT's own parser and builder, without the product.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import multiprocessing
import os
import queue
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import environment  # noqa: F401  (ends with one line where the package is not installed)
import numpy as np
import onnx
import onnx_ir as ir
import typer
from differences import difference
from onnx import TensorProto, numpy_helper

from trt_native import BuildConfig, Plan, Precision, Session, build_plan
from trt_native.backends.registry import load_backend
from trt_native.cli.console import report_errors, stdout, table
from trt_native.cuda import gpu_info
from trt_native.errors import TrtNativeError
from trt_native.graph.types import is_reduced
from trt_native.shapes import ProfileSpec

LIMIT = 2e-3  # relative L2 error, or error where nothing else is expected: room for kernels
REDUCED_LIMIT = 2e-2  # of tests with FP16 or BF16 values
PATIENCE_S = 60
# Of optimizers and other domains, of types that are not tensors, and the same by other operators.
LEFT_OUT = (
    "*_expanded*",
    "*string*",
    "*sequence*",
    "*_seq*",
    "*optional*",
    "*training*",
    "*ai_onnx_ml*",
)
RANDOM = ("Bernoulli", "RandomNormalLike", "RandomUniformLike")
STATUSES = ("right", "wrong", "built", "refused", "no tensors", "crashed", "stuck")

Arrays = dict[str, "np.ndarray[Any, np.dtype[Any]]"]


@dataclass(frozen=True)
class Result:
    """Outcome of a test.

    Attributes:
        name: ONNX's name of it.
        operator: That of its first node.
        status: One of :data:`STATUSES`; ``built`` where nothing could run it, or its values are
            random.
        detail: The error, or the worst output's.
        seconds: Its duration.
    """

    name: str
    operator: str
    status: str
    detail: str = ""
    seconds: float = 0.0


def collected(only: str = "*") -> dict[str, Any]:
    """ONNX's node tests that count, by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return {
        case.name: case
        for case in cases
        if fnmatch.fnmatch(case.name, only)
        and not any(fnmatch.fnmatch(case.name, p) for p in LEFT_OUT)
    }


def work(pipe: Connection, only: str, runs: bool, bare: bool) -> None:
    """Answer names of tests with results, until the other end is closed."""
    logging.getLogger("trt_native").setLevel(logging.CRITICAL)
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # TensorRT's parser writes there
    cases = collected(only)
    pipe.send(None)
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                name = pipe.recv()
            except EOFError:
                return
            started = time.perf_counter()
            status, detail = run(cases[name], Path(folder) / "model.onnx", runs, bare)
            operator = operator_of(cases[name])
            pipe.send(Result(name, operator, status, detail, time.perf_counter() - started))


def operator_of(case: Any) -> str:
    """The operator that a test is about."""
    return str(case.model.graph.node[0].op_type)


def run(case: Any, path: Path, runs: bool, bare: bool) -> tuple[str, str]:
    """Build one test and, where there is a GPU, run it; returns its status and a detail."""
    given, wanted = ([np.asarray(value) for value in values] for values in case.data_sets[0])
    initializers = {tensor.name for tensor in case.model.graph.initializer}
    names = [value.name for value in case.model.graph.input if value.name not in initializers]
    outputs = [value.name for value in case.model.graph.output]
    if any(array.dtype == object for array in (*given, *wanted)):
        return "no tensors", ""
    inputs = dict(zip(names, given, strict=False))
    try:
        plan, inputs = built(case.model, inputs, path, bare)
        if not runs or plan is None:
            return "built", ""
        with Session(plan) as session:
            kinds = {tensor.name: tensor.dtype for tensor in session.engine.inputs}
            found = session.run({name: inputs[name].astype(kinds[name]) for name in kinds})
    except TrtNativeError as error:
        return "refused", str(error)
    if operator_of(case) in RANDOM:
        return "built", "its values are random"
    reduced = any(
        array.dtype.itemsize < 4 and array.dtype.kind in "fV" for array in (*given, *wanted)
    )
    limit = REDUCED_LIMIT if reduced else LIMIT
    worst = max(
        (0.0 if rounds_alike(found[name], expected) else difference(found[name], expected), name)
        for name, expected in zip(outputs, wanted, strict=False)
        if name
    )
    return ("right" if worst[0] <= limit else "wrong"), f"{worst[1]}: {worst[0]:.1e}"


def rounds_alike(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    """Whether 8-bit values differ by a step in one place at most: a tie may round either way."""
    if expected.dtype.kind not in "iu" or expected.dtype.itemsize > 1:
        return False
    steps = np.abs(found.astype(int) - expected.astype(int))
    return bool(steps.sum() <= 1)


def built(
    model: onnx.ModelProto, inputs: Arrays, path: Path, bare: bool
) -> tuple[Plan | None, Arrays]:
    """A plan, and the inputs that it has; no plan where TensorRT alone built it."""
    single = in_single(model)
    try:
        return build(single, path, bare), inputs
    except TrtNativeError as error:
        failure = error
    values = [name for name, array in inputs.items() if array.dtype.kind == "i" and array.ndim < 2]
    if values and not bare:
        try:
            return build(single, path, bare, {name: inputs[name] for name in values}), inputs
        except TrtNativeError:
            pass
    if len(inputs) < 2:
        raise failure
    first, *rest = inputs
    return build(with_constants(single, inputs, rest), path, bare), {first: inputs[first]}


def build(
    model: onnx.ModelProto, path: Path, bare: bool, values: Arrays | None = None
) -> Plan | None:
    """A plan of a model: in FP32, or in its own reduced types; ``values`` are of shape inputs."""
    onnx.save(model, path)
    if bare:
        build_bare(path)
        return None
    texts = [f"{name}={'x'.join(map(str, np.ravel(v)))}" for name, v in (values or {}).items()]
    reduced = is_reduced(ir.from_proto(onnx.load(path)))
    config = BuildConfig(
        precision=Precision.AUTO if reduced else Precision.FP32,
        profiles=(ProfileSpec.parse([], texts),) if texts else (),
    )
    return build_plan(path, config)


def build_bare(path: Path) -> None:
    """Build a model by TensorRT's own parser and builder.

    Raises:
        TrtNativeError: it does not take the model.
    """
    trt = load_backend()._trt  # type: ignore[attr-defined]
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(path)):
        raise TrtNativeError("not parsed", [parser.get_error(0).desc()])
    if builder.build_serialized_network(network, builder.create_builder_config()) is None:
        raise TrtNativeError("not built")


def in_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with FP64 inputs, outputs and constants as FP32, where all of a test's are FP64."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    values = (*copied.graph.input, *copied.graph.output, *copied.graph.value_info)
    for value in values:
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in copied.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in copied.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT
    return copied


def with_constants(model: onnx.ModelProto, inputs: Arrays, names: list[str]) -> onnx.ModelProto:
    """A copy with inputs as constants."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    kept = [value for value in model.graph.input if value.name not in names]
    del fixed.graph.input[:]
    fixed.graph.input.extend(kept)
    for name in names:
        array = inputs[name]
        if types[name] == TensorProto.FLOAT:
            array = array.astype(np.float32)
        fixed.graph.initializer.append(numpy_helper.from_array(array, name))
    return fixed


@contextmanager
def worker(only: str, runs: bool, bare: bool) -> Iterator[tuple[Any, Connection]]:
    """A process that runs tests; it is killed when the block ends."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=work, args=(other, only, runs, bare), daemon=True)
    process.start()
    other.close()
    try:
        yield process, pipe
    finally:
        pipe.close()
        process.kill()
        process.join()


def supervise(
    names: queue.SimpleQueue[str | None],
    operators: Mapping[str, str],
    results: list[Result],
    options: tuple[str, bool, bool],
) -> None:
    """Run tests in a process of their own, and in a new one after a crash."""
    name = names.get()
    while name is not None:
        with worker(*options) as (process, pipe):
            pipe.recv()  # it has made the tests
            while name is not None:
                found = answer(process, pipe, name, operators[name])
                results.append(found)
                name = names.get()
                if found.status in ("crashed", "stuck"):
                    break


def answer(process: Any, pipe: Connection, name: str, operator: str) -> Result:
    """Let a process run one test."""
    try:
        pipe.send(name)
        if pipe.poll(PATIENCE_S):
            found: Result = pipe.recv()
            return found
    except (EOFError, BrokenPipeError, ConnectionResetError):
        process.join()
        return Result(name, operator, "crashed", f"exit code {process.exitcode}")
    return Result(name, operator, "stuck", f"for {PATIENCE_S} s")


def operator_rows(results: list[Result]) -> list[tuple[object, ...]]:
    """For each operator of which not all is right, how many tests have each status."""
    counts: dict[str, Counter[str]] = {}
    for result in results:
        if result.status != "no tensors":
            counts.setdefault(result.operator, Counter())[result.status] += 1
    return [
        (operator, counted.total(), *(counted[status] or "" for status in STATUSES[:4]),
         counted["crashed"] + counted["stuck"] or "")
        for operator, counted in sorted(counts.items())
        if counted["right"] + counted["built"] < counted.total()
    ]  # fmt: skip


def markdown_rows(alone: list[Result], ours: list[Result]) -> list[str]:
    """The table of docs/coverage.md: for each operator of which not all builds, what does."""
    counts: dict[str, Counter[str]] = {}
    for column, results in (("alone", alone), ("ours", ours)):
        for result in results:
            counted = counts.setdefault(result.operator, Counter())
            counted[column] += result.status in ("built", "right")
            counted["tests"] += column == "ours" and result.status != "no tensors"
    return [
        f"| `{operator}` | {c['tests']} | {c['alone']} | {c['ours']} |"
        for operator, c in sorted(counts.items())
        if min(c["alone"], c["ours"]) < c["tests"]
    ]


@report_errors
def main(
    only: Annotated[str, typer.Option(help="Pattern of the tests' names.")] = "*",
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 8,
    output: Annotated[Path | None, typer.Option(help="Write all results as JSON.")] = None,
    beside: Annotated[
        Path | None,
        typer.Option(help="Results of --bare --output, to print beside, as docs/coverage.md does."),
    ] = None,
    build_only: Annotated[
        bool, typer.Option("--build-only", help="Build, and run nothing; always so without a GPU.")
    ] = False,
    bare: Annotated[
        bool,
        typer.Option("--bare", help="Build by TensorRT's own parser and builder; run nothing."),
    ] = False,
) -> None:
    """Run the tests and report their outcomes."""
    gpu, backend = gpu_info(), load_backend()
    runs = gpu is not None and not build_only and not bare
    cases = collected(only)
    operators = {name: operator_of(case) for name, case in cases.items()}
    names: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for name in (*cases, *[None] * jobs):
        names.put(name)
    results: list[Result] = []
    options = (only, runs, bare)
    arguments = (names, operators, results, options)
    threads = [threading.Thread(target=supervise, args=arguments) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.sort(key=lambda result: result.name)
    named = [r for r in results if r.status in ("wrong", "crashed", "stuck")]
    where = f"{gpu.name}, CUDA {gpu.driver}" if gpu else "no GPU"
    builder = "TensorRT alone" if bare else "trt-native"
    title = f"{builder}: {backend.product} {backend.version}, {where}"
    columns = ("operator", "tests", *STATUSES[:4], "crashed, stuck")
    table(title, columns, operator_rows(results))
    if named:
        table("Not as ONNX says", ("test", "", ""), [(r.name, r.status, r.detail) for r in named])
    counts = Counter(result.status for result in results)
    counted = len(results) - counts["no tensors"]
    parts = (f"{counts[status]} {status}" for status in STATUSES if counts[status])
    stdout.print(f"{counted} tests: {', '.join(parts)}")
    if beside is not None:
        alone = [Result(**result) for result in json.loads(beside.read_text())]
        stdout.print("\n".join(markdown_rows(alone, results)))
    if output is not None:
        output.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    if counts["wrong"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
