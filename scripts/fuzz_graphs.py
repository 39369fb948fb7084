#!/usr/bin/env python3
"""Random ONNX graphs through builds and sessions, against two CPU references.

Graphs of a few of 146 operators with random attributes, dynamic dimensions and shared values are
computed by onnx.reference and by ONNX Runtime (an outside reference for this script alone; the
package does not use it). Where the two agree, the plan has to agree, too. Each failing graph is
shrunk while it fails, and saved. The seed alone determines a graph.

  fuzz_graphs.py run OUT --precision fp32 --count 5000      all of it, on a machine with a GPU
  fuzz_graphs.py run OUT --build-only                       without one: builds and interfaces
  fuzz_graphs.py run OUT --dense                            few operators a graph, many outputs
  fuzz_graphs.py check MODEL.onnx SET-0.npz --smallest M.onnx   one graph, and the smallest

OUT gets results.jsonl (what is in it already is not done again), failures.zip, summary.json and
summary.md.
"""

from __future__ import annotations

import io
import json
import os
import re
import threading
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from child_process import Child, Lost, for_each
from fuzzing.judging import BAD, PRECISIONS, Result, Task, model_of, work
from fuzzing.shrinking import shrink
from fuzzing.templates import TEMPLATES

from trt_native.cli.console import report_errors
from trt_native.cuda import require_gpu
from trt_native.debug.graph_text import graph_lines

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_PATIENCE_S = 25
_LIFETIME = 500  # tasks of a process, so that what leaks does not add up
_FIXED_DATE = (2020, 1, 1, 0, 0, 0)

Jobs = Annotated[int, typer.Option(min=1, help="Processes at a time.")]
Count = Annotated[int, typer.Option(min=1, help="Number of seeds, for each precision.")]
First = Annotated[int, typer.Option(help="The first seed.")]
Nodes = Annotated[int, typer.Option(min=2, help="The most operators of a graph.")]
Seconds = Annotated[float, typer.Option(help="Begin no graph after this time.")]
PrecisionNames = Annotated[
    list[str] | None, typer.Option("--precision", help=f"Of {', '.join(PRECISIONS)}. Repeatable.")
]
Without = Annotated[
    list[str] | None, typer.Option(help="Leave an operator out, such as RoiAlign. Repeatable.")
]
Dense = Annotated[bool, typer.Option("--dense", help="Few operators a graph, many outputs.")]
_CORES = os.cpu_count() or 1


class Record:
    """What came out so far, in a folder.

    Args:
        folder: Where to write.
        shrink_seconds: Time to shrink a failing graph; 0: none.
        most_shrunk: Number of failing graphs to shrink.
    """

    def __init__(self, folder: Path, shrink_seconds: float, most_shrunk: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._shrink_seconds = folder, shrink_seconds
        self._left = most_shrunk
        self._lock = threading.Lock()
        self.results: list[dict[str, Any]] = []
        path = folder / "results.jsonl"
        if path.exists():
            lines = path.read_text().splitlines()
            self.results = [json.loads(line) for line in lines if line.endswith("}")]
        self.done = {(r["precision"], r["seed"]) for r in self.results}

    def take(self, child: Child, task: Task) -> None:
        """Do a task in a child, and record the outcome."""
        answer = _ask(child, task)
        extra: dict[str, Any] = {}
        if answer.status in BAD and answer.task is not None and answer.task.model:
            extra = self._saved(child, answer)
        line = {**answer.to_json(), **extra}
        with self._lock:
            self.results.append(line)
            with (self.folder / "results.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _saved(self, child: Child, answer: Result) -> dict[str, Any]:
        assert answer.task is not None  # noqa: S101  # checked by the caller
        task = replace(answer.task, expected=())
        with self._lock:
            self._left -= 1
            wanted = self._left >= 0 and self._shrink_seconds > 0
            wanted = wanted and answer.status not in ("edge", "stuck")
        smallest = task
        if wanted:
            smallest = shrink(
                task, lambda one: _ask(child, one).status == answer.status, self._shrink_seconds
            )
        name = f"{answer.precision}-{answer.seed}-{answer.status}"
        with self._lock, zipfile.ZipFile(self.folder / "failures.zip", "a") as file:
            for part, one in (("", task), ("-smallest", smallest)):
                if part and smallest is task:
                    continue
                _write(file, f"{name}{part}.onnx", one.model)
                for index, inputs in enumerate(one.inputs):
                    buffer = io.BytesIO()
                    np.savez_compressed(buffer, **dict(inputs))  # type: ignore[arg-type]
                    _write(file, f"{name}{part}-{index}.npz", buffer.getvalue())
        graph = onnx.load_from_string(smallest.model).graph
        return {"smallest": [node.op_type for node in graph.node], "text": _text(graph)}


def _ask(child: Child, task: Task) -> Result:
    answer = child.ask(task)
    if isinstance(answer, Lost):
        return Result(task.seed, task.precision, answer.status, answer.detail, task=_known(task))
    assert isinstance(answer, Result)  # noqa: S101  # what work() returns
    if answer.status == "failed":
        child.close()  # a CUDA error can stay for the rest of the process
    return answer


def _known(task: Task) -> Task:
    """The task with its model, of which a lost child gave none."""
    if task.model or task.seed is None:
        return task
    made = model_of(task)
    if made is None:
        return task
    return replace(task, model=made.model.SerializeToString(), inputs=made.inputs, dims=made.dims)


def _write(file: zipfile.ZipFile, name: str, data: bytes) -> None:
    file.writestr(zipfile.ZipInfo(name, _FIXED_DATE), data, zipfile.ZIP_DEFLATED)


def _text(graph: onnx.GraphProto) -> list[str]:
    """The graph in lines, short enough for a summary."""
    return [line[:240] for line in graph_lines(graph)]


# ---------------------------------------------------------------- summary


def _kind(text: str) -> str:
    """An error without the names and numbers of one graph."""
    line = text.splitlines()[-1] if text.startswith("TensorRT") and "\n" in text else text
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+(\.\d+)?(e[+-]?\d+)?|\b[vcx]\d\w*", "_", line)[:150]


def summarize(record: Record, seconds: float) -> dict[str, Any]:
    """Write and return the summary."""
    results = record.results
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    operators: Counter[str] = Counter()
    for result in results:
        counts[result["precision"]][result["status"]] += 1
        if result["status"] in ("right", "built"):
            operators.update(set(result["operators"]))
    refusals = Counter(_kind(r["detail"]) for r in results if r["status"] == "refused")
    bad = [r for r in results if r["status"] in BAD]
    summary = {
        "counts": {precision: dict(found) for precision, found in counts.items()},
        "operators": len(operators),
        "refusals": dict(refusals.most_common(60)),
        "failures": sorted(bad, key=lambda r: (r["status"], len(r.get("smallest", [])))),
        "seconds": round(seconds, 1),
    }
    (record.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (record.folder / "summary.md").write_text("\n".join(_markdown(summary)) + "\n")
    return summary


def _markdown(summary: dict[str, Any]) -> Iterator[str]:
    yield "# Random graphs\n"
    statuses = sorted({status for found in summary["counts"].values() for status in found})
    yield "| precision | " + " | ".join(statuses) + " |"
    yield "|---" * (len(statuses) + 1) + "|"
    for precision, found in summary["counts"].items():
        yield f"| {precision} | " + " | ".join(str(found.get(s, 0)) for s in statuses) + " |"
    yield f"\n{summary['operators']} operators in graphs that came out right or built;"
    yield f"{summary['seconds']} s.\n\n## Refused\n"
    for text, count in summary["refusals"].items():
        yield f"- {count}: {text}"
    yield "\n## Failures\n"
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for failure in summary["failures"]:
        key = failure["status"], *failure.get("smallest", [_kind(failure["detail"])])
        groups[key].append(failure)
    for (status, *words), found in sorted(groups.items(), key=lambda item: -len(item[1])):
        yield f"- {len(found)} {status}: {' '.join(words)}"
        one = found[0]
        yield f"  - {one['precision']} seed {one['seed']}: {one['detail'][:200]}"
        if status != "edge":
            yield from (f"    - `{line}`" for line in one.get("text", []))


# ---------------------------------------------------------------- commands


def _precisions(names: list[str] | None) -> list[str]:
    chosen = names or ["fp32"]
    for name in chosen:
        if name not in PRECISIONS:
            raise typer.BadParameter(f"{name}: choose from {', '.join(PRECISIONS)}")
    return chosen


def _seeds(names: list[str], first: int, count: int, like: Task) -> Iterator[Task]:
    known = {name.lower() for name in TEMPLATES}
    if unknown := [name for name in like.without if name.lower() not in known]:
        raise typer.BadParameter(f"--without {unknown[0]}: not among the operators")
    for seed in range(first, first + count):
        for name in names:
            yield replace(like, precision=name, seed=seed)


def _served(record: Record, tasks: Iterable[Task], jobs: int, seconds: float) -> None:
    started = time.monotonic()

    def serve(child: Child, task: Task) -> None:
        if time.monotonic() - started < seconds and (task.precision, task.seed) not in record.done:
            record.take(child, task)

    for_each(serve, tasks, work, jobs=jobs, patience_s=_PATIENCE_S, lifetime=_LIFETIME)
    summary = summarize(record, time.monotonic() - started)
    for precision, found in summary["counts"].items():
        print(f"{precision}: " + ", ".join(f"{n} {s}" for s, n in Counter(found).most_common()))
    print(f"{summary['operators']} operators; written to {record.folder}")
    if any(r["status"] in BAD and r["status"] != "edge" for r in record.results):
        raise typer.Exit(1)


@app.command()
@report_errors
def run(
    out: Path,
    precision: PrecisionNames = None,
    count: Count = 1000,
    first: First = 0,
    nodes: Nodes = 8,
    jobs: Jobs = _CORES,
    seconds: Seconds = 1e9,
    shrink_seconds: Annotated[float, typer.Option(help="Time to shrink a failing graph.")] = 20,
    most_shrunk: Annotated[int, typer.Option(help="Number of failing graphs to shrink.")] = 100,
    build_only: Annotated[bool, typer.Option("--build-only", help="Without a GPU.")] = False,
    without: Without = None,
    dense: Dense = False,
) -> None:
    """Build and run random graphs."""
    if not build_only:
        require_gpu()
    record = Record(out, shrink_seconds, most_shrunk)
    step = "build" if build_only else "run"
    like = Task("", step, nodes=nodes, without=tuple(without or ()), dense=dense)
    _served(record, _seeds(_precisions(precision), first, count, like), jobs, seconds)


@app.command()
@report_errors
def check(
    model: Path,
    inputs: Annotated[list[Path] | None, typer.Argument(help="Each an .npz of one set.")] = None,
    precision: str = "fp32",
    dim: Annotated[list[str] | None, typer.Option(help="Without inputs: NAME=EXTENT.")] = None,
    build_only: Annotated[bool, typer.Option("--build-only", help="Without a GPU.")] = False,
    smallest: Annotated[Path | None, typer.Option(help="Shrink; write the smallest here.")] = None,
    seconds: Annotated[float, typer.Option(help="Time to shrink.")] = 60,
) -> None:
    """Build and run one graph, with each of its sets of inputs, or with a random one."""
    proto = onnx.load(model)
    sets = [_arrays(path) for path in inputs or []] or [_random_inputs(proto, dim or [])]
    dims: dict[str, tuple[int, int]] = {}
    for value in proto.graph.input:
        for axis, one in enumerate(value.type.tensor_type.shape.dim):
            if one.dim_param and value.name in sets[0]:
                extents = [arrays[value.name].shape[axis] for arrays in sets]
                dims[one.dim_param] = extents[0], extents[-1]
    step = "build" if build_only else "run"
    task = Task(precision, step, model=proto.SerializeToString(), inputs=tuple(sets), dims=dims)
    child = Child(work, _PATIENCE_S)
    answer = _ask(child, task)
    print(answer.status, answer.detail)
    if answer.status in BAD and smallest is not None:
        found = shrink(task, lambda one: _ask(child, one).status == answer.status, seconds)
        smallest.write_bytes(found.model)
        print("\n".join(_text(onnx.load_from_string(found.model).graph)))
    child.close()
    raise typer.Exit(answer.status in BAD)


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _random_inputs(model: onnx.ModelProto, words: list[str]) -> dict[str, Any]:
    extents = {name: int(extent) for name, _, extent in (word.partition("=") for word in words)}
    generator = np.random.default_rng(0)
    constants = {tensor.name for tensor in model.graph.initializer}
    arrays = {}
    for value in model.graph.input:
        if value.name not in constants:
            kind = value.type.tensor_type
            shape = [extents.get(d.dim_param, d.dim_value) for d in kind.shape.dim]
            numbers = generator.standard_normal(shape)
            arrays[value.name] = numbers.astype(
                onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            )
    return arrays


if __name__ == "__main__":
    app()
