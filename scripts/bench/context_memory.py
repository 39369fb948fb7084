#!/usr/bin/env python3
"""Memory on the host and on the GPU that an engine and each of its sessions take; needs a GPU.

Every row is what came on top of the row before: the process's resident memory and the GPU's memory
in use, after a run of every session at the optimum of the first profile. The results of all
sessions, and those after an offload and a restore, are compared with those of the first, bit for
bit.
"""

from __future__ import annotations

import gc
import itertools
import json as json_module
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from trt_native import Engine, Session
from trt_native.cli.console import report_errors, stdout, table
from trt_native.cuda import memory_info, require_gpu
from trt_native.errors import SpecError
from trt_native.runtime.input_checks import zeros_for
from trt_native.units import format_bytes


@report_errors
def measure(
    plan: Path,
    sessions: Annotated[int, typer.Option(help="Sessions of the engine.")] = 4,
    fitted: Annotated[
        bool, typer.Option(help="Activation memory for the shapes that are run.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Load a plan, run its sessions, offload and restore it, and print what each step takes."""
    gpu = require_gpu()
    memory: Literal["shapes"] | None = "shapes" if fitted else None
    steps: list[tuple[str, int, int]] = [("nothing", *_in_use())]
    with ExitStack() as stack:
        engine = stack.enter_context(Engine(plan))
        steps.append(("engine", *_in_use()))
        expected: dict[str, Any] = {}
        opened: list[Session] = []
        for number in range(1, sessions + 1):
            session = stack.enter_context(Session(engine, activation_memory=memory))
            opened.append(session)
            expected = _compared(session, expected)
            steps.append((f"session {number}", *_in_use()))
        activations = opened[0].activation_bytes if opened else 0
        engine.offload()
        steps.append(("offload", *_in_use()))
        engine.restore()
        for session in opened:
            _compared(session, expected)
        steps.append(("restore", *_in_use()))
    rows = [
        (name, host - before[1], device - before[2])
        for before, (name, host, device) in itertools.pairwise(steps)
    ]
    machine = f"{gpu.name}, driver for CUDA {gpu.driver}, {engine.backend.product}"
    title = f"{plan.name}, {format_bytes(activations)} of activations ({machine})"
    cells = [(name, *map(_signed, numbers)) for name, *numbers in rows]
    table(title, ("step", "host memory", "GPU memory"), cells)
    if json is not None:
        figures = [dict(zip(("step", "host", "device"), row, strict=True)) for row in rows]
        report = {"plan": plan.name, "machine": machine, "activations": activations}
        json.write_text(json_module.dumps({**report, "steps": figures}, indent=1))
        stdout.print(f"figures in {json}")


def _in_use() -> tuple[int, int]:
    """Resident memory of this process, and memory in use on the GPU, in bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    free, total = memory_info()
    return pages * os.sysconf("SC_PAGE_SIZE"), total - free


def _compared(session: Session, expected: dict[str, Any]) -> dict[str, Any]:
    inputs = zeros_for(session.inputs, {})
    for _ in range(3):  # plainly, captured, replayed
        found = {name: np.array(array) for name, array in session.run(inputs).items()}
    for name, array in expected.items():
        if not np.array_equal(found[name], array, equal_nan=True):
            raise SpecError(f"output {name!r} differs from that of the first session")
    return expected or found


def _signed(number: int) -> str:
    return f"{'-' if number < 0 else '+'}{format_bytes(abs(number))}"


if __name__ == "__main__":
    typer.run(measure)
