"""Calls of functions on the nodes of a Ray cluster, until each has a result."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trt_native.units import counted

__all__ = ["TaskResult", "Tasks"]

_MOST_RUNNING = 1000  # tasks that Ray knows at a time; the time of each wait grows with them
_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of a call.

    Attributes:
        value: What the function returned.
        starts: How often it was started.
        lost: Why there is no value; empty where there is one.
    """

    value: Any = None
    starts: int = 0
    lost: str = ""


@dataclass(slots=True)
class _Task:
    name: str
    function: Any
    demands: Mapping[str, Any]
    arguments: tuple[Any, ...]
    starts: int = 0


class Tasks:
    """Calls on a cluster. One whose worker or node is lost is started again.

    Ray can do that, too, but starts one that it ended for lack of memory again without end.

    Args:
        ray: The module, connected.
        restarts: How often a call is started again at most.
        wait_s: Time in seconds to wait for a node that a call needs, where there is none.
    """

    def __init__(self, ray: Any, restarts: int, wait_s: float) -> None:
        self._ray = ray
        self._restarts = restarts
        self._wait_s = wait_s
        self._waiting: deque[_Task] = deque()
        self._running: dict[Any, _Task] = {}
        self._served = time.monotonic()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, name: str, function: Any, demands: Mapping[str, Any], *arguments: Any) -> None:
        """Add a call.

        Args:
            name: Its name, for its result.
            function: A remote function.
            demands: What it needs of a node, as options of ``function``.
            arguments: Its arguments.
        """
        self._waiting.append(_Task(name, function, demands, arguments))

    def results(self) -> Iterator[tuple[str, TaskResult]]:
        """Run all, and yield name and result of each as they come."""
        self._served = time.monotonic()
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < _MOST_RUNNING:
                    yield from self._start(self._waiting.popleft())
                yield from self._finished()
                yield from self._without_node()
        finally:
            for reference in self._running:  # after an interrupt
                self._ray.cancel(reference, force=True)

    def _start(self, task: _Task) -> Iterator[tuple[str, TaskResult]]:
        try:
            function = task.function.options(max_retries=0, **task.demands)
            reference = function.remote(*task.arguments)
        except (ValueError, TypeError, OverflowError) as error:  # half a GPU too many, a label
            lost = f"Ray does not take what is asked of a node: {_line(error)}"
            yield task.name, TaskResult(starts=task.starts, lost=lost)
            return
        task.starts += 1
        self._running[reference] = task

    def _finished(self) -> Iterator[tuple[str, TaskResult]]:
        references = list(self._running)
        if not self._ray.wait(references, num_returns=1, timeout=_WAIT_S)[0]:
            return
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        for reference in done:
            task = self._running.pop(reference)
            result = self._result(task, reference)
            if result is None:
                self._waiting.append(task)
            else:
                yield task.name, result

    def _result(self, task: _Task, reference: Any) -> TaskResult | None:
        """The result of a task that ended; None where it is to be started again."""
        exceptions = self._ray.exceptions
        try:
            return TaskResult(self._ray.get(reference), task.starts)
        except (exceptions.RayTaskError, exceptions.RuntimeEnvSetupError) as error:
            cause = getattr(error, "cause", None) or error
            return TaskResult(starts=task.starts, lost=f"the worker failed: {_line(cause)}")
        except exceptions.RayError as error:
            if task.starts <= self._restarts:
                return None
            times = counted(task.starts, "time")
            lost = f"its worker or node was lost {times}, at last: {_line(error)}"
            return TaskResult(starts=task.starts, lost=lost)

    def _without_node(self) -> Iterator[tuple[str, TaskResult]]:
        """Give up tasks that no node of the cluster can run, once the time to wait is over."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        found: dict[str, str] = {}
        lacking = {}
        for reference, task in self._running.items():
            key = repr(task.demands)
            if key not in found:
                found[key] = _lacking(task.demands, nodes)
            if found[key]:
                lacking[reference] = found[key]
        now = time.monotonic()
        if not lacking:
            self._served = now
        elif now - self._served >= self._wait_s:
            waited = f", and none came in {self._wait_s:g} s" if self._wait_s else ""
            for reference, wanted in lacking.items():
                task = self._running.pop(reference)
                self._ray.cancel(reference, force=True)
                lost = f"no node of the cluster has {wanted}{waited}; add one, or wait for it"
                yield task.name, TaskResult(starts=task.starts - 1, lost=lost)


def _lacking(demands: Mapping[str, Any], nodes: list[dict[str, Any]]) -> str:
    """What no node has of what a task needs; empty where one can run it."""
    amounts = {"CPU": demands.get("num_cpus", 1), **demands.get("resources", {})}
    amounts |= {
        k: demands[o] for k, o in (("memory", "memory"), ("GPU", "num_gpus")) if o in demands
    }
    wanted = [f"{name} {amount:g}" for name, amount in amounts.items()]
    if "accelerator_type" in demands:
        amounts[f"accelerator_type:{demands['accelerator_type']}"] = 0.001
        wanted.append(f"a GPU of kind {demands['accelerator_type']}")
    labels = demands.get("label_selector", {})
    for node in nodes:
        has, named = node["Resources"], node.get("Labels") or {}
        if all(has.get(name, 0) >= amount for name, amount in amounts.items()) and all(
            _matches(named.get(name), text) for name, text in labels.items()
        ):
            return ""
    return ", ".join([*wanted, *(f"label {name}={text}" for name, text in labels.items())])


def _matches(found: str | None, wanted: str) -> bool:
    """Whether a label is what is wanted, in Ray's words: ``a``, ``!a``, ``in(a,b)``, ``!in(a)``."""
    text = wanted.removeprefix("!")
    values = text[3:-1].split(",") if text.startswith("in(") else [text]
    return (found in values) != wanted.startswith("!")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
