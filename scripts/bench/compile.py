#!/usr/bin/env python3
"""Time of trt_native.compile's first and later starts, and of a call; needs a GPU.

Each start is a process of its own, with a cache that is empty before the first. Results are checked
against the module first. Calls are timed in turns, so that clocks drift alike for all; figures are
medians over rounds.
"""

from __future__ import annotations

import json as json_module
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from machine import clocks, versions

from trt_native.cli.console import report_errors, table
from trt_native.cuda import require_gpu
from trt_native.errors import BuildError

_ROUNDS, _CALLS = 30, 100


@report_errors
def measure(
    target: Annotated[str, typer.Argument(help="FILE.py:NAME, as for trt-native export.")],
    inputs: Annotated[list[str], typer.Option("--input", help="The same.")],
    dynamic: Annotated[list[str] | None, typer.Option(help="The same.")] = None,
    precision: Annotated[str, typer.Option(help="As for trt-native build.")] = "fp16",
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
    cache: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compile a module in two processes that follow each other, and call it."""
    require_gpu()
    if cache is not None:
        print(json_module.dumps(_start(target, inputs, dynamic or [], precision, cache)))
        return
    with tempfile.TemporaryDirectory() as folder:
        starts = [_in_a_process(folder) for _ in range(2)]
    first, second = starts
    if second["exported"] or not second["cached"]:
        raise BuildError("the second process did not find the plan of the first")
    rows: list[tuple[str, str]] = [
        ("first start", f"{first['seconds']:.2f} s"),
        ("second start", f"{second['seconds']:.2f} s"),
        *((name, f"{value:.1f} µs") for name, value in second["microseconds"].items()),
        ("relative L2 error", f"{second['error']:.1e}"),
    ]
    table(f"{target}, {precision}", ("", ""), rows)
    if json is not None:
        facts = {"gpu": clocks(), "versions": versions(), "words": sys.argv[1:], "starts": starts}
        json.write_text(json_module.dumps(facts, indent=1) + "\n")


def _in_a_process(cache: str) -> Any:
    words = [sys.executable, __file__, *sys.argv[1:], "--cache", cache]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BuildError("a process that compiles the module failed; its error is above")
    return json_module.loads(done.stdout.splitlines()[-1])


def _start(
    target: str, inputs: list[str], dynamic: list[str], precision: str, cache: str
) -> dict[str, Any]:
    import torch

    import trt_native
    from trt_native.compilation.compiled_plan import Recipe
    from trt_native.export.target import load_module, read_axes, read_example

    exported: list[Recipe] = []
    export = Recipe.export

    def counted(recipe: Recipe, *rest: Any) -> Any:
        exported.append(recipe)
        return export(recipe, *rest)

    Recipe.export = counted  # type: ignore[method-assign,assignment]
    torch.manual_seed(0)
    module = load_module(target).cuda().eval()
    args, kwargs = read_example(module, inputs, {})
    args, kwargs = torch.utils._pytree.tree_map(
        lambda value: value.cuda() if isinstance(value, torch.Tensor) else value, (args, kwargs)
    )
    torch.cuda.synchronize()
    started = time.perf_counter()
    fast = trt_native.compile(
        module, args, kwargs, dynamic=read_axes(dynamic), precision=precision, cache=cache
    )
    seconds = time.perf_counter() - started
    plain = trt_native.TensorRTModule(fast.session)
    named = fast._flattened(args, kwargs)
    with torch.no_grad():
        times = _timed(
            {
                "call of the compiled module": lambda: fast(*args, **kwargs),
                "call of TensorRTModule": lambda: plain(**named),
                "call of the module": lambda: module(*args, **kwargs),
            },
            torch.cuda.synchronize,
        )
    return {
        "seconds": seconds,
        "cached": fast.cached,
        "exported": len(exported),
        "error": max(one.relative_l2 for one in fast.comparison),
        "microseconds": times,
    }


def _timed(
    calls: dict[str, Callable[[], object]], synchronize: Callable[[], None]
) -> dict[str, float]:
    """Microseconds of each call; those that follow each other are not waited for."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(_ROUNDS + 3):
        for name, call in calls.items():
            synchronize()
            started = time.perf_counter()
            for _ in range(_CALLS):
                call()
            synchronize()
            if number >= 3:
                times[name].append((time.perf_counter() - started) / _CALLS * 1e6)
    return {name: statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    typer.run(measure)
