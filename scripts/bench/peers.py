#!/usr/bin/env python3
"""Compare ways to run a plan: a session, bare TensorRT, Polygraphy, trtutils and ONNX Runtime.

Every way has processes of its own (peer_process.py), at its fastest documented settings, warmed in
the way that serves it best, with the same plan, which is built once for each shape. Each process
compares its results with PyTorch's and with those of bare TensorRT before it times anything.
Rounds alternate in order. A way that cannot be taken is named with the reason. The exit code is 1
if one is wrong or fails.

Needs a GPU, PyTorch, and the peers that are to be compared, each optional: Polygraphy, trtutils
(with cv2ext and opencv-python-headless), onnxruntime and onnxruntime-ep-nv-tensorrt-rtx-cu12. Of
the last that release is needed that brings the plan's TensorRT-RTX.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from convolutions import SHAPES, TOLERANCE, make_model, reference
from machine import gpu_facts, versions
from peer_process import FLOOR, PASS, WAYS, Setup
from processes import ProcessError, Row, read_lines

from trt_native import BuildConfig, Precision, build_plan
from trt_native.backends.registry import BACKENDS, load_backend
from trt_native.cli.console import report_errors, stderr, stdout
from trt_native.errors import SpecError

PROCESS = Path(__file__).with_name("peer_process.py")
PERCENTILES = (50, 90, 99)
OURS = {"GPU": "session", "host": "session-map"}  # what the peers' best is divided by
WANTED = {"GPU": 2, "host": 4}  # of every peer; bare TensorRT is the floor, and none
MEMORIES = {"GPU": "inputs and outputs on the GPU", "host": "NumPy arrays"}
PACKAGES = (
    "polygraphy",
    "trtutils",
    "onnxruntime",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
)
_FACTS = ("name", "compute_cap", "driver_version", "clocks.max.sm", "power.limit")


@dataclass
class Measured:
    """What the processes of one way found, at one shape.

    Attributes:
        processes: Microseconds of each call, for each process.
        calls: Inferences in what one time is the mean of.
        relative_l2: Of the result against PyTorch's.
        same_bits: Whether results are those of bare TensorRT to the last bit.
    """

    processes: list[list[float]] = field(default_factory=list)
    calls: int = 1
    relative_l2: float = 0.0
    same_bits: bool = True

    def note(self, row: Row) -> None:
        """Add what a process printed."""
        self.processes.append([ns / 1e3 for ns in row["ns"]])
        self.calls = row["calls"]
        self.relative_l2 = max(self.relative_l2, row["relative_l2"])
        self.same_bits = self.same_bits and row["same_bits"]

    def percentile(self, percent: float) -> float:
        """Of the times of all processes, in microseconds."""
        return float(np.percentile(np.concatenate(self.processes), percent))

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return {
            **{f"p{percent}_us": self.percentile(percent) for percent in PERCENTILES},
            "mean_us": float(np.concatenate(self.processes).mean()),
            "process_medians_us": [float(np.median(times)) for times in self.processes],
            "samples": [len(times) for times in self.processes],
            "calls_per_sample": self.calls,
            "relative_l2": self.relative_l2,
            "same_bits_as_bare": self.same_bits,
        }


@dataclass
class Comparison:
    """Everything that was found.

    Attributes:
        measured: By shape, then by way.
        unavailable: By way, why it cannot be taken here.
        failed: By way, what went wrong.
    """

    measured: dict[str, dict[str, Measured]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def is_open(self, name: str) -> bool:
        """Whether a way is still to be measured."""
        return name not in self.unavailable and name not in self.failed

    def note(self, shape: str, name: str, row: Row) -> None:
        """Add what a process printed."""
        if "unavailable" in row:
            self.unavailable[name] = row["unavailable"]
        elif "failed" in row:
            self.failed[name] = row["failed"]
        else:
            self.measured.setdefault(shape, {}).setdefault(name, Measured()).note(row)

    def best(self, shape: str, peer: str, memory: str) -> float | None:
        """Median microseconds of a peer's fastest way, if one was measured."""
        ways = self.measured.get(shape, {})
        medians = [
            found.percentile(50)
            for name, found in ways.items()
            if self.is_open(name) and (WAYS[name].peer, WAYS[name].memory) == (peer, memory)
        ]
        return min(medians, default=None)

    def ratios(self) -> Iterator[tuple[str, str, dict[str, float]]]:
        """Peer, memory, and by shape how many times as long its best takes as ours."""
        peers = dict.fromkeys(way.peer for way in WAYS.values())
        for memory, ours in OURS.items():
            for peer in peers:
                found = {}
                for shape, ways in self.measured.items():
                    best = self.best(shape, peer, memory)
                    if peer != WAYS[ours].peer and best is not None and ours in ways:
                        found[shape] = best / ways[ours].percentile(50)
                if found:
                    yield peer, memory, found

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return {
            "ways": {
                name: {"peer": way.peer, "memory": way.memory, "text": way.text}
                for name, way in WAYS.items()
            },
            "shapes": {
                shape: {name: found.to_json() for name, found in ways.items()}
                for shape, ways in self.measured.items()
            },
            "ratios": [
                {"peer": peer, "memory": memory, "over": OURS[memory], "by_shape": by_shape}
                for peer, memory, by_shape in self.ratios()
            ],
            "unavailable": self.unavailable,
            "failed": self.failed,
        }


@report_errors
def compare(
    only: Annotated[
        str, typer.Option(help=f"Of: {', '.join(WAYS)}; bare is always there.", show_default="all")
    ] = ",".join(WAYS),
    processes: Annotated[int, typer.Option(min=1, help="Of each way at each shape.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="That calls are timed in each.")] = 1.0,
    timeout: Annotated[float, typer.Option(help="Seconds that a process may take.")] = 90.0,
    deadline: Annotated[
        float, typer.Option(help="Seconds after which no process is started.")
    ] = 3600.0,
    output: Annotated[Path | None, typer.Option(help="Write all as JSON to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
) -> None:
    """Measure all ways, and print tables in Markdown."""
    names = chosen(only)
    until = time.monotonic() + deadline
    comparison = Comparison()
    facts = {"command": shlex.join(sys.argv), "gpu": gpu_facts(*_FACTS)}
    facts |= {"versions": versions(PACKAGES)}

    def save() -> None:
        if output is not None:
            output.write_text(json.dumps({**facts, **comparison.to_json()}, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        setups = [prepare(Path(folder, text_of(shape)), shape) for shape in SHAPES]
        for turn, setup, name in schedule(setups, names, processes):
            if not comparison.is_open(name) or time.monotonic() > until:
                continue
            shape = text_of(setup.shape)
            with stderr.status(f"{shape}, {name}, {turn + 1} of {processes}"):
                run(comparison, setup, name, seconds, timeout)
            if name == next(iter(WAYS)) and not comparison.is_open(name):
                reasons = {**comparison.unavailable, **comparison.failed}
                raise ProcessError(f"bare TensorRT cannot run the plan: {reasons[name]}")
            save()
    text = "\n".join([*tables(comparison), *closing(comparison, facts)])
    stdout.print(text)
    if markdown is not None:
        markdown.write_text(text + "\n")
    if comparison.failed:
        raise typer.Exit(1)


def chosen(only: str) -> list[str]:
    """The names of ways in their order, with that of bare TensorRT.

    Raises:
        SpecError: one is unknown.
    """
    asked = {name.strip() for name in only.split(",")}
    if unknown := sorted(asked - WAYS.keys()):
        raise SpecError(f"no way has the name {unknown[0]!r}; there are {', '.join(WAYS)}")
    first = next(iter(WAYS))
    return [name for name in WAYS if name in asked or name == first]


def text_of(shape: Sequence[int]) -> str:
    """A shape as the tables have it."""
    return "x".join(map(str, shape))


def schedule(
    setups: Sequence[Setup], names: Sequence[str], rounds: int
) -> Iterator[tuple[int, Setup, str]]:
    """Every way at every shape in each round, in turn forwards and backwards."""
    for turn in range(rounds):
        step = -1 if turn % 2 else 1
        for setup in setups[::step]:
            for name in names[::step]:
                yield turn, setup, name


def prepare(folder: Path, shape: tuple[int, ...]) -> Setup:
    """Build the plan, and write it with two inputs and what PyTorch computes of them."""
    folder.mkdir()
    with stderr.status(f"{text_of(shape)}, building the plan"):
        weights = make_model(folder / "model.onnx", shape)
        backend = load_backend("auto")
        config = BuildConfig(precision=Precision.TF32)
        build_plan(folder / "model.onnx", config).save(folder / "plan")
    x = np.random.default_rng(1).standard_normal((2, *shape), np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.stack([reference(weights, one) for one in x]))
    setup = Setup(
        str(folder), BACKENDS[backend.name].package, str(backend.version), shape, TOLERANCE
    )
    setup.save()
    return setup


def run(comparison: Comparison, setup: Setup, name: str, seconds: float, patience_s: float) -> None:
    """Measure a way in a new process, and note what became of it."""
    words = [sys.executable, str(PROCESS), name, setup.folder, str(seconds)]
    shape = text_of(setup.shape)
    try:
        read_lines(words, lambda row: comparison.note(shape, name, row), patience_s)
    except ProcessError as error:
        comparison.note(shape, name, {"failed": error.message})


def tables(comparison: Comparison) -> Iterator[str]:
    """The times and the ratios, as lines of Markdown."""
    shapes = list(comparison.measured)
    percents = " / ".join(f"p{percent}" for percent in PERCENTILES)
    heads = [f"{shape}: {percents}" for shape in shapes]
    yield from _row("µs per call", "", *heads)
    yield from _rule(len(heads) + 2)
    for name, way in WAYS.items():
        found = [comparison.measured[shape].get(name) for shape in shapes]
        if comparison.is_open(name) and any(found):
            yield from _row(way.peer, way.text, *map(_percentiles, found))
    yield ""
    yield f"A time of what overlaps calls is the mean of a pass of {PASS}."
    ratios = list(comparison.ratios())
    if not ratios:
        return
    yield ""
    yield from _row("its best over ours", "", "wanted", *shapes)
    yield from _rule(len(shapes) + 3)
    for peer, memory, by_shape in ratios:
        text = f"{MEMORIES[memory]}, over {WAYS[OURS[memory]].text}"
        cells = (f"{by_shape[shape]:.2f}" if shape in by_shape else "" for shape in shapes)
        wanted = "" if peer == FLOOR else f"{WANTED[memory]}"
        yield from _row(peer, text, wanted, *cells)


def _percentiles(found: Measured | None) -> str:
    if found is None:
        return ""
    return " / ".join(f"{found.percentile(percent):.1f}" for percent in PERCENTILES)


def _row(*cells: str) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"


def _rule(columns: int) -> Iterator[str]:
    yield "|" + "---|" * columns


def closing(comparison: Comparison, facts: Mapping[str, Any]) -> Iterator[str]:
    """What was left out and why, and what was measured with, as lines of Markdown."""
    ways = [found for shape in comparison.measured.values() for found in shape.values()]
    counts = [len(found.processes) for found in ways]
    yield ""
    yield f"- processes of each way and shape: {min(counts)} to {max(counts)}"
    for title, reasons in (("Not here", comparison.unavailable), ("Failed", comparison.failed)):
        for name, reason in reasons.items():
            yield f"- {title}: {WAYS[name].peer}, {WAYS[name].text}: {' '.join(reason.split())}"
    if all(found.same_bits for found in ways):
        yield "- results: of all the same, bit for bit"
    for title in ("gpu", "versions"):
        yield f"- {title}: {', '.join(f'{k} {v}' for k, v in facts[title].items()) or 'unknown'}"
    yield f"- command: `{facts['command']}`"


if __name__ == "__main__":
    typer.run(compare)
