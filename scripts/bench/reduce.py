#!/usr/bin/env python3
"""Twenty seeded failures in models of 200 to 2,000 nodes, reduced by trt_native and by Polygraphy.

The failures are builds that TensorRT-RTX refuses, and combinations of nodes that a command looks
for. Both tools get the same models and ask the same questions; their questions
(builds, or runs of the command) are counted. Neither needs a GPU.

  reduce.py run OUT                                        trt_native alone
  reduce.py run OUT --polygraphy VENV/bin/polygraphy       both
  reduce.py check PATTERN MODEL.onnx                       the command: 1 if the nodes are there
"""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_SIZES = (200, 400, 700, 1200, 2000)
_TOKENS = (2, 16, 32)
_IMAGE = (2, 16, 4, 8)
_CUSTOM = "bench"

# ---------------------------------------------------------------- models


@dataclass
class _Builder:
    """A model that grows by blocks around one value of the shape of tokens."""

    rng: random.Random
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    infos: list[onnx.ValueInfoProto] = field(default_factory=list)
    value: str = "x"

    def weight(self, *shape: int) -> str:
        numbers = np.random.default_rng(len(self.weights)).standard_normal(shape, np.float32) / 8
        return self.constant(numbers)

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        number = len(self.nodes)
        names = [f"v{number}_{i}" if i else f"v{number}" for i in range(outputs)]
        node = helper.make_node(operator, inputs, names, f"/{operator}_{number}", **attributes)
        self.nodes.append(node)
        return names[0]

    def known(self, name: str, shape: tuple[int, ...]) -> str:
        """Record the shape of what ONNX cannot infer."""
        self.infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def reshaped(self, value: str, shape: tuple[int, ...]) -> str:
        return self.add("Reshape", value, self.constant(np.array(shape, np.int64)))

    def grow(self, count: int) -> None:
        blocks = (self.mlp, self.attention, self.convolution, self.gate, self.branches)
        while len(self.nodes) < count:
            self.rng.choice(blocks)()

    def mlp(self) -> None:
        h = self.add("Add", self.add("MatMul", self.value, self.weight(32, 64)), self.weight(64))
        h = self.add(self.rng.choice(("Relu", "Sigmoid", "Erf", "Softplus")), h)
        h = self.add("Add", self.add("MatMul", h, self.weight(64, 32)), self.weight(32))
        self.value = self.add("Add", h, self.value)

    def attention(self) -> None:
        q, k, v = (self.add("MatMul", self.value, self.weight(32, 32)) for _ in range(3))
        scores = self.add("MatMul", q, self.add("Transpose", k, perm=[0, 2, 1]))
        h = self.add("Softmax", self.add("Mul", scores, self.constant(np.float32(0.2))), axis=-1)
        self.value = self.add("Add", self.add("MatMul", h, v), self.value)

    def convolution(self) -> None:
        h = self.reshaped(self.value, _IMAGE)
        h = self.add("Conv", h, self.weight(16, 16, 3, 3), pads=[1, 1, 1, 1])
        h = self.add("Clip", h, self.constant(np.float32(-6)), self.constant(np.float32(6)))
        self.value = self.add("Add", self.reshaped(h, _TOKENS), self.value)

    def gate(self) -> None:
        h = self.add("MatMul", self.value, self.weight(32, 32))
        h = self.add("Mul", h, self.add("Sigmoid", h))
        self.value = self.add("LayerNormalization", h, self.weight(32), self.weight(32), axis=-1)

    def branches(self) -> None:
        half = self.constant(np.array([16, 16], np.int64))
        first = self.add("Split", self.value, half, outputs=2, axis=2)
        joined = self.add("Concat", self.add("Tanh", first), f"{first}_1", axis=2)
        self.value = self.add("Sub", joined, self.weight(32))

    def finished(self) -> onnx.ModelProto:
        shape = list(_TOKENS)
        graph = helper.make_graph(
            self.nodes,
            "bench",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(self.value, TensorProto.FLOAT, shape)],
            self.weights,
            value_info=self.infos,
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(_CUSTOM, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


# ---------------------------------------------------------------- what fails


def _det(b: _Builder) -> None:
    square = b.reshaped(b.value, (2, 16, 2, 4, 4))
    b.value = b.add("Add", b.reshaped(b.known(_large_det(b, square), (2,)), (2, 1, 1)), b.value)


def _large_det(b: _Builder, square: str) -> str:
    large = b.reshaped(square, (4, 16, 16))
    flat = b.known(b.add("Det", large), (4,))
    return b.add("ReduceMean", b.reshaped(flat, (2, 2)), b.constant(np.array([1])), keepdims=0)


def _mod(b: _Builder) -> None:
    b.value = b.add("Mod", b.value, b.constant(np.float32(3)), fmod=0)


def _custom(b: _Builder) -> None:
    b.value = b.known(b.add("Frobnicate", b.value, domain=_CUSTOM), _TOKENS)


def _space_to_depth(b: _Builder) -> None:
    deep = b.known(b.add("SpaceToDepth", b.reshaped(b.value, _IMAGE), blocksize=3), (2, 16, 4, 8))
    b.value = b.reshaped(deep, _TOKENS)


def _unique(b: _Builder) -> None:
    found = b.add("Unique", b.value)
    b.value = b.add("Add", b.add("ReduceMax", found, keepdims=0), b.value)


def _softmax_of_transpose(b: _Builder) -> None:
    h = b.add("Softmax", b.add("Transpose", b.value, perm=[0, 2, 1]), axis=1)
    b.value = b.add("Transpose", h, perm=[0, 2, 1])


def _three(b: _Builder) -> None:
    h = b.add("Tanh", b.add("Relu", b.add("Erf", b.value)))
    b.value = b.add("Add", h, b.value)


def _dilated(b: _Builder) -> None:
    h = b.reshaped(b.value, _IMAGE)
    h = b.add("Conv", h, b.weight(16, 16, 3, 3), pads=[2, 2, 2, 2], dilations=[2, 2])
    b.value = b.reshaped(h, _TOKENS)


def _far_apart(b: _Builder) -> None:
    b.value = b.add("Floor", b.value)
    b.grow(len(b.nodes) + 60)
    b.value = b.add("Ceil", b.value)


def _one_of_many(b: _Builder) -> None:
    before = len(b.nodes)
    b.mlp()
    b.nodes[before].name = "/one-of-many"


@dataclass(frozen=True)
class Failure:
    """A way to fail.

    Attributes:
        name: Its name.
        plant: Adds it to a model.
        fails: ``build``; or ``check``, with the pattern that is its name.
        regex: What a build says.
    """

    name: str
    plant: Callable[[_Builder], None]
    fails: str
    regex: str = ""


FAILURES = (
    Failure("det", _det, "build", "Det"),
    Failure("mod", _mod, "build", "Mod"),
    Failure("custom", _custom, "build", "has no Frobnicate"),
    Failure("space-to-depth", _space_to_depth, "build", "SpaceToDepth"),
    Failure("unique", _unique, "build", "Unique"),
    Failure("transpose-softmax", _softmax_of_transpose, "check"),
    Failure("erf-relu-tanh", _three, "check"),
    Failure("dilated", _dilated, "check"),
    Failure("floor-and-ceil", _far_apart, "check"),
    Failure("one-of-many", _one_of_many, "check"),
)


def seeded_model(seed: int) -> tuple[onnx.ModelProto, Failure]:
    """The model of a seed, and how it fails."""
    rng = random.Random(seed)  # noqa: S311  # the same in every run
    failure = FAILURES[seed % len(FAILURES)]
    size = _SIZES[seed % len(_SIZES)] if seed < len(FAILURES) else rng.randrange(200, 2001)
    builder = _Builder(rng)
    builder.grow(round(size * rng.uniform(0.1, 0.9)))
    failure.plant(builder)
    builder.grow(size)
    return builder.finished(), failure


# ---------------------------------------------------------------- the command


def has_pattern(name: str, graph: onnx.GraphProto) -> bool:
    """Whether the nodes of a failure that a command looks for are in a graph."""
    operators = {node.op_type for node in graph.node}
    makers = {output: node for node in graph.node for output in node.output}
    if name == "floor-and-ceil":
        return {"Floor", "Ceil"} <= operators
    if name == "one-of-many":
        return any(node.name == "/one-of-many" for node in graph.node)
    if name == "dilated":
        return any(a.name == "dilations" and 2 in a.ints for n in graph.node for a in n.attribute)
    chain = {
        "transpose-softmax": ("Transpose", "Softmax"),
        "erf-relu-tanh": ("Erf", "Relu", "Tanh"),
    }
    return any(_ends_chain(node, chain[name], makers) for node in graph.node)


def _ends_chain(node: onnx.NodeProto, chain: tuple[str, ...], makers: dict[str, Any]) -> bool:
    if node.op_type != chain[-1]:
        return False
    before = makers.get(node.input[0])
    return len(chain) == 1 or (before is not None and _ends_chain(before, chain[:-1], makers))


@app.command()
def check(pattern: str, model: Path) -> None:
    """Exit with 1 if a model has the nodes of a pattern."""
    found = has_pattern(pattern, onnx.load(model, load_external_data=False).graph)
    raise typer.Exit(int(found))


# ---------------------------------------------------------------- the tools


def _question(failure: Failure) -> list[str]:
    """The command that asks whether a model fails; its path follows."""
    if failure.fails == "check":
        return [sys.executable, __file__, "check", failure.name]
    words = [
        "build",
        "--backend",
        "rtx",
        "--no-cache",
        "--precision",
        "fp32",
        "-o",
        "candidate.plan",
    ]
    return [sys.executable, "-m", "trt_native", *words]


def reduce_here(model: Path, failure: Failure, folder: Path) -> dict[str, Any]:
    """Reduce a model with trt_native."""
    words = ["debug", "reduce", model, "-o", folder, "--json"]
    if failure.fails == "check":
        words += ["--check", shlex.join(_question(failure))]
    else:
        words += ["--fails", failure.fails, "--backend", "rtx", "--precision", "fp32"]
    started = time.monotonic()
    command = [sys.executable, "-m", "trt_native", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{model.name}: {done.stderr}")
    found = json.loads(done.stdout)
    return {"nodes": found["nodes_after"], "checks": found["checks"], "seconds": round(seconds, 1)}


def reduce_there(polygraphy: Path, model: Path, failure: Failure, folder: Path) -> dict[str, Any]:
    """Reduce a model with Polygraphy."""
    folder.mkdir(parents=True)
    words = ["debug", "reduce", model, "-o", "reduced.onnx", "--mode", "bisect"]
    words += ["--fail-regex", failure.regex] if failure.regex else []
    words += ["--check", *_question(failure), "polygraphy_debug.onnx"]
    command = [str(polygraphy), *map(str, words)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    seconds = time.monotonic() - started
    printed = done.stdout + done.stderr
    checks = len(re.findall(r"(?:PASSED|FAILED) \| Iteration", printed))
    reduced = folder / "reduced.onnx"
    nodes = len(onnx.load(reduced).graph.node) if reduced.exists() else None
    (folder / "log.txt").write_text(printed)
    return {"nodes": nodes, "checks": checks, "seconds": round(seconds, 1)}


@app.command()
def run(
    out: Path,
    polygraphy: Annotated[Path | None, typer.Option(help="Its program, to compare with.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """Reduce the models, and print what it took."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        model, failure = seeded_model(seed)
        path = out / f"{seed}.onnx"
        onnx.save(model, path)
        row: dict[str, Any] = {
            "seed": seed,
            "failure": failure.name,
            "nodes": len(model.graph.node),
        }
        row["trt_native"] = reduce_here(path, failure, out / f"{seed}.reduced")
        if polygraphy is not None:
            folder = out / f"{seed}.polygraphy"
            row["polygraphy"] = reduce_there(
                polygraphy.absolute(), path.absolute(), failure, folder
            )
        rows.append(row)
        print(_line(row), flush=True)
    (out / "reduce.json").write_text(json.dumps(rows, indent=1) + "\n")
    _summarize(rows, "trt_native")
    if polygraphy is not None:
        _summarize(rows, "polygraphy")
        both = [row for row in rows if row["polygraphy"]["nodes"] is not None]
        print(f"of the {len(both)} that both reduce:")
        _summarize(both, "trt_native")
        _summarize(both, "polygraphy")


def _summarize(rows: list[dict[str, Any]], tool: str) -> None:
    found = [row[tool] for row in rows]
    done = [one for one in found if one["nodes"] is not None]
    print(
        f"{tool}: {len(done)} of {len(found)} reduced, to"
        f" {max((o['nodes'] for o in done), default=0)} nodes at most;"
        f" {sum(o['checks'] for o in found)} checks; the longest took"
        f" {max((o['seconds'] for o in found), default=0)} s"
    )


def _line(row: dict[str, Any]) -> str:
    tools = [
        f"{row[tool]['nodes']} | {row[tool]['checks']} | {row[tool]['seconds']}"
        for tool in ("trt_native", "polygraphy")
        if tool in row
    ]
    return f"| {row['seed']} | {row['failure']} | {row['nodes']} | {' | '.join(tools)} |"


if __name__ == "__main__":
    app()
