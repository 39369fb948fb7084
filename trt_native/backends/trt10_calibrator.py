"""TensorRT 10's INT8 calibration: it asks for batches while it builds, and finds the ranges itself.

TensorRT swallows what a calibrator raises and treats it as the end of the data, so that it would
silently calibrate on less. Nothing here raises into it: the first exception is kept, the pass and
the build end, and the caller raises it afterwards.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trt_native.arrays import Array, is_float
from trt_native.backends.base import BuildRequest, Calibration
from trt_native.cuda import DeviceBuffer, PinnedPool, Stream, copy_host
from trt_native.errors import CalibrationError, SpecError, UnsupportedError
from trt_native.files import atomic_write
from trt_native.progress import Progress
from trt_native.shapes import format_shape

__all__ = [
    "DeviceUploader",
    "Uploader",
    "check_calibration",
    "make_calibrator",
    "with_header",
]

_LOGGER = logging.getLogger(__name__)
_PHASE = "Calibrating INT8"


class Uploader(Protocol):
    """Brings arrays to where TensorRT reads them."""

    def upload(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        """Copy every array to a buffer of its own, and wait until that is done.

        Returns:
            Address of each buffer: the same at every call, as long as the sizes are.
        """
        ...

    def close(self) -> None:
        """Free the buffers. May be called again."""


class DeviceUploader:
    """An :class:`Uploader` to GPU memory, through page-locked memory and a stream of its own.

    Touches the GPU at the first upload, on the thread of that call.
    """

    def __init__(self) -> None:
        self._stream: Stream | None = None
        self._pool = PinnedPool()
        self._buffers: dict[str, DeviceBuffer] = {}

    def upload(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        """See :meth:`Uploader.upload`.

        Raises:
            CudaError: no GPU is available, or it has too little memory.
        """
        stream = self._stream = self._stream or Stream()
        addresses, staged = {}, []
        try:
            for name, array in arrays.items():
                buffer = self._buffers.setdefault(name, DeviceBuffer())
                addresses[name] = buffer.reserve(array.nbytes, stream)
                staged.append(self._pool.lend(array.nbytes).array(array.shape, array.dtype))
                copy_host(staged[-1], array)
                buffer.upload(staged[-1], stream)
        finally:
            stream.synchronize()  # until then the copies read the staged arrays
        return addresses

    def close(self) -> None:
        """See :meth:`Uploader.close`."""
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()
        self._pool.trim()
        if self._stream is not None:
            self._stream.close()
        self._stream = None


def check_calibration(request: BuildRequest) -> None:
    """Refuse a calibration that TensorRT would ignore, or would silently get wrong.

    Raises:
        UnsupportedError: the network is strongly typed, or inputs are shapes.
        SpecError: the model is quantized already, or the data has extents other than those the
            plan is fixed to.
        CalibrationError: the batches differ in shape.
    """
    calibration = request.calibration
    if calibration is None:
        return
    if request.strongly_typed:
        raise UnsupportedError(
            f"{request.onnx.name}: an INT8 calibrator needs a network whose types TensorRT may"
            " choose: export the model in FP32, and build it without weight streaming"
        )
    if {"QuantizeLinear", "DequantizeLinear"} & set(request.operators):
        raise SpecError(
            f"{request.onnx.name} has Q/DQ nodes, which hold its ranges: build it without"
            " calibration data"
        )
    if any(profile.values for profile in request.profiles):
        raise UnsupportedError(
            f"{request.onnx.name} has inputs that are shapes, which an INT8 calibrator cannot"
            " serve: put Q/DQ nodes into the model instead"
        )
    shapes = calibration.batches.common_shapes() if calibration.batches is not None else {}
    problems = [
        f"{name!r} is {format_shape(shape)} in the data, and fixed to"
        f" {'x'.join('?' if extent is None else str(extent) for extent in request.fixed[name])}"
        for name, shape in shapes.items()
        if any(
            extent not in (None, found)
            for extent, found in zip(request.fixed.get(name, ()), shape, strict=False)
        )
    ]
    if problems:
        raise SpecError("the calibration data has other shapes than the plan:", problems=problems)


def with_header(cache: bytes, version: str, algorithm: str) -> bytes:
    """A calibration cache with the first line that this TensorRT writes, and so accepts.

    The line is ``TRT-<number>-<algorithm>``, where the number is major * 10000 + minor * 100 +
    patch; TensorRT 10 rejects a cache with any other line than its own, though the ranges below
    mean the same in all versions.

    Raises:
        CalibrationError: this is not a calibration cache, or it has no ranges.
    """
    first, _, ranges = cache.partition(b"\n")
    if not first.startswith(b"TRT-"):
        raise CalibrationError(
            f"not a calibration cache of TensorRT: it starts with {bytes(first[:20])!r}"
        )
    if not ranges.strip():
        raise CalibrationError("a calibration cache without ranges")
    return f"TRT-{_version_number(version)}-{algorithm}\n".encode() + ranges


def _version_number(version: str) -> int:
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    return major * 10000 + minor * 100 + patch


class _Calibrator:
    """Common part of both TensorRT calibrators; TensorRT calls its public methods.

    Attributes:
        failure: The first exception of any of them.
    """

    def __init__(
        self,
        calibration: Calibration,
        version: str,
        algorithm: str,
        uploader: Uploader,
        progress: Progress | None,
        cancelled: threading.Event,
    ) -> None:
        self.failure: BaseException | None = None
        self._batches = calibration.batches
        self._cache = calibration.cache
        self._version = version
        self._uploader = uploader
        self._progress = progress
        self._cancelled = cancelled
        self._cached_ranges = _read_cache(calibration, version, algorithm)
        self._expected = 0 if self._cached_ranges or self._batches is None else len(self._batches)
        self._served = 0
        self._iterator: Iterator[Mapping[str, Array]] | None = None

    # What TensorRT calls

    def get_batch_size(self) -> int:
        return 1  # the real one is in the calibration profile

    def get_batch(self, names: list[str]) -> list[int] | None:
        if self.failure is not None or self._cancelled.is_set():
            return None
        try:
            return self._next(names)
        except BaseException as error:  # of any kind; kept for the caller
            self._fail(error)
            return None

    def read_calibration_cache(self) -> bytes | None:
        return self._cached_ranges

    def write_calibration_cache(self, cache: Any) -> None:
        whole = self._served == self._expected and not self._cancelled.is_set()
        if (
            self._cache is None
            or self._cached_ranges is not None
            or self.failure is not None
            or not whole
        ):
            return
        try:
            with atomic_write(self._cache) as file:
                file.write(bytes(cache))
        except OSError as error:
            why = f"cannot write the calibration cache {self._cache}: {error.strerror or error}"
            self._fail(CalibrationError(why))
        except BaseException as error:
            self._fail(error)

    # What the build does

    def check(self) -> None:
        """Check that the finished build was calibrated on all of the data.

        Raises:
            CalibrationError: TensorRT did not read all batches.
            BaseException: the first exception that one of the calls above raised.
        """
        if self.failure is not None:
            raise self.failure
        if self._served != self._expected:
            raise CalibrationError(
                f"TensorRT {self._version} calibrated on {self._served} of {self._expected}"
                " batches; the plan was discarded"
            )

    def close(self) -> None:
        """Free the buffers. May be called again."""
        self._uploader.close()

    def _next(self, names: list[str]) -> list[int] | None:
        if self._cached_ranges is not None or self._batches is None:
            raise CalibrationError(
                f"TensorRT {self._version} did not accept the calibration cache {self._cache} and"
                " asked for data: delete it to calibrate again"
            )
        if self._iterator is None:
            self._iterator = iter(self._batches)
            self._notify("phase_start", _PHASE, None, self._expected)
        batch = next(self._iterator, None)
        if batch is None:
            self._notify("phase_finish", _PHASE)
            return None
        if unknown := [name for name in names if name not in batch]:
            raise CalibrationError(
                f"TensorRT asks for input {unknown[0]!r}, the data has {', '.join(batch)}"
            )
        addresses = self._uploader.upload({name: _as_tensorrt_reads(batch[name]) for name in names})
        self._served += 1
        self._notify("step_complete", _PHASE, self._served - 1)
        return [addresses[name] for name in names]

    def _notify(self, method: str, *arguments: Any) -> None:
        if self._progress is not None:
            getattr(self._progress, method)(*arguments)

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self._cancelled.set()  # or the build would go on for as long as it takes


def _as_tensorrt_reads(array: Array) -> Array:
    """The array as TensorRT reads it: floating-point inputs are FP32, regardless of the model."""
    return array.astype(np.float32, copy=False) if is_float(array.dtype) else array


def _read_cache(calibration: Calibration, version: str, algorithm: str) -> bytes | None:
    path = calibration.cache
    content = _content(path) if path is not None else b""
    if content:
        if calibration.batches is not None:
            _LOGGER.warning(
                "the ranges come from %s, the calibration data is not read; delete that file to"
                " calibrate again",
                path,
            )
        try:
            return with_header(content, version, algorithm)
        except CalibrationError as error:
            raise CalibrationError(f"{path}: {error}") from None
    if calibration.batches is None:
        missing = f"the calibration cache {path} is missing or empty" if path else "no cache"
        raise CalibrationError(f"nothing to calibrate with: {missing}, and no calibration data")
    return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CalibrationError(
            f"calibration cache {path}: cannot be read: {error.strerror}"
        ) from None


def make_calibrator(
    trt: Any,
    calibration: Calibration,
    uploader: Uploader,
    progress: Progress | None,
    cancelled: threading.Event,
) -> Any:
    """A ``trt.IInt8EntropyCalibrator2``, or a ``trt.IInt8MinMaxCalibrator``, over the batches.

    To be set as a builder configuration's ``int8_calibrator``. After the build its method
    ``check()`` raises what went wrong in TensorRT's calls, and ``close()`` frees what it holds.

    Args:
        trt: The module of TensorRT 10.
        calibration: What to calibrate with.
        uploader: Brings the batches to the GPU. Closed by the calibrator.
        progress: Receives progress callbacks.
        cancelled: Once set, the data ends; set by the calibrator when it fails.

    Raises:
        CalibrationError: the cache cannot be used, or there are neither ranges nor data.
    """
    version = str(trt.__version__)

    class EntropyCalibrator(_Calibrator, trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            _Calibrator.__init__(
                self, calibration, version, "EntropyCalibration2", uploader, progress, cancelled
            )

    class MinMaxCalibrator(_Calibrator, trt.IInt8MinMaxCalibrator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8MinMaxCalibrator.__init__(self)
            _Calibrator.__init__(
                self, calibration, version, "MinMaxCalibration", uploader, progress, cancelled
            )

    return MinMaxCalibrator() if calibration.method == "minmax" else EntropyCalibrator()
