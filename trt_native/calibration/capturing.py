"""Calibration data from a running pipeline: what its denoiser is called with."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from trt_native._version import __version__
from trt_native.arrays import Array, Batch
from trt_native.calibration.folder import check_new_folder, write_batches
from trt_native.errors import CalibrationError, SpecError
from trt_native.progress import Progress, phase
from trt_native.progress_bars import AnyProgress, open_progress
from trt_native.shapes import Shape

__all__ = ["Capture", "capture"]

_LOGGER = logging.getLogger(__name__)
_Step: TypeAlias = "int | float | tuple[float, ...] | None"


def capture(
    denoiser: Callable[..., Any],
    folder: str | os.PathLike[str],
    *,
    batches: int = 64,
    arguments: Callable[..., Mapping[str, Any]] | None = None,
    timestep: str | None = "timestep",
    model: str = "",
    origin: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: AnyProgress = None,
) -> Capture:
    """Record the inputs of a denoiser's calls, and write them as calibration data.

    ::

        with capture(pipeline.unet, "calib_data/mine", batches=32):
            pipeline(...)

    Of all calls inside the block as many are kept as ``batches`` says, spread evenly over the
    timesteps and chosen at random among the calls of one timestep, so that the two halves of
    classifier-free guidance are both there, in one call or in two. No more than these are ever
    held in memory. When the block ends they are shuffled and written; where it ends with an
    exception, nothing is.

    Args:
        denoiser: The callable that the pipeline calls. A ``torch.nn.Module`` is hooked where it
            is. Anything else must be replaced in the pipeline by the object that the ``with``
            statement gives, which passes calls and attributes on.
        folder: The folder to write, which must not exist yet.
        batches: Number of calls to keep.
        arguments: Takes the denoiser's arguments and returns the model's inputs by name, as
            arrays, tensors or numbers. Default: the arguments themselves, under their parameters'
            names; those that are None, texts or flags are left out.
        timestep: Name of the input that holds the timestep; None for a model without one.
        model: The model the data is for, in words, for the manifest.
        origin: Origin of the data, for the manifest; as JSON can hold it.
        seed: Decides what is kept and how it is shuffled.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`. The steps are
            the calls, and then the batches that are written.

    Returns:
        A context manager.

    Raises:
        SpecError: ``batches`` is less than 1, or the folder is there already. From the block: a
            call's arguments cannot be recorded (CalibrationError), or none was made.
    """
    if batches < 1:
        raise SpecError(f"capture of {batches} batches: it must be at least 1")
    check_new_folder(Path(folder))
    return Capture(
        denoiser,
        Path(folder),
        _Sample(batches, seed),
        arguments or _own_arguments(denoiser),
        timestep,
        model,
        {**(origin or {}), "seed": seed},
        progress,
    )


class Capture:
    """A denoiser under observation. Made by :func:`capture`; use it as a context manager.

    Calling it calls the denoiser, and its attributes are the denoiser's.
    """

    def __init__(
        self,
        denoiser: Callable[..., Any],
        folder: Path,
        sample: _Sample,
        arguments: Callable[..., Mapping[str, Any]],
        timestep: str | None,
        model: str,
        origin: Mapping[str, Any],
        progress: AnyProgress,
    ) -> None:
        self._denoiser = denoiser
        self._folder = folder
        self._sample = sample
        self._arguments = arguments
        self._timestep = timestep
        self._model = model
        self._origin = origin
        self._form: dict[str, tuple[str, Shape]] | None = None
        self._calls = 0
        self._others = 0
        self._hook: Any = None
        self._observing = False
        self._given_progress = progress
        self._reporting = contextlib.ExitStack()
        self._progress: Progress | None = None
        self._count: Callable[[int], None] | None = None

    def __enter__(self) -> Capture:
        self._progress = self._reporting.enter_context(open_progress(self._given_progress))
        self._count = self._reporting.enter_context(phase(self._progress, "Capturing calls", 0))
        self._observing = True
        if hasattr(self._denoiser, "register_forward_pre_hook"):

            def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self._record(args, kwargs)

            self._hook = self._denoiser.register_forward_pre_hook(before, with_kwargs=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._observing = False
        if self._hook is not None:
            self._hook.remove()
        with self._reporting:
            if kind is None:
                self._write()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the denoiser."""
        if self._observing and self._hook is None:
            self._record(args, kwargs)
        return self._denoiser(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_denoiser"), name)

    def _record(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        values = self._arguments(*args, **kwargs)
        form = {name: _form_of(name, value) for name, value in values.items()}
        self._calls += 1
        if self._count is not None:
            self._count(self._calls - 1)
        if self._form is None:
            if self._timestep is not None and self._timestep not in form:
                raise CalibrationError(
                    f"the denoiser has no input {self._timestep!r} to hold the timestep; it is"
                    f" called with {', '.join(form) or 'nothing'}: name that one, or None"
                )
            self._form = form
        if form != self._form:
            self._others += 1
            return
        step = None if self._timestep is None else _step(values[self._timestep])
        self._sample.offer(step, lambda: {name: _copied(v) for name, v in values.items()})

    def _write(self) -> None:
        if self._form is None:
            raise CalibrationError(
                "nothing was captured: the denoiser was not called inside the block; give the very"
                " object that the pipeline calls (a call of its forward() does not count)"
            )
        if self._others:
            _LOGGER.warning(
                "%d of %d calls had other inputs, types or shapes than the first, and were left"
                " out",
                self._others,
                self._calls,
            )
        kept = self._sample.shuffled()
        with phase(self._progress, "Writing the batches", len(kept)) as written:
            write_batches(
                self._folder,
                _reporting((batch for _, batch in kept), written),
                model=self._model,
                origin={
                    "producer": f"trt-native {__version__}",
                    "calls": self._calls,
                    **self._origin,
                },
                notes=[{} if step is None else {"timestep": step} for step, _ in kept],
            )


def _reporting(batches: Iterable[Batch], done: Callable[[int], None]) -> Iterator[Batch]:
    """The batches; each is reported as done when the next is asked for."""
    for number, batch in enumerate(batches):
        yield batch
        done(number)


class _Sample:
    """So many of the batches that are offered, evenly over the timesteps, at random within each.

    Every offer draws a ticket. What is kept has the lowest places, where a batch's place is its
    rank by ticket within its timestep, and among equal ranks its ticket. Further offers only ever
    raise a place, so what was dropped could never come back.
    """

    def __init__(self, budget: int, seed: int) -> None:
        self._budget = budget
        self._random = np.random.default_rng(seed)
        self._kept: list[_Kept] = []

    def offer(self, step: _Step, copy: Callable[[], Batch]) -> None:
        """Take or leave one batch; ``copy`` is called only where it is taken."""
        ticket = float(self._random.random())
        last = self._last(step, ticket) if len(self._kept) == self._budget else None
        if last is not None and last.ticket == ticket:
            return
        taken = _Kept(step, ticket, copy())
        self._kept = [batch for batch in self._kept if batch is not last] + [taken]

    def _last(self, step: _Step, ticket: float) -> _Kept:
        """The batch with the highest place among those kept and the one offered."""
        ranks: dict[_Step, int] = {}
        places = []
        for batch in sorted([*self._kept, _Kept(step, ticket, {})], key=lambda b: b.ticket):
            ranks[batch.step] = ranks.get(batch.step, -1) + 1
            places.append((ranks[batch.step], batch.ticket, batch))
        return max(places, key=lambda place: place[:2])[2]

    def shuffled(self) -> list[tuple[_Step, Batch]]:
        """The batches kept, in random order, each with its timestep."""
        order = self._random.permutation(len(self._kept))
        return [(self._kept[i].step, self._kept[i].batch) for i in order]


@dataclass(frozen=True, slots=True)
class _Kept:
    step: _Step
    ticket: float
    batch: Batch


def _own_arguments(denoiser: Callable[..., Any]) -> Callable[..., Mapping[str, Any]]:
    """The default for ``arguments``: by the names of the denoiser's parameters."""
    is_module = hasattr(denoiser, "register_forward_pre_hook")
    try:
        # The class's: tools that speed a pipeline up put a forward(*args, **kwargs) on the object.
        function = type(denoiser).forward if is_module else denoiser  # type: ignore[attr-defined]
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise SpecError(
            "capture: the parameters of this denoiser have no names to be seen; give arguments="
        ) from None
    parameters = list(signature.parameters.values())

    def named(*args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*((denoiser, *args) if is_module else args), **kwargs).arguments
        values: dict[str, Any] = {}
        for parameter in parameters[is_module:]:
            value = bound.get(parameter.name)
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                values.update(value or {})
            else:
                values[parameter.name] = value
        return {
            name: value
            for name, value in values.items()
            if value is not None and not isinstance(value, bool | str)
        }

    return named


def _form_of(name: str, value: Any) -> tuple[str, Shape]:
    if not hasattr(value, "shape") and not isinstance(value, int | float):
        raise CalibrationError(
            f"{name!r} is a {type(value).__name__}, not an array, tensor or number; give"
            " arguments= to turn the denoiser's arguments into the model's inputs"
        )
    return str(getattr(value, "dtype", type(value).__name__)), tuple(np.shape(value))


def _copied(value: Any) -> Array:
    """A copy in host memory; a bfloat16 tensor, which NumPy does not know, as float32."""
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        value = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return np.array(value)


def _step(value: Any) -> _Step:
    values = np.unique(_copied(value)).tolist()
    return values[0] if len(values) == 1 else tuple(values)
