"""References to compare a plan with: an ONNX file, a Python callable, or stored arrays."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from trt_native.arrays import (
    Array,
    ArrayArchive,
    ArrayWriter,
    Batch,
    is_float,
    open_arrays,
    write_arrays,
)
from trt_native.calibration.cpu_runner import CpuRunner, expected_runtime
from trt_native.calibration.sources import load_function
from trt_native.config import CpuRuntime, FixedValues
from trt_native.errors import USER_CODE_ERRORS, CalibrationError, SpecError, close_names
from trt_native.graph.fixed_inputs import fix_inputs
from trt_native.graph.functions import inline_functions
from trt_native.graph.nodes import all_nodes
from trt_native.graph.onnx_file import read_model
from trt_native.plans.manifest import PlanTensor
from trt_native.progress import Progress, phase
from trt_native.reference import NAME
from trt_native.reference.evaluator import has_own_formula
from trt_native.runtime.input_checks import check_inputs, count_profiles
from trt_native.shapes import format_shape

__all__ = [
    "COMPARING",
    "RUNNER",
    "CallableReference",
    "GoldenFile",
    "OnnxReference",
    "Reference",
    "golden_writer",
    "open_reference",
    "read_inlined",
    "reference_program",
]

RUNNER = f"{NAME} {onnx.__version__}"
"""The program that runs ONNX files, with its version."""

_LOGGER = logging.getLogger(__name__)
COMPARING = "Comparing with the reference"
"""The phase of which a reference's work is a part."""

_FORMS = "name an ONNX file, an .npz file, FILE.py:CALLABLE or package.module:CALLABLE"
_BATCH = re.compile(r"batch_(\d{1,9})/(.+)", re.DOTALL)


class Reference(Protocol):
    """Computes what a plan should."""

    @property
    def name(self) -> str:
        """Name of the reference, for people."""
        ...

    @property
    def runner(self) -> str:
        """The program that computes it, with its version."""
        ...

    def __call__(
        self, batch: Batch, outputs: Sequence[str], progress: Progress | None = None
    ) -> dict[str, Array]:
        """The outputs for a batch of inputs.

        Args:
            batch: The inputs.
            outputs: Names of the outputs.
            progress: Receives progress callbacks.

        Raises:
            SpecError, CalibrationError: the reference does not take the inputs, or lacks an output.
            UnsupportedError: it cannot compute them.
        """
        ...


def open_reference(
    text: str,
    fixed_inputs: FixedValues | None = None,
    runtime: CpuRuntime = CpuRuntime.AUTO,
) -> Reference | Path:
    """Find out what a reference names, and load it.

    Args:
        text: An ONNX file, ``FILE.py:CALLABLE``, ``package.module:CALLABLE``, or an ``.npz`` file.
        fixed_inputs: Values of the inputs that the plan lacks, as they are constants of it.
        runtime: What runs an ONNX file.

    Returns:
        The reference; for an ``.npz`` file its path, for :meth:`GoldenFile.open`.

    Raises:
        SpecError: it is none of these, or the callable cannot be loaded.
        ModelError: the ONNX file is damaged.
    """
    path = Path(text)
    if path.suffix == ".onnx":
        return OnnxReference(path, fixed_inputs, runtime)
    if path.suffix == ".npz":
        return path
    if ":" in text and not path.exists():
        return CallableReference(text, fixed_inputs)
    found = "no such file" if not path.exists() else "no reference"
    raise SpecError(f"reference {text}: {found}; {_FORMS}", options=("against",))


def read_inlined(path: Path, fixed_inputs: FixedValues | None = None) -> ir.Model:
    """Read a model, with the bodies of its functions in the place of their calls.

    Args:
        path: The file.
        fixed_inputs: Values of inputs that become constants, where the model has them.

    Raises:
        ModelError: the file is missing or damaged.
    """
    model = read_model(path)
    fix_inputs(model, fixed_inputs or {})
    inline_functions(model)
    return model


def reference_program(model: ir.Model) -> str:
    """The program that runs a model, with the operators that it lacks and this package has."""
    own = {n.op_type for n in all_nodes(model.graph) if has_own_formula(n.op_type, n.domain)}
    return f"{RUNNER} with formulas of trt_native for {', '.join(sorted(own))}" if own else RUNNER


class OnnxReference:
    """An ONNX file run on the CPU, in the types that the file has.

    OpenVINO runs what is FP32 where it is installed; ``onnx.reference`` runs the rest, or all of
    it, which is slow. Operators that ``onnx.reference`` has wrong are those of
    :mod:`trt_native.reference`.

    Args:
        path: The file.
        fixed_inputs: Values of the inputs that batches lack.
        runtime: What to run it with.

    Raises:
        ModelError: it is missing or damaged.
        UnsupportedError: OpenVINO was asked for and is not installed.
    """

    def __init__(
        self,
        path: Path,
        fixed_inputs: FixedValues | None = None,
        runtime: CpuRuntime = CpuRuntime.AUTO,
    ) -> None:
        self.path = path
        self._fixed = dict(fixed_inputs or {})
        self._model: ir.Model | None = read_inlined(path, self._fixed)
        self.runtime = runtime
        self._program = reference_program(self._model)
        expected_runtime(runtime)  # says what is not installed before there is work
        self._runner: CpuRunner | None = None
        self._outputs: tuple[str, ...] = ()

    @property
    def runner(self) -> str:
        """See :class:`Reference`; after a run also how far the runtime was checked."""
        return self._program if self._runner is None else self._runner.program

    @property
    def name(self) -> str:
        """See :class:`Reference`."""
        return f"{self.path}, run by {self.runner}"

    def __call__(
        self, batch: Batch, outputs: Sequence[str], progress: Progress | None = None
    ) -> dict[str, Array]:
        """See :class:`Reference`. Any tensor of the main graph can be an output.

        Raises:
            SpecError: the model has no such tensor.
            CalibrationError: the inputs do not fit.
            UnsupportedError: the model cannot be run, or OpenVINO was wrong.
        """
        if self._runner is None or self._outputs != tuple(outputs):
            self._runner = self._open(outputs)
            self._outputs = tuple(outputs)
        with phase(progress, "Running the reference", self._runner.steps, parent=COMPARING) as step:
            return {name: np.array(array) for name, array in self._runner(batch, step)}

    def _open(self, outputs: Sequence[str]) -> CpuRunner:
        model = self._model or read_inlined(self.path, self._fixed)
        self._model = None  # the runner cuts it down
        graph = model.graph
        known = {str(v.name) for v in (*graph.inputs, *graph.initializers.values())}
        known |= {str(value.name) for node in graph for value in node.outputs}
        for name in outputs:
            if name not in known:
                have = ", ".join(str(value.name) for value in graph.outputs)
                raise SpecError(
                    f"{self.path}: has no tensor {name!r}, which the plan returns; its outputs are"
                    f" {have}; compare with the model that the plan was built from"
                )
        return CpuRunner(
            model,
            outputs,
            self.runtime,
            reference_program=self._program,
            alternative="compare with a callable or with stored outputs instead",
            options=("against",),
        )


class CallableReference:
    """A function or module of the user's, which takes the inputs by name.

    It gets torch tensors, on the CPU, if torch is imported by the time it is loaded, else NumPy
    arrays. It returns arrays or tensors: a mapping of output name to each, or a sequence in the
    plan's order, or the only one. It runs in ``torch.inference_mode``.

    Args:
        text: ``FILE.py:CALLABLE`` or ``package.module:CALLABLE``.
        fixed_inputs: Values of the inputs that batches lack; it gets them, too.

    Raises:
        SpecError: it cannot be loaded.
    """

    def __init__(self, text: str, fixed_inputs: FixedValues | None = None) -> None:
        self.name = text
        self._fixed = {name: np.array(value) for name, value in (fixed_inputs or {}).items()}
        self.runner = "Python"
        try:
            self._function = load_function(text)
        except CalibrationError as error:
            raise SpecError(f"reference {error.message}", options=("against",)) from error
        self._torch: Any = sys.modules.get("torch")
        if self._torch is not None:
            self.runner = f"PyTorch {self._torch.__version__}"
        if getattr(self._function, "training", False) is True:
            _LOGGER.warning("%s is in training mode; call its eval() for one without dropout", text)

    def __call__(
        self, batch: Batch, outputs: Sequence[str], progress: Progress | None = None
    ) -> dict[str, Array]:
        """See :class:`Reference`.

        Raises:
            SpecError: it raises an error, or does not return the outputs.
        """
        with phase(progress, f"Calling {self.name}", parent=COMPARING):
            result = self._call({**self._fixed, **batch})
        if isinstance(result, Mapping):
            by_name = {str(name): value for name, value in result.items()}
            missing = [name for name in outputs if name not in by_name]
            if missing:
                raise SpecError(
                    f"{self.name} returned {', '.join(by_name) or 'nothing'}; the plan also has the"
                    f" output {', '.join(missing)}"
                )
            results = [by_name[name] for name in outputs]
        else:
            results = list(result) if isinstance(result, (tuple, list)) else [result]
        if len(results) != len(outputs):
            raise SpecError(
                f"{self.name} returned {len(results)} values for the {len(outputs)} outputs"
                f" {', '.join(outputs)}; return all of them, in this order or by name"
            )
        return {n: self._array(n, value) for n, value in zip(outputs, results, strict=True)}

    def _call(self, batch: Batch) -> Any:
        scope: AbstractContextManager[Any] = contextlib.nullcontext()
        inputs: Mapping[str, Any] = batch
        if self._torch is not None:
            inputs = {name: _tensor(self._torch, array) for name, array in batch.items()}
            scope = self._torch.inference_mode()
        try:
            with scope:
                return self._function(**inputs)
        except USER_CODE_ERRORS as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise SpecError(
                f"{self.name} raised {reason}; it is called with the inputs"
                f" {', '.join(f'{name}={array.dtype}' for name, array in batch.items())}"
            ) from error

    def _array(self, name: str, value: Any) -> Array:
        if self._torch is not None and isinstance(value, self._torch.Tensor):
            value = value.detach().cpu()
            reduced = value.is_floating_point() and value.element_size() < 4
            return np.asarray((value.float() if reduced else value).numpy())
        try:
            array = np.asarray(value)
        except USER_CODE_ERRORS as error:  # a ragged list, an array on a GPU: each has its own kind
            reason = " ".join(str(error).split())
            raise SpecError(
                f"{self.name}: output {name!r} cannot be read as an array: {reason}"
            ) from None
        if array.dtype.kind == "O":
            raise SpecError(
                f"{self.name}: output {name!r} is a {type(value).__name__}, not an array or tensor"
            )
        return array


def _tensor(torch: Any, array: Array) -> Any:
    """A tensor with a copy of the array, in the same type."""
    plain = np.array(array, order="C")  # NumPy's own types only, and writable
    if plain.dtype.kind != "V" and plain.dtype.kind in "fiub":
        return torch.from_numpy(plain)
    name = array.dtype.name
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(plain.view(np.int16)).view(torch.bfloat16)
    if not hasattr(torch, name):
        raise SpecError(f"torch has no type {name}")
    return torch.from_numpy(plain.view(np.uint8)).view(getattr(torch, name))


class GoldenFile:
    """Inputs and outputs in an ``.npz`` file, by the names of the plan's tensors.

    Several batches have their number before the name: ``batch_0000/x``. Types that NumPy's files do
    not know are stored as float32. Use as ``with GoldenFile.open(path, ...) as golden``.

    Attributes:
        name: The file, for people.
    """

    def __init__(
        self, archive: ArrayArchive, inputs: Sequence[PlanTensor], outputs: Sequence[PlanTensor]
    ) -> None:
        self.name = str(archive.path)
        self._archive = archive
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._prefixes = self._check()
        self._check_headers()

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, path: Path, inputs: Sequence[PlanTensor], outputs: Sequence[PlanTensor]
    ) -> Iterator[GoldenFile]:
        """Open a file and check that it has an array for every tensor of the plan.

        Raises:
            SpecError: it cannot be read, lacks arrays, has others, or has some whose types or
                shapes the plan's tensors cannot have.
        """
        with open_arrays(path) as archive:
            yield cls(archive, inputs, outputs)

    def __len__(self) -> int:
        return len(self._prefixes)

    def cases(self) -> Iterator[tuple[dict[str, Array], Callable[[], dict[str, Array]]]]:
        """Inputs and outputs, batch by batch; floating-point inputs in the plan's types.

        Raises:
            SpecError: an array is damaged.
        """
        for prefix in self._prefixes:
            inputs = {t.name: self._input(t, prefix) for t in self._inputs}
            yield inputs, partial(self._expected, prefix)

    def _expected(self, prefix: str) -> dict[str, Array]:
        return {t.name: self._archive[prefix + t.name].read() for t in self._outputs}

    def _input(self, tensor: PlanTensor, prefix: str) -> Array:
        stored = self._archive[prefix + tensor.name]
        return stored.read().astype(_kept_type(stored.dtype, tensor), copy=False)

    def _check_headers(self) -> None:
        """Check types and shapes before any array is read."""
        for prefix in self._prefixes:
            found = {}
            for tensor in self._inputs:
                stored = self._archive[prefix + tensor.name]
                found[tensor.name] = stored.placeholder(_kept_type(stored.dtype, tensor))
            try:
                check_inputs(self._inputs, count_profiles(self._inputs), found)
            except SpecError as error:
                place = f" ({prefix.rstrip('/')})" if prefix else ""
                raise error.restated(f"{self.name}{place}: {error.message}", SpecError) from None
            for tensor in self._outputs:
                shape = self._archive[prefix + tensor.name].shape
                if not tensor.can_have(shape):
                    raise SpecError(
                        f"{self.name}: {prefix}{tensor.name} has the shape {format_shape(shape)},"
                        f" the plan's output {tensor.describe_shape()}"
                    )

    def _check(self) -> tuple[str, ...]:
        """The prefixes of the batches."""
        batches: dict[str, set[str]] = {}
        for name in self._archive:
            match = _BATCH.fullmatch(name)
            prefix = f"batch_{match[1]}/" if match else ""
            batches.setdefault(prefix, set()).add(match[2] if match else name)
        if not batches:
            raise SpecError(f"{self.name}: holds no arrays")
        wanted = [tensor.name for tensor in (*self._inputs, *self._outputs)]
        problems = []
        for prefix, names in batches.items():
            problems += [f"{prefix}{name} is missing" for name in wanted if name not in names]
            for name in sorted(names - set(wanted)):
                close = close_names(name, wanted)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                problems.append(f"{prefix}{name} is not an input or output of the plan{hint}")
        if problems:
            more = [f"- and {len(problems) - 10} more"] if len(problems) > 10 else []
            raise SpecError(
                f"{self.name}: these are not the plan's inputs and outputs:",
                [*more, f"the plan's tensors: {', '.join(wanted)}"],
                problems=problems[:10],
            )
        return tuple(sorted(batches, key=lambda prefix: (len(prefix), prefix)))


def _kept_type(found: np.dtype[Any], tensor: PlanTensor) -> np.dtype[Any]:
    """The type that a stored array is given in: the plan's, where both are floating-point."""
    wanted = np.dtype(tensor.dtype)
    return wanted if is_float(found) and is_float(wanted) else found


class _GoldenWriter:
    def __init__(self, write: ArrayWriter, several: bool) -> None:
        self._write = write
        self._several = several
        self._count = 0

    def __call__(self, inputs: Batch, outputs: Mapping[str, Array]) -> None:
        """Add a batch."""
        prefix = f"batch_{self._count:04}/" if self._several else ""
        for name, array in (*inputs.items(), *outputs.items()):
            self._write(prefix + name, array)
        self._count += 1


@contextlib.contextmanager
def golden_writer(path: Path, *, several: bool) -> Iterator[_GoldenWriter]:
    """Write a file for :class:`GoldenFile`, whole or not at all.

    Args:
        path: The ``.npz`` file.
        several: Whether there may be more than one batch.
    """
    with write_arrays(path) as write:
        yield _GoldenWriter(write, several)
