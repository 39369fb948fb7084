"""A model run on the CPU: by OpenVINO where that can be had and agrees, else by the reference."""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array, Batch
from trt_native.calibration.reference_runner import ReferenceRunner
from trt_native.config import CpuRuntime
from trt_native.errors import ModelError, UnsupportedError
from trt_native.installing import install_command
from trt_native.reference import NAME
from trt_native.units import counted

if TYPE_CHECKING:
    from trt_native.calibration.openvino_runner import OpenVinoRunner

__all__ = ["CHECK_SECONDS", "CpuRunner", "expected_runtime"]

CHECK_SECONDS = 5.0
"""Time that the reference evaluator gets to check OpenVINO's results."""

_LARGEST_ERROR = 2e-4
"""Relative L2 error of a tensor of OpenVINO's: far above rounding, below that of reduced types."""

_FLOOR = 1e-3  # root mean square that errors are measured against at least: rounding of ones

_LONG_S = 10.0
_OPTIONS = ("calibration_runner", "reference_runner")
_OPENVINO = "OpenVINO"
_LOGGER = logging.getLogger(__name__)


def expected_runtime(runtime: CpuRuntime) -> str:
    """The runtime that a :class:`CpuRunner` tries first, by name.

    Raises:
        UnsupportedError: OpenVINO was asked for and is not installed.
    """
    return f"{_OPENVINO} {_version()}" if _takes_openvino(runtime) else NAME


def _takes_openvino(runtime: CpuRuntime) -> bool:
    if runtime is CpuRuntime.ONNX:
        return False
    installed = importlib.util.find_spec("openvino") is not None
    if runtime is CpuRuntime.AUTO:
        return installed and _is_measured()
    if not installed:
        raise UnsupportedError(
            f"{_OPENVINO} is not installed: {install_command('openvino')}", options=_OPTIONS
        )
    return True


def _version() -> str:
    from trt_native.calibration.openvino_runner import openvino_version

    return openvino_version()


def _is_measured() -> bool:
    """Whether the installed version has the features of the one that was measured."""
    from trt_native.calibration.openvino_operators import measurement

    return _version().split(".")[:2] == measurement().openvino.split(".")[:2]


class CpuRunner:
    """Runs a model on the CPU, in FP32 where it has FP32.

    OpenVINO runs it where it is installed in the version whose operators were measured. Before
    results of the first batch are returned, they are compared with the reference evaluator's, as
    far as that comes in :data:`CHECK_SECONDS`; if it does not get through, those of smaller batches
    are, too. Where they differ, and where OpenVINO fails, the reference evaluator takes over; it
    also runs the batches in which a number is not finite, or an integer has more than 32 bits.

    Args:
        model: As for :class:`~trt_native.calibration.reference_runner.ReferenceRunner`.
        tensors: Names of values of the main graph.
        runtime: What to run it with; by ``OPENVINO``, what is in the way of that is an error.
        reference_program: Name of the reference evaluator, where that runs it.
        alternative: What to do about a node that cannot be run, for the error.
        options: The Python options that the alternative is about.

    Raises:
        UnsupportedError: the reference does not have one of the operators, or OpenVINO was asked
            for and cannot run the model.
    """

    def __init__(
        self,
        model: ir.Model,
        tensors: Sequence[str],
        runtime: CpuRuntime = CpuRuntime.AUTO,
        *,
        reference_program: str = NAME,
        alternative: str = "",
        options: Sequence[str] = (),
    ) -> None:
        self._model, self._tensors = model, tuple(tensors)
        self._alternative, self._options = alternative, tuple(options)
        self._reference_program = reference_program
        self._runtime = runtime
        self._returned = False  # results of OpenVINO's
        self._checked: dict[str, float] = {}
        self._tried: int | None = None  # elements of the inputs of the smallest batch so far
        self._seconds = 0.0
        self._reference: ReferenceRunner | None = None
        self._engine = self._open() if _takes_openvino(runtime) else None
        if self._engine is None:
            self._open_reference()

    @property
    def program(self) -> str:
        """What runs the model, by name, and how far that was checked."""
        if self._engine is None:
            return self._reference_program
        others = f", {self._reference_program} for {', '.join(self._engine.others)}"
        name = f"{_OPENVINO} {_version()}{others if self._engine.others else ''}"
        if self._tried is None:
            return name
        of = counted(len(self._tensors), "tensor")
        if not self._checked:
            return f"{name}; none of {of} compared with {NAME}"
        worst = max(self._checked.values())
        return f"{name}; {len(self._checked)} of {of} compared with {NAME}: within {worst:.1e}"

    @property
    def steps(self) -> int:
        """Number of nodes that are run one by one: those of the reference."""
        return 0 if self._reference is None or self._engine is not None else self._reference.steps

    def __call__(
        self, batch: Batch, on_step: Callable[[int], None] | None = None
    ) -> Iterator[tuple[str, Array]]:
        """Run a batch.

        Args:
            batch: The inputs.
            on_step: Called with the number of each of :attr:`steps` that is done, counted from 0.

        Yields:
            Names and values, in any order, in memory that the next batch may overwrite.

        Raises:
            CalibrationError: an input is missing, unknown, or of another type or shape.
            UnsupportedError: the reference cannot run a node with these values, or OpenVINO was
                found to be wrong after results of it were returned.
        """
        if self._engine is None:
            yield from self._run_reference(batch, on_step)
            return
        from trt_native.calibration.openvino_runner import BatchError, EngineError

        expected = self._expected(batch)
        found: Iterable[tuple[str, Array]] = []
        try:
            found = self._engine(batch)
            for name, array in self._whole(found, expected):
                self._returned = True
                yield name, array
        except EngineError as error:
            if not isinstance(error, BatchError) or isinstance(found, Iterator):
                self._give_up(error)
            yield from self._run_reference(batch)

    def _whole(
        self, found: Iterable[tuple[str, Array]], expected: Mapping[str, Array]
    ) -> Iterator[tuple[str, Array]]:
        """The results, where they are all there compared before the first of them is returned."""
        if isinstance(found, list):
            for name, array in found:
                self._compare(name, array, expected)
            expected = {}
        for name, array in found:
            self._compare(name, array, expected)
            yield name, array

    def _compare(self, name: str, found: Array, expected: Mapping[str, Array]) -> None:
        from trt_native.calibration.openvino_runner import EngineError

        if name not in expected:
            return
        error = _relative_error(found, expected[name])
        if not error <= _LARGEST_ERROR:
            raise EngineError(f"tensor {name!r} differs from {NAME}: relative L2 {error:.1e}")
        self._checked[name] = max(error, self._checked.get(name, 0.0))

    def _expected(self, batch: Batch) -> dict[str, Array]:
        """Values by the reference, as many as come in time, of a batch that may get further."""
        size = sum(np.size(array) for array in batch.values())
        done = self._tried is not None and len(self._checked) >= len(self._tensors)
        if done or (self._tried is not None and size >= self._tried):
            return {}
        self._tried = size
        expected = {}
        deadline = time.monotonic() + CHECK_SECONDS
        for name, array in self._open_reference()(batch):
            if time.monotonic() > deadline:
                break
            expected[name] = np.asarray(array)
        return expected

    def _run_reference(
        self, batch: Batch, on_step: Callable[[int], None] | None = None
    ) -> Iterator[tuple[str, Array]]:
        """Run the reference; say once what would be faster where that takes long."""
        started = time.monotonic()
        for name, array in self._open_reference()(batch, on_step):
            self._seconds += time.monotonic() - started
            if self._seconds > _LONG_S and self._runtime is CpuRuntime.AUTO:
                _hint()
            yield name, array
            started = time.monotonic()

    def _open(self) -> OpenVinoRunner | None:
        from trt_native.calibration.openvino_runner import EngineError, OpenVinoRunner

        try:
            return OpenVinoRunner(self._model, self._tensors)
        except (EngineError, ModelError) as error:
            self._give_up(error)
        return None

    def _open_reference(self) -> ReferenceRunner:
        if self._reference is None:
            self._reference = ReferenceRunner(
                self._model,
                self._tensors,
                alternative=self._alternative,
                options=self._options,
            )
        return self._reference

    def _give_up(self, error: Exception) -> None:
        """Take the reference from here on, where that was not excluded and is not too late."""
        reason = f"{_OPENVINO} {_version()} cannot be used for this model: {error}"
        if self._returned:
            reason += "; results of it were used already, so begin again without it"
        if self._returned or self._runtime is CpuRuntime.OPENVINO:
            raise UnsupportedError(reason, options=_OPTIONS) from error
        _LOGGER.warning("%s; %s runs it", reason, NAME)
        self._engine = None


def _relative_error(found: Array, expected: Array) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else math.inf
    if not expected.size:
        return 0.0
    norm = max(float(np.linalg.norm(expected)), _FLOOR * expected.size**0.5)
    return float(np.linalg.norm(found - expected) / norm)


@functools.cache
def _hint() -> None:
    """Say once what would be faster."""
    if importlib.util.find_spec("openvino") is None or not _is_measured():
        _LOGGER.warning(
            "%s runs the model on the CPU, slowly; with %s it takes a fraction: %s",
            NAME, _OPENVINO, install_command("openvino"),
        )  # fmt: skip
