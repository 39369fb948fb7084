#!/usr/bin/env python3
"""ONNX's own node tests through a build and a session; needs a GPU and takes about two minutes.

Each test is built in FP32, or where that is refused with all inputs but the first as constants, and
its outputs are compared with those that ONNX gives. What TensorRT refuses is counted; what it
computes otherwise than ONNX says is named, and makes the exit code 1.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import multiprocessing
import queue
import tempfile
import threading
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import environment  # noqa: F401  (ends with one line where the package is not installed)
import numpy as np
import onnx
import typer
from differences import difference
from onnx import numpy_helper

from trt_native import BuildConfig, Precision, Session, build_plan
from trt_native.cli.console import report_errors, stdout, table
from trt_native.cuda import require_gpu
from trt_native.errors import TrtNativeError

LIMIT = 2e-3  # relative L2 error, or error where nothing else is expected: room for kernels
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

Arrays = dict[str, "np.ndarray[Any, np.dtype[Any]]"]


@dataclass(frozen=True)
class Result:
    """Outcome of a test.

    Attributes:
        name: ONNX's name of it.
        status: ``right``, ``wrong``, ``refused``, ``no tensors``, ``crashed`` or ``stuck``.
        detail: The error, or the worst output's.
    """

    name: str
    status: str
    detail: str = ""


def collected() -> dict[str, Any]:
    """ONNX's node tests, by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases(None)}


def work(pipe: Connection) -> None:
    """Answer names of tests with results, until the other end is closed."""
    logging.getLogger("trt_native").setLevel(logging.ERROR)
    cases = collected()
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                name = pipe.recv()
            except EOFError:
                return
            pipe.send(run(cases[name], Path(folder) / "model.onnx"))


def run(case: Any, path: Path) -> Result:
    """Build and run one test."""
    given, wanted = ([np.asarray(value) for value in values] for values in case.data_sets[0])
    initializers = {tensor.name for tensor in case.model.graph.initializer}
    names = [value.name for value in case.model.graph.input if value.name not in initializers]
    outputs = [value.name for value in case.model.graph.output]
    if any(array.dtype == object for array in (*given, *wanted)):
        return Result(case.name, "no tensors")
    inputs = dict(zip(names, given, strict=False))
    try:
        plan, inputs = built(case.model, inputs, path)
        with Session(plan) as session:
            types = {tensor.name: tensor.dtype for tensor in session.engine.inputs}
            found = session.run({name: inputs[name].astype(types[name]) for name in types})
    except TrtNativeError as error:
        return Result(case.name, "refused", str(error))
    worst = max(
        (difference(found[name], expected), name)
        for name, expected in zip(outputs, wanted, strict=False)
        if name
    )
    text = f"{worst[1]}: {worst[0]:.1e}"
    return Result(case.name, "right" if worst[0] <= LIMIT else "wrong", text)


def built(model: onnx.ModelProto, inputs: Arrays, path: Path) -> tuple[Any, Arrays]:
    """A plan, and the inputs that it has."""
    onnx.save(model, path)
    config = BuildConfig(precision=Precision.FP32)
    try:
        return build_plan(path, config), inputs
    except TrtNativeError:
        if len(inputs) < 2:
            raise
        first, *rest = inputs
        fixed = onnx.ModelProto()
        fixed.CopyFrom(model)
        kept = [value for value in model.graph.input if value.name not in rest]
        del fixed.graph.input[:]
        fixed.graph.input.extend(kept)
        fixed.graph.initializer.extend(numpy_helper.from_array(inputs[n], n) for n in rest)
        onnx.save(fixed, path)
        return build_plan(path, config), {first: inputs[first]}


def supervise(names: queue.SimpleQueue[str | None], results: list[Result]) -> None:
    """Run tests in a process of their own, and in a new one after a crash."""
    context = multiprocessing.get_context("spawn")
    process, pipe = None, None
    while (name := names.get()) is not None:
        if process is None or pipe is None:
            pipe, other = context.Pipe()
            process = context.Process(target=work, args=(other,), daemon=True)
            process.start()
            other.close()
        try:
            pipe.send(name)
            if pipe.poll(PATIENCE_S):
                results.append(pipe.recv())
                continue
            results.append(Result(name, "stuck", f"for {PATIENCE_S} s"))
        except (EOFError, BrokenPipeError):
            process.join()
            results.append(Result(name, "crashed", f"exit code {process.exitcode}"))
        process.kill()
        process = None
    if process is not None and pipe is not None:
        pipe.close()
        process.join()


@report_errors
def main(
    only: Annotated[str, typer.Option(help="Pattern of the tests' names.")] = "*",
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 8,
    output: Annotated[Path | None, typer.Option(help="Write all results as JSON.")] = None,
) -> None:
    """Run the tests and report their outcomes."""
    gpu = require_gpu()
    names: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for name in collected():
        if fnmatch.fnmatch(name, only) and not any(fnmatch.fnmatch(name, p) for p in LEFT_OUT):
            names.put(name)
    results: list[Result] = []
    threads = [threading.Thread(target=supervise, args=(names, results)) for _ in range(jobs)]
    for thread in threads:
        names.put(None)
        thread.start()
    for thread in threads:
        thread.join()
    named = sorted(
        (r for r in results if r.status in ("wrong", "crashed", "stuck")), key=lambda r: r.name
    )
    rows = [(r.name, r.status, r.detail) for r in named]
    table(f"{gpu.name}, CUDA {gpu.driver}", ("test", "", ""), rows)
    counts = Counter(result.status for result in results)
    stdout.print(", ".join(f"{count} {status}" for status, count in counts.most_common()))
    if output is not None:
        output.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    if any(r.status == "wrong" for r in named):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
