"""Checks of candidate models in a folder, each done once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from filelock import FileLock, Timeout

from trt_native._version import __version__
from trt_native.debug.checks import Check, Outcome, is_same_failure
from trt_native.debug.preparation import WEIGHTS
from trt_native.errors import SpecError, shortened
from trt_native.files import atomic_write

__all__ = ["CANDIDATE", "RESULTS", "Trial", "Trials", "open_folder", "remove_candidates"]

RESULTS = "results.jsonl"
CANDIDATE = "candidate.onnx"
_ORIGINAL = "original"
_MOST_LINES = 60
_LEAST_TIMEOUT_S = 60.0
_TIMES_SLOWER = 5
_INSIDE_BYTES = 1 << 20  # of weights, up to which a candidate has them inside


@dataclass(frozen=True)
class Trial:
    """A candidate that was checked.

    Attributes:
        number: Its number among the checks, from 1; 0 for one that an earlier run checked.
        nodes: Its number of nodes.
        fails: Whether it fails as the original does.
        seconds: Duration of the check.
    """

    number: int
    nodes: int
    fails: bool
    seconds: float


@contextlib.contextmanager
def open_folder(folder: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """Make or take up the folder of a reduction, which no other process uses meanwhile.

    Args:
        folder: The folder: a new or an empty one, or that of the same reduction.
        identity: What tells the reduction from others.

    Raises:
        SpecError: it holds something else, cannot be written to, or is in use.
    """
    header = json.dumps({"trt_native": __version__, **identity}, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        results = folder / RESULTS
        if not results.exists() and any(entry.name != ".lock" for entry in folder.iterdir()):
            raise SpecError(f"{folder}: holds other files; name a new folder", options=("output",))
        with FileLock(folder / ".lock", timeout=0):
            known, _, outcomes = (results.read_text() if results.exists() else "").partition("\n")
            if not outcomes:  # new, or of a model that did not fail
                with atomic_write(results) as file:
                    file.write(f"{header}\n".encode())
            elif known != header:
                raise SpecError(
                    f"{folder}: holds the reduction of another model, or with other options; name"
                    " another folder, or remove this one",
                    options=("output",),
                )
            _end_last_line(results)
            yield folder
    except Timeout:
        raise SpecError(f"{folder}: another process uses it; wait for its end") from None
    except OSError as error:
        raise SpecError(f"{error.filename or folder}: {error.strerror or error}") from None


class Trials:
    """Checks models, and remembers the outcomes in the folder.

    Args:
        folder: The folder, from :func:`open_folder`.
        original: The model that fails.
        nodes: Its number of nodes.
        check: The check.
        pattern: Regular expression that a failure's text has; None: failures are compared.
        timeout_s: Time in seconds for a check; None: five times that of the original, or a minute.
        on_trial: Receives each trial.
    """

    def __init__(
        self,
        folder: Path,
        original: Path,
        nodes: int,
        check: Check,
        pattern: str | None,
        timeout_s: float | None,
        on_trial: Callable[[Trial], None],
    ) -> None:
        self.folder = folder
        self.count = self.recalled = 0
        self._nodes = nodes
        self._check, self._pattern, self._on_trial = check, pattern, on_trial
        self._known = dict(_read_results(folder / RESULTS))
        self._asked: set[str] = set()
        self.first = self._outcome(_ORIGINAL, original, timeout_s)
        self._timeout_s = timeout_s or max(_LEAST_TIMEOUT_S, _TIMES_SLOWER * self.first.seconds)

    @property
    def is_failing(self) -> bool:
        """Whether the original fails, in the way that is looked for."""
        return is_same_failure(self.first, self.first, self._pattern)

    def fails(self, model: onnx.ModelProto | None) -> bool:
        """Whether a model fails as the original does; None does not."""
        if model is None:
            return False
        data = self._written(model)
        outcome = self._outcome(hashlib.sha256(data).hexdigest(), None, self._timeout_s, data)
        return is_same_failure(outcome, self.first, self._pattern)

    def outcome_of(self, model: onnx.ModelProto) -> Outcome:
        """The outcome of a model that was checked."""
        return self._known[hashlib.sha256(self._written(model)).hexdigest()]

    def complete(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A model with all its weights inside."""
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        onnx.load_external_data_for_model(whole, str(self.folder))
        return whole

    def _written(self, model: onnx.ModelProto) -> bytes:
        """The bytes of a candidate."""
        if 0 < _external_bytes(model) <= _INSIDE_BYTES:
            model = self.complete(model)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _outcome(
        self, key: str, model: Path | None, timeout_s: float | None, data: bytes = b""
    ) -> Outcome:
        known = self._known.get(key)
        if known is not None:
            if key not in self._asked:
                self.recalled += 1
                self._asked.add(key)
            return known
        if model is None:
            model = self.folder / CANDIDATE
            with atomic_write(model, durable=False) as file:
                file.write(data)
        outcome = self._check.run(model, timeout_s)
        lines = tuple(shortened(line, 2000) for line in outcome.lines[:_MOST_LINES])
        outcome = replace(outcome, lines=lines, seconds=round(outcome.seconds, 3))
        self.count += 1
        self._asked.add(key)
        self._known[key] = outcome
        if data or outcome.failed:  # what keeps the original from failing may change
            with (self.folder / RESULTS).open("a") as results:
                results.write(json.dumps({"key": key, **asdict(outcome)}) + "\n")
        nodes = len(onnx.load_model_from_string(data).graph.node) if data else self._nodes
        first = self.first if key != _ORIGINAL else outcome
        fails = is_same_failure(outcome, first, self._pattern)
        self._on_trial(Trial(self.count, nodes, fails, outcome.seconds))
        return outcome


def remove_candidates(folder: Path) -> None:
    """Remove what only checks need from the folder of a reduction."""
    for name in (CANDIDATE, WEIGHTS, "candidate.plan", "candidate.plan.json"):
        (folder / name).unlink(missing_ok=True)


def _end_last_line(path: Path) -> None:
    """End a line that a kill has cut off."""
    if not path.read_bytes().endswith(b"\n"):
        with path.open("a") as file:
            file.write("\n")


def _read_results(path: Path) -> Iterator[tuple[str, Outcome]]:
    for line in path.read_text().splitlines()[1:]:
        try:
            content = json.loads(line)
            key = content.pop("key")
            lines, signs = tuple(content.pop("lines")), tuple(content.pop("signs"))
            yield key, Outcome(lines=lines, signs=signs, **content)
        except (ValueError, KeyError, TypeError):  # cut off by a kill
            continue


def _external_bytes(model: onnx.ModelProto) -> int:
    return sum(
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )
