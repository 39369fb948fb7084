"""``trt-native verify``."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr, stdout, table
from trt_native.cli.inputs import (
    INPUT_HELP,
    RANDOM_HELP,
    SHAPE_HELP,
    GivenInputs,
    check_not_fixed,
    check_seed,
    fill_random,
    open_inputs,
    read_shapes,
    split_entry,
)
from trt_native.cli.options import (
    AllowHostCode,
    DeviceOption,
    IgnoreManifest,
    LeanRuntime,
    PluginsOption,
    open_plan,
    select_device,
)
from trt_native.cli.pages import model_of, write_text
from trt_native.config import CpuRuntime, Observation
from trt_native.errors import SpecError, UnsupportedError
from trt_native.progress import phase
from trt_native.shapes import Shape, TensorSpec
from trt_native.units import parse_bytes

if TYPE_CHECKING:
    import numpy as np

    from trt_native.plans.manifest import Manifest, PlanTensor
    from trt_native.plans.plan import Plan
    from trt_native.progress import Progress
    from trt_native.verify import (
        HiddenFault,
        LayerReport,
        Reference,
        TensorResult,
        Thresholds,
        Verification,
    )
    from trt_native.verify.check import Case, Cases, OpenPlan
    from trt_native.verify.corners import Corner

__all__ = ["verify"]

_INPUTS, _LIMITS, _LAYERS = "Inputs", "Limits", "Layers"
_MEMORY = "8GiB"
_SEEDS = 2
_MOST_CORNERS = 16


@report_errors
def verify(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan to verify.")],
    against: Annotated[
        str,
        typer.Option(
            metavar="REFERENCE",
            help="MODEL.onnx, run on the CPU; FILE.py:CALLABLE or"
            " package.module:CALLABLE, which takes the inputs by name, as torch tensors if it"
            " imports torch; or an .npz file with inputs and outputs by name.",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help=INPUT_HELP, rich_help_panel=_INPUTS),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(metavar="SEED", help=RANDOM_HELP, rich_help_panel=_INPUTS),
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help=SHAPE_HELP, rich_help_panel=_INPUTS)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|FILE.npz|FILE.py:FUNCTION",
            help="Batches of inputs, as calibration data has them.",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    batches: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The first N batches of --data. \\[default: all]",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of seeds, from that of --random on, for each shape. \\[default: 2]",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    corners: Annotated[
        bool | None,
        typer.Option(
            "--corners/--no-corners",
            help="Random inputs of every combination of the profiles' smallest and largest"
            f" extents, at most {_MOST_CORNERS} for each profile, besides the optimum.",
            show_default="corners, without --input and --shape",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    max_relative_error: Annotated[
        float | None,
        typer.Option(
            help="Largest relative L2 error. \\[default: 1e-4 for FP32, 5e-3 TF32, 1e-2 FP16, 5e-2"
            " BF16 and INT8 weights, 1e-1 INT8 and FP8]",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_absolute_error: Annotated[
        float | None, typer.Option(help="Largest absolute error.", rich_help_panel=_LIMITS)
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(help="Least cosine similarity.", rich_help_panel=_LIMITS)
    ] = None,
    min_psnr: Annotated[
        float | None, typer.Option(help="Least PSNR in dB.", rich_help_panel=_LIMITS)
    ] = None,
    floor: Annotated[
        float,
        typer.Option(
            help="Smallest root mean square that relative errors are measured against.",
            rich_help_panel=_LIMITS,
        ),
    ] = 1e-6,
    reference_runner: Annotated[
        str,
        typer.Option(
            help="What runs ONNX files on the CPU: openvino, in FP32, but for the operators that it"
            " has wrong; onnx (onnx.reference), which is slow; or auto: openvino where it is"
            " installed."
        ),
    ] = "auto",
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the inputs and the reference's outputs to this .npz file, for --against."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write one self-contained page with the comparison to this file."),
    ] = None,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Find the first tensor inside the model that differs from the reference: builds"
            " the model again, a few times, with further outputs.",
            rich_help_panel=_LAYERS,
        ),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            help="The ONNX file that the plan was built from, for --layers."
            " \\[default: the one next to the plan, else the reference]",
            rich_help_panel=_LAYERS,
        ),
    ] = None,
    memory_bytes: Annotated[
        str | None,
        typer.Option(
            "--memory",
            help=f"Memory limit for the further outputs of one plan. \\[default: {_MEMORY}]",
            rich_help_panel=_LAYERS,
        ),
    ] = None,
    observe: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="How --layers sees tensors inside the plan: outputs, as further outputs, which"
            " prevent fusions; debug-tensors, which do not, and which TensorRT-RTX lacks; auto:"
            " both, where there are debug tensors. \\[default: auto]",
            rich_help_panel=_LAYERS,
        ),
    ] = None,
    device: DeviceOption = None,
    ignore_manifest: IgnoreManifest = False,
    allow_host_code: AllowHostCode = False,
    lean_runtime: LeanRuntime = None,
    plugins: PluginsOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare a plan's outputs with a reference: exit code 0 if they match, else 1.

    $ trt-native verify net.plan --against net.onnx --random 0
    $ trt-native verify net.plan --against reference.npz
    """
    select_device(device)
    if not layers and (model, memory_bytes, observe) != (None, None, None):
        raise SpecError("--model, --memory and --observe are for --layers, which is not given")
    limit = parse_bytes(memory_bytes or _MEMORY)
    observation = Observation.parse(observe or Observation.AUTO.value)
    runtime = CpuRuntime.parse(reference_runner)
    source = _Source(inputs or [], random, shape or [], data, batches, seeds, corners)

    from trt_native.graph.outputs import check_outputs
    from trt_native.progress_bars import ProgressDisplay
    from trt_native.verify import check, default_thresholds, open_reference
    from trt_native.verify.check import verify_plan

    loaded = open_plan(plan, ignore_manifest, allow_host_code, lean_runtime, plugins)
    thresholds, origin = default_thresholds(loaded.manifest)
    if max_relative_error is not None:
        thresholds, origin = replace(thresholds, max_relative_error=max_relative_error), "as given"
    thresholds = replace(
        thresholds,
        max_absolute_error=max_absolute_error,
        min_cosine=min_cosine,
        min_psnr=min_psnr,
        floor=floor,
    )
    fixed = loaded.manifest.build_config().fixed_values() if loaded.manifest else {}
    check_not_fixed(source.names, fixed)
    reference = open_reference(against, fixed, runtime)
    stored = isinstance(reference, Path)
    source.check(stored)
    if runtime is not CpuRuntime.AUTO and not (layers or against.endswith(".onnx")):
        raise SpecError("--reference-runner: no effect without an ONNX file to run")
    if save is not None and stored:
        raise SpecError("--save: --against names stored outputs already")
    if written := [path for path in (save, html) if path is not None]:
        given = [file for _, file in map(split_entry, inputs or [])]
        onnx = [file for file in (model, Path(against)) if file and file.suffix == ".onnx"]
        check_outputs(written, reads=[plan, data, against, *given], models=onnx)
    search = None
    if layers:
        search = _Layers(plan, loaded, model, reference, limit, runtime, observation)
    with (
        ProgressDisplay(stderr, brief=True) as progress,
        check.open_session(loaded) as opened,
        source.cases(reference, opened, progress) as cases,
        _saving(save, source.several(opened)) as on_case,
    ):
        found = verify_plan(opened.run, cases, thresholds, on_case=on_case, progress=progress)
    report = search.run(found.worst_inputs, thresholds, found.passed) if search else None
    name = str(reference) if isinstance(reference, Path) else reference.name
    runner = None if isinstance(reference, Path) else reference.runner
    if html is not None:
        drawn = search.model if search else _same_model(loaded.manifest, against)
        _write_page(html, loaded, name, found, origin, report, drawn)
    if json:
        print_json(_document(plan, name, runner, found, origin, save, report))
    else:
        _print(name, found, origin, save)
        if report is not None:
            _print_layers(report, found.passed)
    if not found.passed:
        raise typer.Exit(1)


class _Source:
    """Source of the inputs, from the options."""

    def __init__(
        self,
        inputs: list[str],
        seed: int | None,
        shapes: list[str],
        data: str | None,
        count: int | None,
        seeds: int | None,
        corners: bool | None,
    ) -> None:
        if data is not None and (inputs or seed is not None):
            raise SpecError("--data provides all inputs; leave --input and --random out")
        for option, number in (("--batches", count), ("--seeds", seeds)):
            if number is not None and number < 1:
                raise SpecError(f"{option} {number}: must be at least 1")
        if count is not None and data is None:
            raise SpecError("--batches: no effect without --data; --seeds is for --random")
        if seed is None and (seeds is not None or corners is not None):
            option = "--corners" if seeds is None else "--seeds"
            raise SpecError(f"{option}: no effect without --random SEED")
        if corners and (inputs or shapes):
            raise SpecError("--corners: no effect with --input or --shape, which say the shapes")
        self._entries = inputs
        with open_inputs(inputs) as given:
            self.names = given.names
        self.shapes: dict[str, Shape] = read_shapes(shapes)
        check_seed(seed, self.shapes)
        self.seed, self.data, self.count = seed, data, count
        self.seeds = seeds or _SEEDS
        self.corners = not (inputs or shapes) if corners is None else corners

    def several(self, opened: OpenPlan) -> bool:
        """Whether there may be more than one batch."""
        random = self.seed is not None and self.seeds * len(self._corners(opened.inputs)) > 1
        return self.data is not None or random

    def check(self, stored: bool) -> None:
        """Reject inputs with a reference that stores its own, and no inputs with any other."""
        given = self.names or self.seed is not None or self.data is not None
        if stored and given:
            raise SpecError(
                "--against names stored inputs and outputs; leave --input, --random and --data out"
            )
        if not stored and not given:
            raise SpecError(
                "no inputs: give --input NAME=FILE.npy, --random SEED, or --data FOLDER"
            )

    @contextlib.contextmanager
    def cases(
        self, reference: Reference | Path, opened: OpenPlan, progress: Progress
    ) -> Iterator[Cases]:
        """The batches, each with a function that computes its reference outputs."""
        from trt_native.verify.check import Case, Cases

        outputs = [tensor.name for tensor in opened.outputs]
        if isinstance(reference, Path):
            from trt_native.verify import GoldenFile

            with GoldenFile.open(reference, opened.inputs, opened.outputs) as golden:
                yield Cases(len(golden), (Case(*case) for case in golden.cases()))
        else:
            with open_inputs(self._entries) as given:
                batches = self._batches(opened.inputs, given, progress)
                yield Cases(
                    len(batches),
                    (
                        case._replace(reference=partial(reference, case.inputs, outputs, progress))
                        for case in batches
                    ),
                )

    def _batches(
        self, tensors: tuple[PlanTensor, ...], given: GivenInputs, progress: Progress
    ) -> Cases:
        """The cases, but for their reference."""
        from trt_native.verify.check import Case, Cases

        if self.data is not None:
            from trt_native.calibration import read_batches

            with phase(progress, "Reading the data"):
                inputs = [_spec(tensor) for tensor in tensors]
                batches = read_batches(self.data, inputs, limit=self.count)
            return Cases(len(batches), (Case(batch, dict) for batch in batches))
        if self.seed is None:
            return Cases(1, iter([Case(given.read(tensors), dict)]))
        count = self.seeds * len(self._corners(tensors))
        return Cases(count, self._random(tensors, given, self.seed))

    def _random(
        self, tensors: tuple[PlanTensor, ...], given: GivenInputs, first: int
    ) -> Iterator[Case]:
        import numpy as np

        from trt_native.verify.check import Case

        for corner in self._corners(tensors):
            for seed in range(first, first + self.seeds):
                batch = fill_random(
                    tensors,
                    given.read(tensors),
                    {**corner.shapes, **self.shapes},
                    np.random.default_rng(seed),
                    values=corner.values,
                )
                label = f"{corner.label}, seed {seed}" if self.seeds > 1 else corner.label
                yield Case(batch, dict, label, corner.mixed)

    def _corners(self, tensors: tuple[PlanTensor, ...]) -> list[Corner]:
        from trt_native.verify.corners import Corner, profile_corners

        if not self.corners:
            return [Corner("shapes as given" if self.shapes else "opt")]
        return profile_corners(tensors, _MOST_CORNERS)


def _spec(tensor: PlanTensor) -> TensorSpec:
    """An input's specification, with its dimensions by name."""
    dims = tensor.dims or (None,) * len(tensor.shape)
    axes = zip(tensor.shape, dims, strict=True)
    return TensorSpec(
        tensor.name, tensor.dtype, tuple(dim if axis == -1 else axis for axis, dim in axes)
    )


@contextlib.contextmanager
def _saving(path: Path | None, several: bool) -> Iterator[Callable[..., None] | None]:
    if path is None:
        yield None
        return
    from trt_native.verify.reference import golden_writer

    with golden_writer(path, several=several) as write:
        yield write


class _Layers:
    """The search inside the model. Its arguments are checked first, as far as possible."""

    def __init__(
        self,
        path: Path,
        plan: Plan,
        model: Path | None,
        reference: Reference | Path,
        memory_bytes: int,
        runtime: CpuRuntime,
        observation: Observation,
    ) -> None:
        from trt_native.backends.registry import load_backend
        from trt_native.verify import OnnxReference

        if plan.manifest is None:
            raise SpecError(
                "--layers: the plan has no manifest, so its build options are unknown; build it"
                " with trt-native build"
            )
        if memory_bytes < 1:
            raise SpecError("--memory must be at least 1 byte")
        # Plugins are loaded where they are named, never because a manifest names them.
        self.config = replace(
            plan.manifest.build_config(), plugins=plan.plugins, serialize_plugins=False
        )
        self.backend = load_backend(plan.header.backend)
        has_debug_tensors = self.backend.capabilities.debug_tensors
        if observation is Observation.DEBUG_TENSORS and not has_debug_tensors:
            raise UnsupportedError(
                f"--observe {observation}: {self.backend.product} {self.backend.version} gives out"
                f" no debug tensors; leave it out, or use {Observation.OUTPUTS}"
            )
        self.outputs = observation is not Observation.DEBUG_TENSORS
        self.debug_tensors = observation is not Observation.OUTPUTS and has_debug_tensors
        self.memory_bytes = memory_bytes
        self.runtime = runtime
        self.reference = reference.path if isinstance(reference, OnnxReference) else None
        self.model = self._find(path, plan, model)

    def _find(self, path: Path, plan: Plan, model: Path | None) -> Path:
        from trt_native.files import sha256_of_file
        from trt_native.graph.onnx_file import read_model
        from trt_native.plans.manifest import find_model

        assert plan.manifest is not None  # noqa: S101  # for the type checker
        wanted = str(plan.manifest.model["sha256"])
        neighbour, note = find_model(plan.manifest, path)
        if model is None and neighbour is not None and sha256_of_file(neighbour) == wanted:
            return neighbour
        chosen = model or self.reference
        if chosen is None:
            raise SpecError(f"--layers: {note}; or name the ONNX file with --model")
        read_model(chosen)
        if sha256_of_file(chosen) != wanted:
            stderr.print(
                f"warning: the plan was not built from {chosen} as it is now; --layers inspects"
                " plans of that file nevertheless",
                markup=False,
                highlight=False,
            )
        return chosen

    def run(
        self, inputs: Mapping[str, np.ndarray[Any, Any]], thresholds: Thresholds, passed: bool
    ) -> LayerReport:
        from trt_native.progress_bars import ProgressDisplay
        from trt_native.verify import (
            find_first_mismatch,
            open_with_debug_tensors,
            open_with_extra_outputs,
        )

        with ProgressDisplay(stderr) as progress:
            opened = partial(
                open_with_extra_outputs,
                self.model,
                self.config,
                backend=self.backend,
                progress=progress,
            )
            debugged = partial(
                open_with_debug_tensors,
                self.model,
                self.config,
                backend=self.backend,
                progress=progress,
            )
            return find_first_mismatch(
                self.model,
                inputs,
                opened,
                thresholds,
                reference=self.reference,
                memory_bytes=self.memory_bytes,
                open_broken=None if passed else lambda names: opened((), broken=names),
                open_debug=debugged if self.debug_tensors else None,
                extra_outputs=self.outputs,
                fixed_inputs=self.config.fixed_values(),
                runtime=self.runtime,
                progress=progress,
            )


def _same_model(manifest: Manifest | None, reference: str) -> Path | None:
    """The reference, if it is the ONNX file that the plan was built from."""
    from trt_native.files import sha256_of_file

    if manifest is None or not reference.endswith(".onnx"):
        return None
    same = sha256_of_file(Path(reference)) == manifest.model["sha256"]
    return Path(reference) if same else None


def _write_page(
    html: Path,
    plan: Plan,
    reference: str,
    found: Verification,
    origin: str,
    report: LayerReport | None,
    model: Path | None,
) -> None:
    from trt_native.page import verify_page

    assert plan.path is not None  # noqa: S101  # for the type checker: it was opened
    drawn, remarks = model_of(plan.manifest, plan.path, model)
    if report is not None:
        remarks += _conclusions(report, found.passed)
    page = verify_page(
        str(plan.path), reference, found, origin, layers=report, model=drawn, remarks=remarks
    )
    write_text(html, page)


def _document(
    plan: Path,
    reference: str,
    runner: str | None,
    found: Verification,
    origin: str,
    saved: Path | None,
    report: LayerReport | None,
) -> dict[str, Any]:
    limits, problems = found.thresholds, found.problems()
    return {
        "plan": str(plan),
        "reference": reference,
        "reference_runner": runner,
        "passed": found.passed,
        "thresholds": {
            "max_relative_error": _finite(limits.max_relative_error),
            "max_absolute_error": _finite(limits.max_absolute_error),
            "min_cosine": limits.min_cosine,
            "min_psnr": _finite(limits.min_psnr),
            "floor": limits.floor,
            "relative_error_is": origin,
        },
        "outputs": [{**c.to_json(), "problems": problems[c.name]} for c in found.worst()],
        "batches": [[c.to_json() for c in batch] for batch in found.batches],
        "labels": list(found.labels),
        "skipped": dict(found.skipped),
        "saved": str(saved) if saved else None,
        "layers": report.to_json() if report else None,
    }


def _finite(value: float | None) -> float | None:
    """Replace an infinite limit, which has no effect, by None: JSON has no infinity."""
    return None if value is None or abs(value) == float("inf") else value


def _print(reference: str, found: Verification, origin: str, saved: Path | None) -> None:
    from trt_native.verify.tables import COMPARISON_COLUMNS, output_rows

    count, problems, worst = len(found.batches), found.problems(), found.worst()
    table(
        f"Outputs against {reference}" + (f", the worst of {count} batches" if count > 1 else ""),
        ("output", "dtype", "shape", *COMPARISON_COLUMNS, ""),
        output_rows(found),
    )
    limits = found.thresholds
    stdout.print(f"Limits: {limits}; the relative error is {origin}.", markup=False)
    if any(c.floored for c in worst):
        stdout.print(
            f"* measured against the floor of {limits.floor:g}, as the reference is smaller than"
            " that; cosine and PSNR do not count there.",
            markup=False,
        )
    if any(c.nan != (0, 0) or c.inf != (0, 0) for c in worst):
        stdout.print("NaN and Inf: in the plan / in the reference.", markup=False)
    for name, reasons in problems.items():
        if reasons:
            more = f", and {len(reasons) - 3} more" if len(reasons) > 3 else ""
            stdout.print(f"{name} fails: {'; '.join(reasons[:3])}{more}", markup=False)
    for label, reason in found.skipped.items():
        stdout.print(f"not compared: {label}: {reason}", markup=False, highlight=False)
    failed = sum(map(bool, problems.values()))
    stdout.print(
        "PASSED: all outputs are within the tolerance."
        if found.passed
        else f"FAILED: {failed} of {len(problems)} outputs exceed the tolerance.",
        highlight=False,
    )
    if saved is not None:
        stderr.print(f"written to {saved}", markup=False, highlight=False)


def _print_layers(report: LayerReport, passed: bool) -> None:
    from trt_native.verify.tables import TENSOR_COLUMNS, tensor_rows

    table("Tensors inside, the worst first", TENSOR_COLUMNS, tensor_rows(report))
    debug = f", {report.debug_tensors} as debug tensors" if report.debug_tensors else ""
    stdout.print(
        f"Compared {report.compared} of {report.tensors} tensors{debug}; plans built:"
        f" {report.plans}.",
        markup=False,
    )
    stdout.print(f"Their reference: {report.reference}.", markup=False, highlight=False)
    if report.too_large:
        stdout.print(
            f"{len(report.too_large)} tensors are larger than --memory: {report.too_large[0]}"
            f"{' and others' if len(report.too_large) > 1 else ''}",
            markup=False,
        )
    for line in _conclusions(report, passed):
        stdout.print(line, markup=False, highlight=False)


def _conclusions(report: LayerReport, passed: bool) -> Iterator[str]:
    first, hidden = report.first, report.hidden
    if hidden is not None:
        yield from _hidden_fault(hidden, report)
    elif first is not None:
        debug = first.observed == "debug tensor"
        yield (
            f"First mismatch{' of the debug tensors' if debug else ''}: {first.name} (output of"
            f" {first.operator} {first.node!r})"
            f"{'.' if debug else '; all inputs of that node match.'}"
        )
    elif passed:
        yield "No mismatch: all tensors are within the tolerance."
    elif report.break_fusion is None:
        yield (
            "No intermediate tensor exceeds the tolerance when it is marked as an output: the plan"
            " was built from another model, or the difference comes from layer fusion."
        )
    if report.break_fusion is not None:
        option = shlex.join(["--break-fusion", report.break_fusion])
        yield (
            f"The outputs match where TensorRT does not fuse nodes across {report.break_fusion}:"
            f" build the plan with {option}"
        )


def _hidden_fault(hidden: HiddenFault, report: LayerReport) -> Iterator[str]:
    def described(result: TensorResult) -> str:
        seen = "output of the model" if result.observed == "output" else f"as {result.observed}"
        verdict = "matches" if result.agrees else "does not match"
        return f"{result.name} ({result.operator} {result.node!r}; {seen}: {verdict})"

    start = "the inputs" if hidden.last_match is None else described(hidden.last_match)
    what = (
        "Only without the further outputs there is a mismatch, so a fusion is at fault:"
        if report.first is None
        else "First mismatch:"
    )
    yield f"{what} between {start} and {described(hidden.mismatch)}."
    if report.break_fusion is not None:
        return
    if hidden.tried:
        yield f"The outputs do not match without fusions across {', '.join(hidden.tried)} either."
    if hidden.untried is not None:
        yield f"Try {shlex.join(['--break-fusion', hidden.untried])}."
