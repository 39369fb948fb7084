#!/usr/bin/env python3
"""Seeded mutations of every kind of file that the commands read.

Plans, manifests, models, calibration caches, entries of the plan cache, arrays, checkpoints and
profile files are changed, and read by the commands that read them, in child processes. Each must
end well or with one line that says what is wrong: without a traceback, within a minute, and without
files left over. The number alone determines a mutation.

  fuzz_files.py [--count 2000] [--start 0] [--kind plan] [--jobs 2]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts"), str(ROOT)]

from child_process import Child, Lost, for_each  # noqa: E402

PATIENCE_S = 60.0
Finding = tuple[str, str]
"""``traceback``, ``stray file`` or ``silent``, and what was seen."""


class Seeds:
    """Good files, made once for each process, and the folder in which mutants are read."""

    def __init__(self) -> None:
        from helpers import tiny_models
        from helpers.made_plans import X, Y, make_plan
        from helpers.seed_models import write_seeds

        from trt_native.builder.plan_cache import EngineCache

        self._base = tempfile.TemporaryDirectory(prefix="fuzz-files-")
        self.folder = Path(self._base.name, "work")
        self.temporary = Path(self._base.name, "tmp")
        good = Path(self._base.name, "good")
        for folder in (self.folder, self.temporary, good / "models"):
            folder.mkdir(parents=True)
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.temporary)
        self.models = write_seeds(good / "models")
        self.plan = make_plan(good / "m.plan", (X, Y)).path
        self.dense = tiny_models.dense(good / "dense.onnx", width=32)
        self.ranges = tiny_models.calibration(
            self.dense, good / "dense.calib", 2.0, shapes={"h0": ("4x32",)}
        )
        self.cache = good / "cache"
        EngineCache(self.cache).build_plan(
            tiny_models.external_weights(good / "m.onnx"), backend="rtx"
        )
        self.checkpoints = (ROOT / "tests" / "data" / "unet_small.pt", _safetensors(good))


def _safetensors(folder: Path) -> Path:
    import numpy as np
    from safetensors.numpy import save_file

    path = folder / "w.safetensors"
    weights = {f"down_blocks.{i}.conv.weight": np.ones((4, 4), np.float32) for i in range(4)}
    save_file(weights, path, metadata={"config": json.dumps({"sample_size": 8})})
    return path


_SEEDS: list[Seeds] = []


def read_mutant(number_and_kind: tuple[int, str]) -> list[Finding]:
    """Make one mutant and read it; the findings."""
    number, kind = number_and_kind
    if not _SEEDS:
        _SEEDS.append(Seeds())
    seeds = _SEEDS[0]
    rng = random.Random(number)  # noqa: S311  # the same in every run
    before = _files(seeds.folder)
    findings = []
    for path in before:
        path.unlink()
    try:
        for found in KINDS[kind](rng, seeds):
            findings += found
    except Exception:
        findings.append(("traceback", traceback.format_exc()))
    findings += [("stray file", str(path)) for path in _files(seeds.temporary)]
    findings += [
        ("stray file", str(path))
        for path in _files(seeds.folder)
        if path.name.startswith(".") or path.name.startswith("out")
    ]
    return findings


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def command(*words: object) -> list[Finding]:
    """Run a command in this process; what is wrong with how it ends."""
    from typer.testing import CliRunner

    from trt_native.cli.app import app

    result = CliRunner().invoke(app, [str(word) for word in words])
    shown = f"{' '.join(map(str, words))}\n{result.stderr[-500:]}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return [("traceback", shown + "".join(traceback.format_exception(result.exception)))]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if result.exit_code not in (0, 1) or "Traceback" in result.output or len(errors) > 1:
        return [("traceback", f"exit code {result.exit_code}: {shown}")]
    if result.exit_code == 1 and not errors and not result.stdout:
        return [("silent", shown)]
    return []


def call(function: Callable[..., object], *arguments: object) -> list[Finding]:
    """Call a function, which may raise this package's errors alone."""
    from trt_native.errors import TrtNativeError

    try:
        function(*arguments)
    except TrtNativeError as error:
        return [] if str(error).strip() else [("silent", repr(arguments))]
    return []


def _mutant(rng: random.Random, data: bytes) -> bytes:
    from helpers.mutations import BYTES, json_broken, json_edited

    try:
        document = json.loads(data)
    except ValueError:
        return bytes(rng.choice(BYTES)(rng, data))
    return bytes(rng.choice((json_edited, json_edited, json_broken))(rng, document))


def read_plan(rng: random.Random, seeds: Seeds) -> Iterator[list[Finding]]:
    """A plan or its manifest."""
    from helpers.mutations import BYTES, lengths_absurd

    path = seeds.folder / "m.plan"
    manifest = Path(f"{path}.json")
    data, document = seeds.plan.read_bytes(), Path(f"{seeds.plan}.json").read_bytes()
    path.write_bytes(rng.choice((*BYTES, lengths_absurd))(rng, data))
    if rng.random() < 0.5:
        manifest.write_bytes(document)
    yield from _plan_commands(path, seeds)


def read_manifest(rng: random.Random, seeds: Seeds) -> Iterator[list[Finding]]:
    """A manifest of a good plan."""
    path = seeds.folder / "m.plan"
    path.write_bytes(seeds.plan.read_bytes())
    Path(f"{path}.json").write_bytes(_mutant(rng, Path(f"{seeds.plan}.json").read_bytes()))
    yield from _plan_commands(path, seeds)


def _plan_commands(path: Path, seeds: Seeds) -> Iterator[list[Finding]]:
    yield command("inspect", path)
    yield command("inspect", path, "--json")
    yield command("doctor", path)
    yield command("deploy", "trtexec", path)
    yield command("diff", path, seeds.plan)
    yield command("run", path, "--random", "0")


def read_model(rng: random.Random, seeds: Seeds) -> Iterator[list[Finding]]:
    """A model, through its checks and through all passes of a build that need no TensorRT."""
    from helpers.mutations import BYTES, onnx_edited

    from trt_native.graph.onnx_file import read_model as read
    from trt_native.graph.onnx_file import summarize

    path = seeds.folder / "m.onnx"
    data = rng.choice(seeds.models).read_bytes()
    edit = onnx_edited if rng.random() < 0.8 else rng.choice(BYTES)
    path.write_bytes(edit(rng, data))
    yield call(lambda: summarize(path, read(path)))
    yield command("quantize", path, "--format", "int8-weights", "-o", seeds.folder / "q.onnx")


def read_calibration_cache(rng: random.Random, seeds: Seeds) -> Iterator[list[Finding]]:
    """A calibration cache or the JSON next to it."""
    path = seeds.folder / "m.calib"
    broken = rng.choice(("", ".json"))
    for suffix in ("", ".json"):
        content = Path(f"{seeds.ranges}{suffix}").read_bytes()
        Path(f"{path}{suffix}").write_bytes(_mutant(rng, content) if suffix == broken else content)
    yield command("calibrate", "--show", path)
    yield command("calibrate", "--diff", path, seeds.ranges)
    words = ("--format", "int8", "--calibration-cache", path)
    yield command("quantize", seeds.dense, "-o", seeds.folder / "q.onnx", *words)


def read_cache_entry(rng: random.Random, seeds: Seeds) -> Iterator[list[Finding]]:
    """An entry of the plan cache."""
    from trt_native.builder.plan_cache import EngineCache

    folder = seeds.folder / "cache"
    (folder / "engines").mkdir(parents=True, exist_ok=True)
    (folder / "CACHEDIR.TAG").write_bytes((seeds.cache / "CACHEDIR.TAG").read_bytes())
    broken = rng.choice((".plan", ".json"))
    for file in (seeds.cache / "engines").iterdir():
        data = file.read_bytes()
        content = _mutant(rng, data) if file.suffix == broken else data
        (folder / "engines" / file.name).write_bytes(content)
    yield command("cache", "list", "--cache", folder)
    yield command("cache", "list", "--cache", folder, "--json")
    yield command("cache", "prune", "--cache", folder)
    yield call(lambda: EngineCache(folder).entries())


def read_arrays(rng: random.Random, seeds: Seeds) -> Iterator[list[Finding]]:
    """An .npy or .npz file, as an input and as calibration data."""
    import numpy as np

    from trt_native.calibration.batches import read_batches
    from trt_native.shapes import TensorSpec

    opened = io.BytesIO()
    suffix = rng.choice((".npy", ".npz"))
    values = np.ones((2, 32), np.float32)
    if suffix == ".npy":
        np.save(opened, values)
    else:
        rng.choice((np.savez, np.savez_compressed))(opened, h0=values, other=values)
    path = seeds.folder / f"a{suffix}"
    path.write_bytes(_mutant(rng, opened.getvalue()))
    yield command("run", seeds.plan, "--input", f"x={path}")
    yield command("run", seeds.plan, "--input", path)
    yield call(lambda: list(read_batches(path, [TensorSpec("h0", "float32", ("n", 32))])))


def read_checkpoint(rng: random.Random, seeds: Seeds) -> Iterator[list[Finding]]:
    """A checkpoint of PyTorch's format or of safetensors."""
    source = rng.choice(seeds.checkpoints)
    data = source.read_bytes()
    if source.suffix == ".safetensors" and rng.random() < 0.7:  # its header is JSON
        (length,) = struct.unpack("<Q", data[:8])
        header = _mutant(rng, data[8 : 8 + length])
        data = struct.pack("<Q", len(header)) + header + data[8 + length :]
    else:
        data = _mutant(rng, data)
    path = seeds.folder / f"w{source.suffix}"
    path.write_bytes(data)
    words = (path, "--config", "small")
    target = seeds.folder / "w.onnx"
    yield command("export", "latentsync", *words, "-o", target)
    yield [("stray file", str(f)) for f in seeds.folder.glob("w.onnx?*") if not target.exists()]


_PROFILES = {
    ".json": '{"profiles": [{"dims": {"n": 4}}, {"shapes": {"x": [[1, 3], [2, 3], [4, 3]]}}]}',
    ".yaml": "profiles:\n- dims: {n: 1:2:4}\n- shapes:\n    x: 1x3:2x3:4x3\n",
    ".toml": '[[profiles]]\ndims = {n = "1:2:4"}\n[[profiles]]\nshapes = {x = "1x3:2x3:4x3"}\n',
}


def read_profile(rng: random.Random, seeds: Seeds) -> Iterator[list[Finding]]:
    """A file with profiles."""
    from trt_native.graph.dims import read_profile_file

    suffix = rng.choice(tuple(_PROFILES))
    path = seeds.folder / f"p{suffix}"
    path.write_bytes(_mutant(rng, _PROFILES[suffix].encode()))
    yield call(read_profile_file, path)


KINDS: dict[str, Callable[[random.Random, Seeds], Iterator[list[Finding]]]] = {
    "plan": read_plan,
    "manifest": read_manifest,
    "model": read_model,
    "calibration": read_calibration_cache,
    "cache": read_cache_entry,
    "arrays": read_arrays,
    "checkpoint": read_checkpoint,
    "profile": read_profile,
}


def main() -> None:
    """Read the mutants, print what was found, and exit with 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=2000, help="mutants, of all kinds in turn")
    parser.add_argument("--start", type=int, default=0, help="number of the first")
    parser.add_argument("--kind", choices=tuple(KINDS), help="of this kind alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    chosen = parser.parse_args()
    kinds = (chosen.kind,) if chosen.kind else tuple(KINDS)
    numbers = range(chosen.start, chosen.start + chosen.count)
    tasks = [(number, kinds[number % len(kinds)]) for number in numbers]
    counts: Counter[str] = Counter()
    started = time.monotonic()

    def serve(child: Child, task: tuple[int, str]) -> None:
        found: Any = child.ask(task)
        if isinstance(found, Lost):
            found = [(found.status, found.detail)]
        counts[task[1]] += 1
        for what, detail in found:
            counts[f"{what} ({task[1]})"] += 1
            print(f"--- {task[0]} {task[1]}: {what}\n{detail}", flush=True)

    for_each(serve, tasks, read_mutant, jobs=chosen.jobs, patience_s=PATIENCE_S)
    print(f"{time.monotonic() - started:.0f} s:", dict(counts))
    sys.exit(any("(" in name for name in counts))


if __name__ == "__main__":
    main()
