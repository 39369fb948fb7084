"""The smallest part of a model that still fails."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from trt_native.debug.checks import SUCCESS, Check, Outcome
from trt_native.debug.preparation import Form, prepare
from trt_native.debug.search import (
    needed_nodes,
    remove_in_chunks,
    smallest_failing,
)
from trt_native.debug.shrinking import shrink_extents
from trt_native.debug.subgraphs import Subject, bodies, reads
from trt_native.debug.trials import Trial, Trials, open_folder, remove_candidates
from trt_native.errors import SpecError, UnsupportedError
from trt_native.files import as_path, atomic_write
from trt_native.graph.onnx_file import hash_files, read_model
from trt_native.shapes import ProfileSpec

__all__ = ["REDUCED", "Reduction", "reduce_model"]

REDUCED = "reduced.onnx"
_FEW = 16  # nodes that are suspicious in a small model
_MOST_NEEDED = 5  # nodes, beyond which others are bypassed before the search goes on
_MOST_INSIDE = 2**31 - 2**20


@dataclass(frozen=True)
class Reduction:
    """A model that was reduced.

    Attributes:
        path: The reduced model.
        nodes_before: Number of nodes of the model, those of its bodies not counted.
        nodes_after: Number of nodes of the reduced model.
        form: What was done to the model before parts were cut out.
        checks: Number of checks.
        recalled: Number of checks whose outcome an earlier run found.
        seconds: Duration.
        first: Outcome of the model.
        last: Outcome of the reduced model.
    """

    path: Path
    nodes_before: int
    nodes_after: int
    form: Form
    checks: int
    recalled: int
    seconds: float
    first: Outcome
    last: Outcome


def reduce_model(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    check: Check,
    *,
    profile: ProfileSpec | None = None,
    pattern: str | None = None,
    timeout_s: float | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,  # noqa: ARG005
) -> Reduction:
    """Find the smallest part of a model that fails in the same way, and write it to a folder.

    Each check is done in a process of its own, and remembered in the folder: a reduction that was
    interrupted goes on where it was when it is called again with the same arguments.

    Args:
        model: The ONNX file.
        folder: A new or empty folder, or that of the same reduction.
        check: What finds out whether a model fails.
        profile: The optima of its ranges are the extents that parts have.
        pattern: Regular expression; what says it is the failure. None: the same kind of failure,
            with the same message but for names and numbers.
        timeout_s: Time in seconds for each check; one that takes longer does not fail, except where
            that is the failure. None: five times that of the model, and at least a minute.
        on_trial: Receives each check as it is done.

    Raises:
        SpecError: the model does not fail, or the folder cannot be used.
        UnsupportedError: the failure is gone once the model is written again.
        ModelError: the model cannot be read.
    """
    started = time.monotonic()
    path = as_path(model)
    read = read_model(path)
    nodes = sum(node.op_type != "Constant" for node in read.graph)
    if not nodes:
        raise SpecError(f"{path.name} has no nodes, but constants, to take away")
    _check_pattern(pattern)
    identity = {
        **check.identity(),
        "model": hash_files(path, read),
        "profile": str(profile),
        "pattern": pattern,
    }
    with open_folder(as_path(folder), identity) as place:
        try:
            trials = Trials(place, path, nodes, check, pattern, timeout_s, on_trial)
            if not trials.is_failing:
                raise SpecError(_no_failure(path, trials.first, pattern), trials.first.lines[:20])
            reduction = _Reducer(path, trials, profile).run()
            target = place / REDUCED
            _save(trials.complete(reduction.model), target)
            last = trials.outcome_of(reduction.model)
        finally:
            check.close()
            remove_candidates(place)
    return Reduction(
        path=target,
        nodes_before=nodes,
        nodes_after=len(Subject(reduction.model, {})),
        form=reduction.form,
        checks=trials.count,
        recalled=trials.recalled,
        seconds=time.monotonic() - started,
        first=trials.first,
        last=last,
    )


def _check_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise SpecError(
            f"{pattern!r}: not a regular expression: {error}", options=("match",)
        ) from None


def _no_failure(path: Path, first: Outcome, pattern: str | None) -> str:
    if first.failed:
        return f"{path.name} fails, but not with {pattern!r}; it says:"
    if first.kind and first.kind != SUCCESS:
        return f"{path.name} does not fail in this way, but with {first.kind}:"
    return f"{path.name} does not fail; there is nothing to reduce"


def _save(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() < _MOST_INSIDE:
        with atomic_write(path) as file:
            file.write(model.SerializeToString(deterministic=True))
        return
    data = Path(f"{path}.data")
    data.unlink(missing_ok=True)
    onnx.save_model(model, path, save_as_external_data=True, location=data.name)


@dataclass(frozen=True)
class _Found:
    model: onnx.ModelProto
    form: Form


class _Reducer:
    def __init__(self, path: Path, trials: Trials, profile: ProfileSpec | None) -> None:
        self._path, self._trials, self._profile = path, trials, profile
        self._text = "\n".join(trials.first.lines)

    def run(self) -> _Found:
        for form in Form:
            subject = prepare(self._path, self._trials.folder, form, self._profile)
            if subject is None or not len(subject):
                continue
            part = self._named(subject) or self._suspicious(subject)
            if part is None and self._trials.fails(subject.cut(range(len(subject)))):
                part = self._searched(subject)
            if part is not None:
                return _Found(self._finished(part), form)
        raise UnsupportedError(
            f"{self._path.name} fails, but not once trt_native has read and written it again, so"
            " that no part of it can be tried; check the file with onnx.checker.check_model"
        )

    def _named(self, subject: Subject) -> Subject | None:
        """The needed nodes around those that the failure names, if they fail."""
        kept = set(subject.named_in(self._text))
        if not kept:
            return None
        neighbours = subject.neighbours()
        for _ in range(3):
            if len(kept) == len(subject):
                return None
            if self._fails(subject, kept):
                return self._needed(subject, kept)
            kept = kept.union(*(neighbours[index] for index in kept))
        return None

    def _suspicious(self, subject: Subject) -> Subject | None:
        """The needed nodes among those that are rare in the model, if they fail."""
        suspicion = subject.suspicion()
        ordered = sorted(range(len(subject)), key=lambda index: -suspicion[index])
        chosen = ordered[: max(_FEW, len(subject) // 32)]
        if len(chosen) == len(subject) or not self._fails(subject, chosen):
            return None
        return self._needed(subject, chosen)

    def _needed(self, subject: Subject, nodes: Collection[int]) -> Subject:
        """The needed nodes of a set that fails, the rarest first."""
        suspicion = subject.suspicion()
        weights = {index: suspicion[index] ** 3 for index in nodes}
        return self._part(subject, needed_nodes(weights, partial(self._fails, subject)))

    def _searched(self, subject: Subject) -> Subject:
        """The needed nodes of all, which fail."""
        while len(subject) > 1:
            found = smallest_failing(
                subject.neighbours(),
                subject.novelty(),
                partial(self._fails, subject),
                most=_MOST_NEEDED,
            )
            before = len(subject)
            subject = self._part(subject, found.nodes)
            if found.is_minimal:
                break
            subject = self._without_each(self._bypassed(subject, range(len(subject))))
            if len(subject) == before:
                break
        return subject

    def _finished(self, subject: Subject) -> onnx.ModelProto:
        """The model of a part, without what is left to take away."""
        while (inner := self._in_a_body(subject)) is not None:
            subject = self._searched(inner)
        subject = self._bypassed(subject, subject.connectors())
        model = subject.cut(range(len(subject)), all_outputs=False)
        if not self._trials.fails(model):
            model = subject.cut(range(len(subject)))
        assert model is not None  # noqa: S101  # None does not fail
        return shrink_extents(model, self._trials.folder, self._trials.fails)

    def _fails(self, subject: Subject, kept: Collection[int]) -> bool:
        return self._trials.fails(subject.cut(kept))

    def _part(
        self, subject: Subject, kept: Collection[int], bypassed: Collection[int] = ()
    ) -> Subject:
        model = subject.cut(kept, bypassed=bypassed)
        assert model is not None  # noqa: S101  # it fails
        return subject.restricted(model)

    def _bypassed(self, subject: Subject, nodes: Collection[int]) -> Subject:
        """The subject without those of the nodes that an input can take the place of."""
        everything = frozenset(range(len(subject)))
        items = [index for index in nodes if subject.bypassable(index)]

        def fails_without(some: frozenset[int]) -> bool:
            return self._trials.fails(subject.cut(everything - some, bypassed=some))

        some = remove_in_chunks(items, fails_without) if len(subject) > 1 else frozenset[int]()
        return self._part(subject, everything - some, some) if some else subject

    def _without_each(self, subject: Subject) -> Subject:
        """The subject without nodes that are not needed after all."""
        everything = frozenset(range(len(subject)))
        if len(subject) < 2:
            return subject
        some = remove_in_chunks(
            sorted(everything),
            lambda without: self._trials.fails(subject.cut(everything - without)),
        )
        return self._part(subject, everything - some) if some else subject

    def _in_a_body(self, subject: Subject) -> Subject | None:
        """A body of a node as a model of its own, if that fails."""
        for node in subject.nodes:
            for body in bodies(node):
                inner = _body_as_model(subject, node, body)
                if inner is not None and self._trials.fails(inner.cut(range(len(inner)))):
                    return inner
        return None


def _body_as_model(subject: Subject, node: onnx.NodeProto, body: onnx.GraphProto) -> Subject | None:
    """The graph inside a node, with what it reads from around it as inputs."""
    if not body.node:
        return None
    types = {**subject.types, **{value.name: value.type for value in body.value_info}}
    types.update({value.name: value.type for value in subject.model.graph.input})
    outside = onnx.NodeProto()
    outside.CopyFrom(node)
    del outside.input[:]
    model = onnx.ModelProto()
    model.CopyFrom(subject.model)
    graph = model.graph
    for field in ("node", "input", "output", "value_info"):
        graph.ClearField(field)
    graph.node.extend(body.node)
    graph.initializer.extend(body.initializer)
    graph.input.extend(body.input)
    weights = {tensor.name for tensor in graph.initializer}
    captured = [name for name in reads(outside) if name not in weights]
    if any(name not in types for name in captured):
        return None
    graph.input.extend(onnx.ValueInfoProto(name=name, type=types[name]) for name in captured)
    made = {name for inner in body.node for name in inner.output}
    graph.output.extend(value for value in body.output if value.name in made)
    return Subject(model, types, subject.constants) if graph.output else None
