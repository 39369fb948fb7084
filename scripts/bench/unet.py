#!/usr/bin/env python3
"""The LatentSync U-Net side by side: PyTorch, torch.compile and TensorRT plans, and DeepCache.

Everything runs on one GPU in one go: first each contender alone in a process of its own, for the
memory it takes and the time to its first result, then all in one process, where they are checked
against FP32 PyTorch and timed in turns.

"PyTorch" is trt_native.models.latentsync, which computes the same as LatentSync's own module in one
layout of activations, where that module rearranges them around every convolution. Neither that nor
its "naive" export is measured: this package does not contain the code.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from trt_native import LatentSyncUNet
from trt_native.cli.console import guarded, stdout, table
from trt_native.cuda import require_gpu
from trt_native.errors import BuildError, SpecError, TrtNativeError, UnsupportedError
from trt_native.export import AUDIO_TOKENS
from trt_native.models.latentsync import (
    DeepCacheFull,
    DeepCacheShallow,
    UNet,
    UNetConfig,
    load_unet,
)
from trt_native.plan import read_manifest

DEVICE = "cuda"
STEPS, INTERVAL = 20, 3
TIMESTEPS = [951 - 50 * step for step in range(STEPS)]  # those of LatentSync's DDIM
CHECKED = (951, 501, 1)
SCALE = 30  # of latents that look for overflow in FP16
MOST_ERROR = 0.05  # beyond this a result is wrong, and its time means nothing
CONTENDERS = ("eager", "compile", "static", "dynamic", "eager-deepcache", "deepcache")
PLANS = {"static": ["static"], "dynamic": ["dynamic"], "deepcache": ["full", "shallow"]}
ONNX = {"static": "unet", "dynamic": "unet", "full": "deepcache", "shallow": "deepcache.shallow"}
NOT_MEASURED = (
    "Not measured: LatentSync's own module and its naive export, whose code this package does not"
    " contain. The PyTorch here computes the same in another layout of activations, so its times"
    " are not those of LatentSync's module."
)
_GPU_FACTS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(latents, timestep, audio) to the predicted noise."""


class VerificationError(TrtNativeError):
    """A contender does not compute what it should."""


@dataclass(frozen=True)
class Setup:
    """What is measured, and where its files are."""

    work: Path
    config: str
    checkpoint: Path
    batch: int
    frames: int
    size: int
    plans: Mapping[str, Path]

    def options(self) -> list[str]:
        """The options of this script that give the same setup."""
        named = [f"--plan={name}={path}" for name, path in self.plans.items()]
        return [
            f"--work={self.work}",
            f"--config={self.config}",
            f"--checkpoint={self.checkpoint}",
            f"--batch={self.batch}",
            f"--frames={self.frames}",
            f"--size={self.size}",
            *named,
        ]

    def inputs(self, config: UNetConfig) -> tuple[Tensor, Tensor]:
        """Latents and audio on the GPU, in FP32, the same in every process."""
        random = torch.Generator().manual_seed(0)
        shape = (self.batch, config.in_channels, self.frames, self.size, self.size)
        audio = (self.batch * self.frames, AUDIO_TOKENS, config.cross_attention_dim)
        latents, heard = (torch.randn(s, generator=random) for s in (shape, audio))
        if self.batch == 2:
            heard[: self.frames] = 0  # the half of guidance that hears nothing
        return latents.to(DEVICE), heard.to(DEVICE)


@guarded
def bench(
    work: Annotated[Path, typer.Option(help="Folder for what is made; used again if there.")],
    only: Annotated[str, typer.Option(help=f"Of: {','.join(CONTENDERS)}; all but compile.")] = "",
    stage: Annotated[str, typer.Option(help="Of: prepare,alone,together.")] = (
        "prepare,alone,together"
    ),
    checkpoint: Annotated[Path | None, typer.Option(help="Default: random weights.")] = None,
    config: Annotated[str, typer.Option()] = "latentsync-1.6",
    plan: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="static, dynamic, full, shallow.")
    ] = None,
    batch: Annotated[int, typer.Option()] = 2,
    frames: Annotated[int, typer.Option()] = 16,
    size: Annotated[int, typer.Option(help="Height and width of the latents.")] = 64,
    rounds: Annotated[int, typer.Option(min=3, help="Timed calls of each contender.")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Exports and builds at a time.")] = 4,
    alone: Annotated[str, typer.Option(hidden=True)] = "",
    started: Annotated[float, typer.Option(hidden=True)] = 0.0,
) -> None:
    """Measure; results are printed and kept in WORK/results.json.

    The work folder may bring its own checkpoint.pt, unet.onnx, deepcache.onnx with
    deepcache.shallow.onnx, and static, dynamic, full or shallow.plan.
    """
    setup = Setup(
        work,
        config,
        checkpoint or work / "checkpoint.pt",
        batch,
        frames,
        size,
        _named_plans(plan or [], work),
    )
    chosen = _chosen(only, CONTENDERS) or [name for name in CONTENDERS if name != "compile"]
    if alone:
        print(json.dumps(_measure_alone(alone, setup, started)))
        return
    stages = _chosen(stage, ("prepare", "alone", "together"))
    work.mkdir(parents=True, exist_ok=True)
    results = _Results(work / "results.json")
    if "prepare" in stages:
        results.add("prepare", _prepare(setup, chosen, jobs))
    if {"alone", "together"} & set(stages):
        results.data["setup"] = {"options": setup.options(), "plans": _plan_facts(setup, chosen)}
        results.data["machine"] = _machine()
    if "alone" in stages:
        for name in chosen:
            results.add("alone", {name: _run_alone(name, setup)})
    if "together" in stages:
        _together(setup, chosen, rounds, results)
    results.show()


class _Results:
    """What was measured so far, in a file, so that a run may be split."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, section: str, values: Mapping[str, Any]) -> None:
        self.data.setdefault(section, {}).update(values)
        self._path.write_text(json.dumps(self.data, indent=1))

    def show(self) -> None:
        for section, title, columns in (
            ("prepare", "Making the plans", ("seconds",)),
            ("alone", "Alone in a process", _ALONE),
            ("accuracy", "Relative L2 error against FP32 PyTorch", _ACCURACY),
            ("time", "One step, in turns", _TIMES),
            ("deepcache", f"A step of {STEPS}, 1 of {INTERVAL} in full, in turns", _TIMES),
        ):
            if rows := self.data.get(section):
                cells = [
                    (name, *(_cell(values.get(column)) for column in columns))
                    for name, values in rows.items()
                ]
                table(title, ("", *columns), cells)
        stdout.print(NOT_MEASURED)
        stdout.print(f"results: {self._path}")


_ALONE = ("peak_gib", "torch_peak_gib", "imports_s", "first_result_s", "second_start_s")
_SCALED = f"latents_x{SCALE}"
_ACCURACY = (*(f"timestep_{step}" for step in CHECKED), _SCALED, "worst_looped")
_TIMES = ("median_ms", "min_ms", "max_ms")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _chosen(text: str, known: tuple[str, ...]) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise SpecError(f"{', '.join(unknown)}: unknown; choose from {', '.join(known)}")
    return names


def _named_plans(given: list[str], work: Path) -> dict[str, Path]:
    plans = {name: work / f"{name}.plan" for name in ONNX}
    for text in given:
        name, _, path = text.partition("=")
        if name not in plans or not path:
            raise SpecError(f"--plan {text}: needs NAME=PATH, NAME one of {', '.join(plans)}")
        plans[name] = Path(path)
    return plans


# Making what is measured --------------------------------------------------------------------------


def _prepare(setup: Setup, chosen: list[str], jobs: int) -> dict[str, dict[str, float]]:
    """Make what is missing; seconds of each export and build, which run beside each other."""
    needed = [plan for name in chosen for plan in PLANS.get(name, [])]
    missing = [name for name in needed if not setup.plans[name].exists()]
    seconds: dict[str, dict[str, float]] = {}
    if not setup.checkpoint.exists():
        with _timed(seconds, "random checkpoint"):
            unet, _ = load_unet(config=setup.config, random_seed=0)
            torch.save({"global_step": 0, "state_dict": unet.state_dict()}, setup.checkpoint)
    stems = sorted({ONNX[name].split(".")[0] for name in missing})
    exports = [stem for stem in stems if not (setup.work / f"{stem}.onnx").exists()]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda stem: _export(setup, stem, seconds), exports))
        list(pool.map(lambda name: _build(setup, name, seconds), missing))
    return seconds


def _export(setup: Setup, stem: str, seconds: dict[str, dict[str, float]]) -> None:
    words = ["export", "latentsync", "--checkpoint", setup.checkpoint, "--config", setup.config]
    words += ["--precision", "fp16", "-o", setup.work / f"{stem}.onnx"]
    with _timed(seconds, f"export {stem}"):
        _command([*words, *(["--deepcache"] if stem == "deepcache" else [])])


def _build(setup: Setup, name: str, seconds: dict[str, dict[str, float]]) -> None:
    batch, frames, size = setup.batch, setup.frames, setup.size
    dims: dict[str, object] = {"batch": batch, "frames": frames, "height": size, "width": size}
    if name == "dynamic":
        sides = f"{max(size // 2, 8)}:{size}:{size}"
        dims = {"batch": f"1:{batch}:{batch}", "frames": f"1:{frames}:{frames}"}
        dims |= {"height": sides, "width": sides}
    words = ["build", setup.work / f"{ONNX[name]}.onnx", "-o", setup.plans[name], "--no-cache"]
    with _timed(seconds, f"build {name}"):
        _command([*words, *(f"--dim={dim}={text}" for dim, text in dims.items())])


@contextmanager
def _timed(seconds: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[name] = {"seconds": round(time.perf_counter() - begun, 1)}
    print(f"{name}: {seconds[name]['seconds']} s", file=sys.stderr)


def _command(words: list[Any]) -> None:
    command = [sys.executable, "-m", "trt_native", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()[-10:]
        raise BuildError(f"{' '.join(command[2:5])} failed ({done.returncode})", lines)


# Alone in a process -------------------------------------------------------------------------------


def _run_alone(name: str, setup: Setup) -> dict[str, Any]:
    """Start a contender twice: memory, and the time from the process's start to a result."""
    runs = []
    # A second start of what has no cache of compiled code tells nothing new.
    for _ in range(2 if name in PLANS else 1):
        words = [*setup.options(), f"--alone={name}", f"--started={time.time()}"]
        done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise BuildError(f"{name} failed in a process of its own ({done.returncode})")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{name} alone: {runs[-1]}", file=sys.stderr)
    second = {"second_start_s": runs[1]["first_result_s"]} if len(runs) > 1 else {}
    return {**runs[0], **second}


def _measure_alone(name: str, setup: Setup, started: float) -> dict[str, Any]:
    imported = time.time() - started
    torch.zeros(1, device=DEVICE)  # the context, which is no one's in particular
    with _Memory() as memory, torch.no_grad():
        run = _load(name, setup)
        latents, audio = (tensor.half() for tensor in setup.inputs(UNetConfig.load(setup.config)))
        steps = torch.tensor(TIMESTEPS, device=DEVICE)
        run(latents, steps[0], audio)
        torch.cuda.synchronize()
        first = time.time() - started
        for step in steps[1:6]:
            run(latents, step, audio)
        torch.cuda.synchronize()
    return {
        "peak_gib": round(memory.peak / 2**30, 3),
        "torch_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
        "imports_s": round(imported, 2),
        "first_result_s": round(first, 2),
    }


class _Memory:
    """The most of the GPU's memory that was taken meanwhile, by whatever library, in bytes.

    That counts what PyTorch's allocator keeps without using it, as other programs feel it too.
    """

    def __enter__(self) -> _Memory:
        self._least = self._free = torch.cuda.mem_get_info()[0]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self._least = min(self._least, torch.cuda.mem_get_info()[0])

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        return self._free - self._least


def _load(name: str, setup: Setup) -> Step:
    """A contender as users get it, from its files."""
    if name in PLANS:
        unet = _load_plans(name, setup)
        return lambda latents, step, audio: unet(latents, step, audio).sample
    made, _ = load_unet(config=setup.config, checkpoint=setup.checkpoint, dtype="float16")
    return _in_pytorch(name, made.to(DEVICE))


def _load_plans(name: str, setup: Setup) -> LatentSyncUNet:
    paths = [setup.plans[plan] for plan in PLANS[name]]
    if len(paths) == 1:
        return LatentSyncUNet.from_plan(paths[0])
    return LatentSyncUNet.from_plans(*paths, interval=INTERVAL)


def _in_pytorch(name: str, unet: UNet) -> Step:
    if name == "compile":
        compiled: Step = torch.compile(unet)
        return compiled
    return _Skipping(unet) if name == "eager-deepcache" else unet


class _Skipping:
    """PyTorch that skips as DeepCache does; the timestep's place decides, as in its helper."""

    def __init__(self, unet: UNet) -> None:
        self._full, self._shallow = (
            _sharing(kind, unet) for kind in (DeepCacheFull, DeepCacheShallow)
        )
        self._features: Any = None

    def __call__(self, latents: Tensor, step: Tensor, audio: Tensor) -> Tensor:
        if TIMESTEPS.index(int(step)) % INTERVAL:
            noise: Tensor = self._shallow(latents, step, audio, self._features)
        else:
            noise, self._features = self._full(latents, step, audio)
        return noise


def _sharing(kind: type[UNet], unet: UNet) -> UNet:
    with torch.device("meta"):
        step = kind(unet.config)
    step.load_state_dict(unet.state_dict(), assign=True)
    return step.eval().requires_grad_(False)


# Together -----------------------------------------------------------------------------------------


@torch.no_grad()
def _together(setup: Setup, chosen: list[str], rounds: int, results: _Results) -> None:
    """Check everything against FP32, then time it in turns."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    unet, _ = load_unet(config=setup.config, checkpoint=setup.checkpoint)
    unet.to(DEVICE)
    cases, looped = _references(unet, setup, loops=any(map(_skips, chosen)))
    unet.half()
    torch.cuda.empty_cache()
    runs = {
        name: _load(name, setup) if name in PLANS else _in_pytorch(name, unet) for name in chosen
    }
    half = tuple(tensor.half() for tensor in setup.inputs(unet.config))
    for name, run in runs.items():
        if _skips(name):
            errors = {"worst_looped": max(map(_error, _loop(run, *half), looped))}
        else:
            errors = {
                case: _error(run(latents.half(), _step(step), audio.half()), expected)
                for case, (latents, step, audio, expected) in cases.items()
            }
        results.add("accuracy", {name: errors})
        _require_right(name, errors)
    single = {name: run for name, run in runs.items() if not _skips(name)}
    step = _step(CHECKED[1])
    calls = {name: functools.partial(run, half[0], step, half[1]) for name, run in single.items()}
    _time_in_turns(calls, rounds, 1, "time", results)
    loops = {name: functools.partial(_loop, runs[name], *half) for name in runs if _skips(name)}
    _time_in_turns(loops, max(3, rounds // 4), STEPS, "deepcache", results)


def _skips(name: str) -> bool:
    return name.endswith("deepcache")


def _step(timestep: int) -> Tensor:
    """A timestep as the pipeline has it, on the GPU."""
    return torch.tensor(timestep, device=DEVICE)


def _references(
    unet: UNet, setup: Setup, *, loops: bool
) -> tuple[dict[str, tuple[Tensor, int, Tensor, Tensor]], list[Tensor]]:
    """Inputs and outputs of the FP32 module by case, and its outputs over a loop that skips."""
    latents, audio = setup.inputs(unet.config)
    given = {f"timestep_{step}": (latents, step, audio) for step in CHECKED}
    given[_SCALED] = (SCALE * latents, CHECKED[1], audio)
    cases = {
        case: (x, step, heard, unet(x, _step(step), heard))
        for case, (x, step, heard) in given.items()
    }
    return cases, _loop(_Skipping(unet), latents, audio) if loops else []


def _loop(run: Step, latents: Tensor, audio: Tensor) -> list[Tensor]:
    """One chunk's steps, of latents that change from step to step without a scheduler."""
    outputs = []
    for timestep in torch.tensor(TIMESTEPS, device=DEVICE):
        outputs.append(run(latents, timestep, audio))
        latents = latents.roll(1, dims=-1)
    return outputs


def _error(found: Tensor, expected: Tensor) -> float:
    difference = found.double() - expected.double()
    return float(difference.norm() / expected.double().norm())


def _require_right(name: str, errors: Mapping[str, float]) -> None:
    # What was scaled needs only be finite: no model was trained for it. NaN is not below infinity.
    limits = {case: math.inf if case == _SCALED else MOST_ERROR for case in errors}
    wrong = {case: error for case, error in errors.items() if not error < limits[case]}
    if wrong:
        shown = ", ".join(f"{error:.3g} ({case})" for case, error in wrong.items())
        raise VerificationError(f"{name} is not timed, because its results are wrong: {shown}")


def _time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    steps: int,
    section: str,
    results: _Results,
) -> None:
    """Milliseconds per step by CUDA events; what slows the GPU down meanwhile slows all."""
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
        row = {"median_ms": statistics.median(values), "min_ms": min(values), "max_ms": max(values)}
        results.add(section, {name: {key: round(value, 3) for key, value in row.items()}})


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _plan_facts(setup: Setup, chosen: list[str]) -> dict[str, Any]:
    """Who built each plan, and for which shapes."""
    facts = {}
    for name in (plan for contender in chosen for plan in PLANS.get(contender, [])):
        if manifest := read_manifest(setup.plans[name]):
            shapes = {t.name: [t.describe_shape(), *map(str, t.profiles)] for t in manifest.inputs}
            version = f"{manifest.backend} {manifest.backend_version}"
            facts[name] = {"by": version, "bytes": manifest.plan_bytes, "inputs": shapes}
    return facts


def _machine() -> dict[str, Any]:
    """What the figures depend on.

    Raises:
        CudaError, UnsupportedError: there is no GPU, or torch sees none.
    """
    gpu = require_gpu()
    if not torch.cuda.is_available():
        raise UnsupportedError(f"torch {torch.__version__} sees no GPU; install one with CUDA")
    query = ["nvidia-smi", f"--query-gpu={_GPU_FACTS}", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # containers may lack the program
        told = gpu.name
    facts = told.strip().split("\n")[0].split(", ")
    return {
        "gpu": dict(zip(_GPU_FACTS.split(","), facts, strict=False)),
        "driver_cuda": gpu.driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


if __name__ == "__main__":
    typer.run(bench)
