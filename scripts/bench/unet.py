#!/usr/bin/env python3
"""The LatentSync U-Net side by side: PyTorch, torch.compile and TensorRT plans, and DeepCache.

``prepare`` exports and builds the plans, with or without a GPU. ``measure`` runs on one GPU: first
what compiles something, side by side; then each contender alone in a process, for its memory, the
time to its first result and its error against FP32 PyTorch; then all that are right in one process,
in turns. ``from-checkpoint`` times the way from a checkpoint to a running plan.

PyTorch is measured with naive_unet.py, which has the layout of LatentSync's own module; ``naive``
is the plan of its export. ``eager-ours`` is the package's own U-Net in PyTorch.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from naive_unet import NaiveUNet
from processes import PeakMemory, ProcessError, Row, read_lines
from torch import Tensor
from unet_files import ONNX, Setup, build, command, export, load_module, pack, unpack

from trt_native import LatentSyncUNet
from trt_native.cli.console import report_errors, stdout, table
from trt_native.cuda import require_gpu
from trt_native.errors import SpecError, TrtNativeError, UnsupportedError
from trt_native.models.latentsync import UNet, load_unet
from trt_native.plans.manifest import read_manifest
from trt_native.runtime import Session

DEVICE = "cuda"
STEPS, INTERVAL = 20, 3
TIMESTEPS = [951 - 50 * step for step in range(STEPS)]  # those of LatentSync's DDIM
CHECKED = (951, 501, 1)
SCALE = 30  # of latents that look for overflow in FP16
MOST_ERROR = 0.05  # beyond this a result is wrong, and its time means nothing
PLANS = {
    "static": ("static",),
    "dynamic": ("dynamic",),
    "naive": ("naive",),
    "deepcache": ("full", "shallow"),
}
# The most wanted first, in case time runs out. Seconds that each takes alone, at least.
CONTENDERS = {
    "static": 15,
    "eager": 20,
    "naive": 15,
    "dynamic": 15,
    "compile": 45,
    "deepcache": 25,
    "eager-deepcache": 30,
    "eager-ours": 20,
}
STAGES = ("first", "alone", "together", "profile")
TOGETHER_SECONDS = 90  # kept for it when contenders run alone
_GPU_FACTS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
# Without PyTorch: what a program that only runs the plan waits for.
_BARE_START = """
import sys, time
import numpy as np
from trt_native import Session
session = Session(sys.argv[2])
shapes = {t: t.profiles[0].opt if t.profiles else t.shape for t in session.engine.inputs}
session.run({t.name: np.zeros(shape, t.dtype) for t, shape in shapes.items()})
print('{"bare_start_s": %.2f}' % (time.time() - float(sys.argv[1])))
"""

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(latents, timestep, audio) to the predicted noise."""


class VerificationError(TrtNativeError):
    """A contender does not compute what it should."""


app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
_Work = Annotated[Path, typer.Argument(help="Folder for what is made; used again if there.")]
_Only = Annotated[
    str, typer.Option(help=f"Of: {', '.join(CONTENDERS)}.", show_default="all but eager-ours")
]
_Checkpoint = Annotated[Path | None, typer.Option(help="Default: weights of repeated blocks.")]
_Size = Annotated[int, typer.Option(help="Height and width of the latents.")]
_DEFAULT = ",".join(name for name in CONTENDERS if name != "eager-ours")


@app.command()
@report_errors
def prepare(
    work: _Work,
    only: _Only = _DEFAULT,
    checkpoint: _Checkpoint = None,
    config: str = "latentsync-1.6",
    batch: int = 2,
    frames: int = 16,
    size: _Size = 64,
    jobs: Annotated[int, typer.Option(min=1, help="Exports and builds at a time.")] = 1,
    xz: Annotated[bool, typer.Option(help="Keep NAME.plan.xz alone, to be brought away.")] = False,
) -> None:
    """Export and build the plans; a GPU is not needed.

    One export takes 3 GiB of memory and one build 9.
    """
    setup = Setup(work, config, checkpoint, batch, frames, size)
    names = _plans_of(_chosen(only, CONTENDERS))
    work.mkdir(parents=True, exist_ok=True)
    results = _Results(work / "results.json")
    missing = [n for n in names if not setup.plan(n).exists() and not _packed(setup, n).exists()]
    stems = sorted({ONNX[name].split(".")[0] for name in missing})
    stems = [stem for stem in stems if not (work / f"{stem}.onnx").exists()]

    def exported(stem: str) -> None:
        with _timed(results, f"export {stem}"):
            _run_child(setup, "export", [stem])

    def built(name: str) -> None:
        with _timed(results, f"build {name}"):
            build(setup, name)
        if xz:
            with _timed(results, f"pack {name}"):
                pack(setup.plan(name))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(exported, stems))
        list(pool.map(built, missing))


@app.command()
@report_errors
def measure(
    work: _Work,
    plans: Annotated[
        Path | None, typer.Option(help="Folder with NAME.plan or NAME.plan.xz, to be copied.")
    ] = None,
    only: _Only = _DEFAULT,
    stage: Annotated[str, typer.Option(help=f"Of: {', '.join(STAGES)}.")] = "first,alone,together",
    checkpoint: _Checkpoint = None,
    config: str = "latentsync-1.6",
    batch: int = 2,
    frames: int = 16,
    size: _Size = 64,
    rounds: Annotated[int, typer.Option(min=3, help="Timed calls of each contender.")] = 20,
    deadline: Annotated[float, typer.Option(help="Seconds; nothing runs longer.")] = math.inf,
    compile_limit: Annotated[float, typer.Option(help="Seconds that compiling may take.")] = 240,
    results: Annotated[Path | None, typer.Option(help="Default: WORK/results.json.")] = None,
) -> None:
    """Measure; each result is printed and written as soon as it is there.

    A contender that fails, is wrong or takes too long is reported, and the others go on.
    """
    setup = Setup(work, config, checkpoint, batch, frames, size)
    chosen = [name for name in CONTENDERS if name in _chosen(only, CONTENDERS)]
    stages = _chosen(stage, STAGES)
    work.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work.resolve() / "inductor")
    found = _Results(results or work / "results.json")
    found.add("machine", _machine())
    # A plan that was missing counts as a failure of its first start.
    found.forget_errors([*stages, *(["first"] if plans is not None else [])], chosen)
    run = _Run(setup, chosen, found, time.monotonic() + deadline)
    if plans is not None:
        run.unpack(plans)
    found.add("plans", _plan_facts(setup, chosen))
    if "first" in stages:
        run.first(compile_limit)
    elif "alone" in stages:
        run.reference()
    if "alone" in stages:
        run.alone(rounds, TOGETHER_SECONDS * ("together" in stages))
    if "together" in stages:
        run.together(rounds)
    if "profile" in stages:
        run.profile()
    found.show()


@app.command()
@report_errors
def from_checkpoint(
    work: _Work,
    config: str = "latentsync-1.6",
    batch: int = 2,
    frames: int = 16,
    size: _Size = 64,
    separate: Annotated[
        bool, typer.Option(help="Export, build and first run in processes of their own.")
    ] = False,
    results: Annotated[Path | None, typer.Option(help="Default: WORK/results.json.")] = None,
) -> None:
    """Time the way from an FP16 checkpoint with random weights to a static plan's first result."""
    setup = Setup(work, config, work / "checkpoint.pt", batch, frames, size)
    work.mkdir(parents=True, exist_ok=True)
    found = _Results(results or work / "results.json")
    found.add("machine", _machine())
    if not (work / "checkpoint.pt").exists():
        unet, _ = load_unet(config=config, random_seed=0, dtype="float16")
        torch.save({"global_step": 0, "state_dict": unet.state_dict()}, work / "checkpoint.pt")
        del unet
    setup.plan("static").with_name("static.plan.cache").unlink(missing_ok=True)
    words = ["export", "latentsync", work / "checkpoint.pt", "--config", config]
    shape = f"batch={batch},frames={frames},height={size},width={size}"
    words += ["--precision", "fp16", "--static", shape, "-o", work / "unet.onnx"]
    with _timed(found, "checkpoint to running plan"):
        if separate:
            with _timed(found, "checkpoint to ONNX"):
                command(words)
            with _timed(found, "ONNX to plan"):
                command(["build", work / "unet.onnx", "-o", setup.plan("static"), "--no-cache"])
        else:
            with _timed(found, "checkpoint to warm plan"):
                plan = ["--build", setup.plan("static"), "--warm", "--no-cache"]
                print(command([*words, *plan]))
        with _timed(found, "plan to first result"):
            _bare_start(setup, "static")
    with _timed(found, "second process"):
        _bare_start(setup, "static")
    found.show()


@app.command(hidden=True)
@report_errors
def child(setup: str, what: str, names: str, rounds: int, started: float) -> None:
    """Do one thing in a process of its own, and print a line of JSON for each result."""
    for row in _rows(Setup.from_json(setup), what, names.split(","), rounds, started):
        print(json.dumps(row), flush=True)


def _chosen(text: str, known: Sequence[str] | Mapping[str, Any]) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise SpecError(f"{', '.join(unknown)}: unknown; choose from {', '.join(known)}")
    return names


def _plans_of(chosen: Sequence[str]) -> list[str]:
    return [plan for name in chosen for plan in PLANS.get(name, ())]


def _packed(setup: Setup, name: str) -> Path:
    return setup.plan(name).with_name(f"{name}.plan.xz")


# Results ------------------------------------------------------------------------------------------


class _Results:
    """Results so far, in a file, so that a run may be split or interrupted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, section: str, values: Mapping[str, Any]) -> None:
        """Merge values, by name, into those that are known."""
        with self._lock:
            rows = self.data.setdefault(section, {})
            for name, value in values.items():
                known = rows.get(name)
                merge = isinstance(known, dict) and isinstance(value, dict)
                rows[name] = {**known, **value} if merge else value
            self._path.write_text(json.dumps(self.data, indent=1))
        print(section, json.dumps(values), file=sys.stderr, flush=True)

    def failed(self, name: str) -> bool:
        """Whether a contender must be left out from now on."""
        sections = ("first", "alone", "together")
        return any("error" in self.data.get(section, {}).get(name, {}) for section in sections)

    def forget_errors(self, stages: Sequence[str], names: Sequence[str]) -> None:
        """Let contenders that failed in these stages of an earlier run try again."""
        for section in stages:
            for name in names:
                self.data.get(section, {}).get(name, {}).pop("error", None)

    def show(self) -> None:
        """Print tables of all there is."""
        for section, title, columns in (
            ("seconds", "Making", ("seconds", "error")),
            ("first", "First start, concurrent", ("imports_s", "first_result_s", "error")),
            ("alone", "Alone in a process", _ALONE),
            ("accuracy", "Relative L2 error against FP32 PyTorch", _ACCURACY),
            ("together", "One step, in turns", _TIMES),
            ("deepcache", f"A step of {STEPS}, 1 of {INTERVAL} in full, in turns", _TIMES),
            ("profile", "Kernels of the static plan", ("ms", "kernels", "error")),
        ):
            if rows := self.data.get(section):
                cells = [
                    (name, *(_cell(values.get(column)) for column in columns))
                    for name, values in rows.items()
                ]
                table(title, ("", *columns), cells)
        stdout.print(f"results: {self._path}")


_SCALED = f"latents_x{SCALE}"
_ACCURACY = (*(f"timestep_{step}" for step in CHECKED), _SCALED, "worst_looped")
_TIMES = ("median_ms", "min_ms", "max_ms", "error")
_ALONE = (
    "peak_gib",
    "torch_peak_gib",
    "imports_s",
    "first_result_s",
    "bare_start_s",
    "median_ms",
    "error",
)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


@contextmanager
def _timed(results: _Results, name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    results.add("seconds", {name: {"seconds": round(time.perf_counter() - begun, 1)}})


# The stages, each contender in a process of its own -----------------------------------------------


class _Run:
    """One run of the benchmark, until a moment of ``time.monotonic``."""

    def __init__(
        self, setup: Setup, chosen: Sequence[str], results: _Results, deadline: float
    ) -> None:
        self._setup, self._chosen, self._results = setup, chosen, results
        self._deadline = deadline

    def unpack(self, folder: Path) -> None:
        """Copy the plans that are needed."""

        def copy(name: str) -> None:
            try:
                for plan in PLANS[name]:
                    if not self._setup.plan(plan).exists():
                        unpack(folder, self._setup, plan)
            except (TrtNativeError, OSError, EOFError, LZMAError) as error:
                self._results.add("first", {name: {"error": str(error)}})

        with _timed(self._results, "unpack plans"), ThreadPoolExecutor(8) as pool:
            list(pool.map(copy, [name for name in self._chosen if name in PLANS]))

    def first(self, limit: float) -> None:
        """Let all that compile do so concurrently, and the FP32 reference be computed."""
        limit = min(limit, self._left() * 0.6)
        compiling = [n for n in self._going() if n in PLANS or n == "compile"]
        with ThreadPoolExecutor(len(compiling) + 1) as pool:
            jobs = [pool.submit(self.reference, limit)]
            jobs += [pool.submit(self._one, "first", "start", name, limit) for name in compiling]
            for job in jobs:
                job.result()

    def reference(self, limit: float = math.inf) -> None:
        """Compute what FP32 PyTorch gives, for the processes that follow."""
        limit = min(limit, self._left())
        self._results.data.get("seconds", {}).pop("FP32 reference", None)
        try:
            with _timed(self._results, "FP32 reference"):
                _run_child(self._setup, "reference", self._chosen, seconds=limit)
        except ProcessError as error:  # then there are times alone
            self._results.add("seconds", {"FP32 reference": {"error": error.message}})

    def alone(self, rounds: int, reserved: float) -> None:
        """Measure what must not be disturbed; nothing starts that would leave too little time."""
        for name in self._going():
            left = self._left() - reserved
            if left < CONTENDERS[name]:
                self._results.add("alone", {name: {"error": f"not started: {left:.0f} s left"}})
                continue
            self._one("alone", "alone", name, left, rounds)
            if len(PLANS.get(name, ())) == 1 and not self._results.failed(name):
                self._bare_start(name)

    def together(self, rounds: int) -> None:
        """Time in turns; who breaks the process is left out of the next try."""
        while (names := self._going()) and self._left() > TOGETHER_SECONDS / 2:
            handled: list[str] = []
            try:
                _run_child(
                    self._setup,
                    "together",
                    names,
                    functools.partial(self._note_together, handled),
                    rounds=rounds,
                    seconds=self._left(),
                )
            except ProcessError as error:
                culprit = handled[-1] if handled else names[0]
                self._results.add("together", {culprit: {"error": error.message}})
            else:
                return

    def profile(self) -> None:
        """Take the time of each kind of kernel."""

        def note(row: Row) -> None:
            self._results.add("profile", row)

        try:
            _run_child(self._setup, "profile", ["static"], note, seconds=self._left())
        except ProcessError as error:
            note({"static": {"error": error.message}})

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _going(self) -> list[str]:
        return [name for name in self._chosen if not self._results.failed(name)]

    def _one(self, section: str, what: str, name: str, limit: float, rounds: int = 0) -> None:
        def note(row: Row) -> None:
            accuracy = row.pop("accuracy", None)
            if accuracy is not None:
                self._results.add("accuracy", {name: accuracy})
            else:
                self._results.add(section, {name: row})

        try:
            _run_child(self._setup, what, [name], note, rounds=rounds, seconds=limit)
        except ProcessError as error:
            self._results.add(section, {name: {"error": error.message}})

    def _bare_start(self, name: str) -> None:
        def note(row: Row) -> None:
            self._results.add("alone", {name: row})

        try:
            _bare_start(self._setup, name, note, seconds=self._left())
        except ProcessError as error:  # it did run, with PyTorch
            self._results.add("alone", {name: {"bare_start_s": error.message}})

    def _note_together(self, handled: list[str], row: Row) -> None:
        name = row.pop("name")
        handled.append(name)
        if row:
            self._results.add(row.pop("section"), {name: row})


def _bare_start(
    setup: Setup,
    name: str,
    note: Callable[[Row], None] | None = None,
    *,
    seconds: float = math.inf,
) -> None:
    """Run a process without PyTorch to its first result; ``note`` gets its time.

    Raises:
        ProcessError: the process ended with an error, was killed, or took too long.
    """
    words = [sys.executable, "-c", _BARE_START, str(time.time()), str(setup.plan(name))]
    read_lines(words, note, seconds)


def _run_child(
    setup: Setup,
    what: str,
    names: Sequence[str],
    note: Callable[[Row], None] | None = None,
    *,
    rounds: int = 0,
    seconds: float = math.inf,
) -> None:
    """Start this script for one thing; ``note`` gets each result when it is there.

    Raises:
        ProcessError: the process ended with an error, was killed, or took too long.
    """
    words = [sys.executable, __file__, "child", setup.to_json(), what, ",".join(names)]
    read_lines([*words, str(rounds), str(time.time())], note, seconds)


# What these processes do --------------------------------------------------------------------------


@torch.no_grad()
def _rows(
    setup: Setup, what: str, names: Sequence[str], rounds: int, started: float
) -> Iterator[Row]:
    """The results of a process; an error is the last of them."""
    name = names[0]
    work: dict[str, Callable[[], Iterator[Row]]] = {
        "export": lambda: _export(setup, name),
        "reference": lambda: _save_reference(setup, loops=any(map(_skips, names))),
        "start": lambda: iter([_start(name, setup, started)[1]]),
        "alone": lambda: _alone(name, setup, rounds, started),
        "together": lambda: _in_turns(setup, names, rounds),
        "profile": lambda: iter([_kernel_times(setup, name)]),
    }
    try:
        yield from work[what]()
    except Exception as error:  # of any kind; the others go on
        lines = str(error).strip().splitlines() or [""]
        yield {"error": f"{type(error).__name__}: {lines[0][:300]}"}


def _export(setup: Setup, stem: str) -> Iterator[Row]:
    export(setup, stem)
    yield {}


def _start(name: str, setup: Setup, started: float) -> tuple[Step, Row]:
    """Load a contender as users do, up to its first result."""
    imported = time.time() - started
    run = _load(name, setup)
    latents, audio = (tensor.half() for tensor in setup.inputs(DEVICE))
    run(latents, _step(TIMESTEPS[0]), audio)
    torch.cuda.synchronize()
    first = time.time() - started
    return run, {"imports_s": round(imported, 2), "first_result_s": round(first, 2)}


def _alone(name: str, setup: Setup, rounds: int, started: float) -> Iterator[Row]:
    torch.zeros(1, device=DEVICE)  # the context, which is no one's in particular
    with PeakMemory() as memory:
        run, row = _start(name, setup, started)
        latents, audio = (tensor.half() for tensor in setup.inputs(DEVICE))
        for timestep in TIMESTEPS[1:6]:
            run(latents, _step(timestep), audio)
        torch.cuda.synchronize()
    yield {
        "peak_gib": round(memory.peak / 2**30, 3),
        "torch_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
        **row,
    }
    errors = _errors(name, run, setup)
    yield {"accuracy": errors}
    _require_right(name, errors)
    for _, times in _time_in_turns(*_calls({name: run}, setup, rounds)):
        yield {"median_ms": times["median_ms"]}


# Contenders ---------------------------------------------------------------------------------------


def _load(name: str, setup: Setup) -> Step:
    """A contender, ready to run."""
    if name in PLANS:
        unet = _load_plans(name, setup)
        return lambda latents, step, audio: unet(latents, step, audio).sample
    if name == "eager-ours":
        return load_module(UNet, setup, DEVICE)
    naive = _naive(setup)
    if name == "compile":
        compiled: Step = torch.compile(naive)
        return compiled
    return _Skipping(naive) if _skips(name) else naive


def _load_plans(name: str, setup: Setup) -> LatentSyncUNet:
    paths = [setup.plan(plan) for plan in PLANS[name]]
    if len(paths) == 1:
        return LatentSyncUNet.from_plan(paths[0])
    return LatentSyncUNet.from_plans(*paths, interval=INTERVAL)


@functools.lru_cache(1)
def _naive(setup: Setup) -> NaiveUNet:
    """Shared by those that run in one process."""
    return load_module(NaiveUNet, setup, DEVICE)


class _Skipping:
    """PyTorch that skips as DeepCache does; the timestep's place decides, as in its helper."""

    def __init__(self, unet: NaiveUNet) -> None:
        self._unet = unet
        self._features: Tensor | None = None

    def __call__(self, latents: Tensor, step: Tensor, audio: Tensor) -> Tensor:
        skip = TIMESTEPS.index(int(step)) % INTERVAL
        noise, self._features = self._unet.step(
            latents, step, audio, self._features if skip else None
        )
        return noise


def _skips(name: str) -> bool:
    return name.endswith("deepcache")


def _step(timestep: int) -> Tensor:
    """A timestep as the pipeline has it, on the GPU."""
    return torch.tensor(timestep, device=DEVICE)


# Right or wrong -----------------------------------------------------------------------------------


def _cases(setup: Setup) -> dict[str, tuple[Tensor, int, Tensor]]:
    latents, audio = setup.inputs(DEVICE)
    cases = {f"timestep_{step}": (latents, step, audio) for step in CHECKED}
    return {**cases, _SCALED: (SCALE * latents, CHECKED[1], audio)}


def _reference_file(setup: Setup) -> Path:
    return setup.work / "reference.pt"


def _save_reference(setup: Setup, *, loops: bool) -> Iterator[Row]:
    """Outputs of the FP32 module by case, and over a loop that skips."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    _reference_file(setup).unlink(missing_ok=True)
    unet = load_module(NaiveUNet, setup, DEVICE, torch.float32)
    cases = {
        case: unet(latents, _step(step), audio).cpu()
        for case, (latents, step, audio) in _cases(setup).items()
    }
    looped = _loop(_Skipping(unet), *setup.inputs(DEVICE)) if loops else []
    outputs = {"cases": cases, "looped": [noise.cpu() for noise in looped]}
    torch.save(outputs, _reference_file(setup))
    yield {}


def _errors(name: str, run: Step, setup: Setup) -> dict[str, float]:
    """Relative L2 errors by case; none without a reference."""
    if not _reference_file(setup).exists():
        return {}
    expected = torch.load(_reference_file(setup), weights_only=True)
    if _skips(name):
        found = _loop(run, *(tensor.half() for tensor in setup.inputs(DEVICE)))
        return {"worst_looped": max(map(_error, found, expected["looped"]))}
    return {
        case: _error(run(latents.half(), _step(step), audio.half()), expected["cases"][case])
        for case, (latents, step, audio) in _cases(setup).items()
    }


def _loop(run: Step, latents: Tensor, audio: Tensor) -> list[Tensor]:
    """One chunk's steps, of latents that change from step to step without a scheduler."""
    outputs = []
    for timestep in torch.tensor(TIMESTEPS, device=DEVICE):
        outputs.append(run(latents, timestep, audio))
        latents = latents.roll(1, dims=-1)
    return outputs


def _error(found: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((found.cpu().double() - expected).norm() / expected.norm())


def _require_right(name: str, errors: Mapping[str, float]) -> None:
    # What was scaled needs only be finite: no model was trained for it. NaN is not below infinity.
    limits = {case: math.inf if case == _SCALED else MOST_ERROR for case in errors}
    wrong = {case: error for case, error in errors.items() if not error < limits[case]}
    if wrong:
        shown = ", ".join(f"{error:.3g} ({case})" for case, error in wrong.items())
        raise VerificationError(f"{name} is not timed, because its results are wrong: {shown}")


# Times --------------------------------------------------------------------------------------------


class _Timed(NamedTuple):
    """Calls to be timed in turns.

    Attributes:
        calls: What to call, by name.
        rounds: How often.
        steps: How many steps of the U-Net one call is.
    """

    calls: Mapping[str, Callable[[], object]]
    rounds: int
    steps: int


def _calls(runs: Mapping[str, Step], setup: Setup, rounds: int) -> tuple[_Timed, _Timed]:
    """Single steps, and loops of those that skip."""
    half = tuple(tensor.half() for tensor in setup.inputs(DEVICE))
    step = _step(CHECKED[1])
    single = {n: r for n, r in runs.items() if not _skips(n)}
    skipping = {n: r for n, r in runs.items() if _skips(n)}
    steps = {n: functools.partial(r, half[0], step, half[1]) for n, r in single.items()}
    loops = {n: functools.partial(_loop, r, *half) for n, r in skipping.items()}
    return _Timed(steps, rounds, 1), _Timed(loops, max(3, rounds // 4), STEPS)


def _in_turns(setup: Setup, names: Sequence[str], rounds: int) -> Iterator[Row]:
    """Time all, first without the compiled module, which may take its time to be ready."""
    runs: dict[str, Step] = {}
    parts = [[name for name in names if name != "compile"], ["compile"] * ("compile" in names)]
    for part in filter(None, parts):
        for name in part:
            yield {"name": name}  # who to blame if this process dies
            runs[name] = _load(name, setup)
            latents, audio = (tensor.half() for tensor in setup.inputs(DEVICE))
            runs[name](latents, _step(TIMESTEPS[0]), audio)
            torch.cuda.synchronize()
        single, loops = _calls(runs, setup, rounds)
        for section, timed in (("together", single), ("deepcache", loops)):
            if section == "together" or part is parts[0]:
                for name, times in _time_in_turns(timed):
                    yield {"name": name, "section": section, **times}


def _time_in_turns(*groups: _Timed) -> Iterator[tuple[str, dict[str, float]]]:
    """Milliseconds per step by CUDA events; what slows the GPU down meanwhile slows all."""
    for calls, rounds, steps in groups:
        for call in (*calls.values(), *calls.values()):
            call()
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                begin, end = _event(), _event()
                torch.cuda.synchronize()
                begin.record()
                call()
                end.record()
                end.synchronize()
                taken[name].append(begin.elapsed_time(end) / steps)
        for name, values in taken.items():
            row = {"median_ms": statistics.median(values)}
            row |= {"min_ms": min(values), "max_ms": max(values)}
            yield name, {key: round(value, 3) for key, value in row.items()}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _kernel_times(setup: Setup, name: str) -> Row:
    """Milliseconds of one run by kind of kernel, as CUPTI reports them."""
    from torch.profiler import ProfilerActivity, profile

    latents, audio = (tensor.half() for tensor in setup.inputs(DEVICE))
    inputs = {
        "latents": latents,
        "timestep": torch.tensor([CHECKED[1]], device=DEVICE),
        "encoder_hidden_states": audio,
    }
    kinds: dict[str, dict[str, float]] = {}
    with Session(setup.plan(name), cuda_graphs=0) as session:
        for _ in range(2):
            session.run(inputs)
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            session.run(inputs)
            torch.cuda.synchronize()
    for event in profiled.profiler.kineto_results.events():
        if "CUDA" in str(event.device_type()):
            kind = kinds.setdefault(_kind_of(event.name()), {"ms": 0.0, "kernels": 0})
            kind["ms"] = round(kind["ms"] + event.duration_ns() / 1e6, 4)
            kind["kernels"] += 1
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["ms"]))


_KINDS = (
    ("attention", r"mha|flash"),
    ("norms and reductions", r"gnor|inor|__myl_\w*?(mean|max|sum)"),
    ("convolutions", r"__myl_corr|conv"),
    ("matrix products", r"__myl_fc|matmul|gemm|linear"),
    ("moves", r"mem(cpy|set)|__myl_(resh|tran|move|conc|slic|cast)+_0x"),
    ("pointwise", r"__myl_"),
)


def _kind_of(kernel: str) -> str:
    """Kind of a TensorRT-RTX kernel, by its name; ``__myl_`` ones name their operators."""
    found = (kind for kind, pattern in _KINDS if re.search(pattern, kernel, re.IGNORECASE))
    return next(found, "other")


# What the figures depend on -----------------------------------------------------------------------


def _plan_facts(setup: Setup, chosen: Sequence[str]) -> dict[str, Any]:
    """Builder and shapes of each plan."""
    facts = {}
    for name in _plans_of(chosen):
        if manifest := read_manifest(setup.plan(name)):
            shapes = {t.name: [t.describe_shape(), *map(str, t.profiles)] for t in manifest.inputs}
            version = f"{manifest.backend} {manifest.backend_version}"
            facts[name] = {"by": version, "bytes": manifest.plan_bytes, "inputs": shapes}
    return facts


def _machine() -> dict[str, Any]:
    """The GPU and the software.

    Raises:
        CudaError, UnsupportedError: no GPU is available, or torch sees none.
    """
    gpu = require_gpu()
    if not torch.cuda.is_available():
        raise UnsupportedError(f"torch {torch.__version__} sees no GPU; install one with CUDA")
    query = ["nvidia-smi", f"--query-gpu={_GPU_FACTS}", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # containers may not have the program
        output = gpu.name
    facts = output.strip().split("\n")[0].split(", ")
    return {
        "gpu": dict(zip(_GPU_FACTS.split(","), facts, strict=False)),
        "driver_cuda": gpu.driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


if __name__ == "__main__":
    app()
