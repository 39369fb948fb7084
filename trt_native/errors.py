"""The exceptions this package raises on purpose.

Every message is one line that says what is wrong, what was found, and what to do about it.
TensorRT's own log lines about the failure are attached as :attr:`TrtNativeError.details`. Messages
contain no command-line flags: an error names the Python options it is about, and the console adds
their flags.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "USER_CODE_ERRORS",
    "BuildError",
    "CalibrationError",
    "ClosedError",
    "CudaError",
    "ExportError",
    "MergedWeightsError",
    "ModelError",
    "PlanError",
    "SpecError",
    "TrtNativeError",
    "UnsupportedError",
    "close_names",
    "on_one_line",
    "shortened",
]

USER_CODE_ERRORS = (Exception, SystemExit)
"""The exceptions of a function or module of the user's: ``sys.exit()`` there must not end us."""


# Control characters but for the tab, separators of lines, marks that turn the direction of text
# around, and halves of surrogate pairs.
_CONTROLS = re.compile(
    r"[\x00-\x08\n-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def on_one_line(text: str) -> str:
    """The text with escapes for line ends and for characters that control a terminal.

    Names in it, of files or in a model, may hold either.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_LONG_WORD = re.compile(r"\S{501,}")
_LONGEST_LINE = 8000


def shortened(text: str, longest: int = _LONGEST_LINE) -> str:
    """One line as it is shown to a person: words and lines without end lose their middle.

    A name in a model may have any length; here no more than 500 characters of it are left.
    """
    if len(text) <= min(longest, 500):
        return text
    text = _LONG_WORD.sub(lambda found: _without_middle(found[0], 500), text)
    return text if len(text) <= longest else _without_middle(text, longest)


def _without_middle(text: str, longest: int) -> str:
    kept = (longest - 40) // 2
    return f"{text[:kept]}...({len(text) - 2 * kept:,} characters)...{text[-kept:]}"


def close_names(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names that are most like one, which may have been meant; none for long ones.

    The time of a comparison grows with the square of the length.
    """
    import difflib  # only where something is wrong

    names = [other for other in known if len(other) <= 500]
    return difflib.get_close_matches(name, names, count, cutoff) if len(name) <= 500 else []


class TrtNativeError(Exception):
    """Base of every error raised by this package.

    Args:
        message: One line for a person.
        details: Further lines, such as TensorRT's own error log.
        options: Names of the Python options that the error is about: fields of ``BuildConfig`` or
            ``QuantizationSpec``, or parameters of the function that raised it.
        problems: Problems found by a validation, one line each.

    In ``str(error)`` very long names are without their middle; the attributes have them whole.

    Attributes:
        message: The message, on one line.
        details: The further lines, oldest first.
        options: The names of the options.
        problems: The problems. They follow the message in ``str(error)`` as a list, and the details
            follow them.
    """

    def __init__(
        self,
        message: str,
        details: Sequence[str] = (),
        *,
        options: Sequence[str] = (),
        problems: Sequence[str] = (),
    ) -> None:
        self.message = message = on_one_line(message)
        self.details = tuple(details)
        self.options = tuple(options)
        self.problems = tuple(map(on_one_line, problems))
        super().__init__("\n  ".join(map(shortened, (message, *self.lines))))

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines behind the message: the problems as a list, then the details."""
        return (*(f"- {problem}" for problem in self.problems), *self.details)

    def restated(
        self,
        message: str,
        kind: type[TrtNativeError],
        *,
        details: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> TrtNativeError:
        """This error with another message, as another class, with further details and options."""
        return kind(
            message,
            (*self.details, *details),
            options=(*self.options, *options),
            problems=self.problems,
        )

    def at(self, place: str) -> TrtNativeError:
        """This error with the place where it occurred, such as a device, before its message."""
        return self.restated(f"{place}: {self.message}", type(self))


class SpecError(TrtNativeError, ValueError):
    """The request is malformed or contradicts the model."""


class MergedWeightsError(SpecError):
    """TensorRT has merged weights that are to be replaced with others, of which none are given."""


class UnsupportedError(TrtNativeError):
    """The request is well formed, but this backend or machine cannot serve it."""


class ModelError(TrtNativeError):
    """An ONNX file or a checkpoint is missing, damaged or not what it should be."""


class ExportError(TrtNativeError):
    """A PyTorch module could not be turned into ONNX."""


class CalibrationError(TrtNativeError):
    """Calibration data or a calibration cache is missing, malformed or does not fit the model."""


class BuildError(TrtNativeError):
    """TensorRT rejected the network or failed while building it."""


class PlanError(TrtNativeError):
    """A plan file is missing, damaged, or made for another TensorRT or GPU."""


class CudaError(TrtNativeError):
    """The CUDA driver returned an error, or no usable GPU was found.

    Attributes:
        code: The driver's ``CUresult``; 0 where the error has none.
    """

    def __init__(
        self,
        message: str,
        details: Sequence[str] = (),
        code: int = 0,
        *,
        options: Sequence[str] = (),
        problems: Sequence[str] = (),
    ) -> None:
        super().__init__(message, details, options=options, problems=problems)
        self.code = code

    def restated(self, *args: Any, **kwargs: Any) -> TrtNativeError:
        """As that of every error; a :class:`CudaError` keeps the code."""
        error = super().restated(*args, **kwargs)
        if isinstance(error, CudaError):
            error.code = self.code
        return error

    @property
    def sticky(self) -> bool:
        """Whether the GPU's context is lost, so that no later call in this process can succeed."""
        return self.code in _STICKY


class ClosedError(TrtNativeError):
    """An object was used after ``close()``."""


_STICKY = frozenset({214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719})
"""``CUresult`` of an uncorrectable memory error, of destroyed contexts, and of kernels that failed.

From cuda.h: the process must be ended and started again to use CUDA further.
"""
