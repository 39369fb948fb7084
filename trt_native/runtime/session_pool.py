"""One plan on several GPUs, which share the inputs."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from trt_native.config import KernelSpecialization
from trt_native.cuda import device_ordinal
from trt_native.errors import ClosedError, CudaError, SpecError, TrtNativeError
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.runtime.engine import Engine
from trt_native.runtime.future import InferenceFuture
from trt_native.runtime.session import Session, until_failure
from trt_native.runtime.tensor_views import read

__all__ = ["SessionPool"]

_Outputs = dict[str, Any]
_Interface = tuple[tuple[PlanTensor, ...], tuple[PlanTensor, ...]]


class SessionPool:
    """Sessions of one plan on one or more GPUs, each in a thread of its own.

    An input goes to a session with nothing in flight, or else to the first that has room for it.
    Inputs and results are on the host; uploads, runs and downloads of a session overlap as in
    :meth:`Session.map <trt_native.runtime.Session.map>`. Thread-safe. An error in an input or a run
    starts with the device it occurred on, such as ``cuda:1:``, and concerns that input alone. A GPU
    whose context is lost (``error.sticky``) gets no further inputs; the others go on.

    Args:
        devices: ``cuda:N``, ``N``, or CUDA ordinals, one for each session. A GPU that is named
            twice has two sessions, which share its weights.
        plan: A plan, or the path of one; it is loaded once on each GPU.
        depth: Number of runs that a session has in flight besides the one whose result it awaits;
            0 or more.
        backend: See :class:`~trt_native.runtime.engine.Engine`.
        weight_budget_bytes: The same, for each GPU.
        runtime_cache: The same.
        kernel_specialization: The same.
        cuda_graphs: See :class:`~trt_native.runtime.Session`.

    Attributes:
        devices: The devices, as ``cuda:N``.
        inputs: The engine's inputs, in its order.
        outputs: The engine's outputs, in its order.

    Raises:
        SpecError: there are no devices, one is malformed, or ``depth`` is negative.
        PlanError, UnsupportedError, CudaError: as :class:`~trt_native.runtime.engine.Engine`.
    """

    def __init__(
        self,
        devices: Sequence[str | int],
        plan: Plan | str | os.PathLike[str],
        *,
        depth: int = 2,
        backend: str = "auto",
        weight_budget_bytes: int | Literal["auto"] | None = None,
        runtime_cache: bool = True,
        kernel_specialization: KernelSpecialization | str | None = None,
        cuda_graphs: int = 32,
    ) -> None:
        if depth < 0:
            raise SpecError(f"depth={depth}: must be 0 or more")
        if isinstance(devices, str) or not devices:
            raise SpecError(f'devices={devices!r}: give a list such as ["cuda:0", "cuda:1"]')
        ordinals = [device_ordinal(device) for device in devices]
        plan = plan if isinstance(plan, Plan) else Plan.open(plan)
        engine_options = {
            "backend": backend,
            "weight_budget_bytes": weight_budget_bytes,
            "runtime_cache": runtime_cache,
            "kernel_specialization": kernel_specialization,
        }
        engines = {n: _SharedEngine(plan, n, engine_options) for n in set(ordinals)}
        self.devices = tuple(f"cuda:{ordinal}" for ordinal in ordinals)
        self._window = 2 * len(ordinals) * (depth + 1)
        self._queue = _TaskQueue()
        workers = [_Worker(engines[n], self._queue, depth, cuda_graphs) for n in ordinals]
        self._finalizer = weakref.finalize(self, _close, self._queue, workers)
        try:
            for worker in workers:
                worker.start()
            opened = [worker.opened.result() for worker in workers]
        except BaseException:
            self.close()
            raise
        self.inputs, self.outputs = opened[0]
        # At exit the last finalizer runs first: this one, before those of the sessions.
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _close, self._queue, workers)

    def __repr__(self) -> str:
        return f"SessionPool({list(self.devices)})"

    def submit(self, inputs: Mapping[str, Any]) -> Future[_Outputs]:
        """Queue inputs for the first session that is free, and return at once.

        The queue has no limit: :meth:`map` bounds what is in flight.

        Args:
            inputs: Arrays on the host, as for :meth:`Session.run <trt_native.runtime.Session.run>`.
                They must not be changed before the future is done.

        Returns:
            A future of the outputs; ``asyncio.wrap_future`` makes it awaitable. Cancelling it has
            an effect until the run starts. Its exception is one of those of :meth:`run`.

        Raises:
            ClosedError: the pool was closed.
            CudaError: no GPU of the pool can be used any more.
        """
        future: Future[_Outputs] = Future()
        self._queue.put(_Task(future, inputs))
        return future

    def run(self, inputs: Mapping[str, Any]) -> _Outputs:
        """Run the engine once, on the first session that is free, and return the outputs.

        Raises:
            SpecError: names, dtypes or shapes do not fit, or an array is on a GPU.
            CudaError: the GPU has too little memory, or TensorRT failed.
            ClosedError: the pool was closed.
        """
        return self.submit(inputs).result()

    def map(
        self, iterable: Iterable[Mapping[str, Any]], *, return_exceptions: bool = False
    ) -> Iterator[Any]:
        """Run the engine for each of many inputs on all devices, and yield results in order.

        Args:
            iterable: Inputs as for :meth:`submit`, which must not be changed before their results
                are yielded. Consumed in the caller's thread, and only as results are requested: at
                most ``2 * len(devices) * (depth + 1)`` inputs ahead of the last result.
            return_exceptions: Yield the exception of an input that fails in the place of its
                result, and go on. Otherwise it is raised there, after the results of all inputs
                before it; of the inputs after it those that have started are completed and dropped,
                the others are not started, and the pool can be used again. An error of ``iterable``
                itself is raised after the results of all inputs before it in either case.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
        """
        failure: Exception | None = None
        ahead: deque[Future[_Outputs]] = deque()
        try:
            for future in until_failure(map(self.submit, iterable)):
                if isinstance(future, Exception):
                    failure = future
                    break
                ahead.append(future)
                if len(ahead) >= self._window:
                    yield _result(ahead.popleft(), return_exceptions)
            while ahead:
                yield _result(ahead.popleft(), return_exceptions)
            if failure is not None:
                raise failure
        finally:
            for waiting in ahead:
                waiting.cancel()
            failure = future = None  # type: ignore[assignment]  # whose traceback holds this frame

    def close(self) -> None:
        """Complete the runs in flight, fail those still queued, and free all GPUs. Idempotent."""
        self._finalizer()

    def __enter__(self) -> SessionPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Task(NamedTuple):
    future: Future[_Outputs]
    inputs: Mapping[str, Any]

    def fail(self, error: TrtNativeError) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _TaskQueue:
    """Tasks that no worker has taken, and the workers that have nothing in flight."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tasks: deque[_Task] = deque()
        self._workers: set[_Worker] = set()
        self._idle: set[_Worker] = set()
        self._closed = False
        self._lost: list[str] = []

    def add(self, worker: _Worker) -> None:
        self._workers.add(worker)
        self._idle.add(worker)

    def put(self, task: _Task) -> None:
        with self._changed:
            if self._closed or not self._workers:
                raise self._refusal()
            self._tasks.append(task)
            self._changed.notify()

    def take(self, worker: _Worker, *, idle: bool) -> _Task | None:
        """Take the first task.

        Args:
            worker: The worker that asks.
            idle: It has nothing in flight, and waits. Otherwise it gets only what those with
                nothing in flight leave over.

        Returns:
            The task; None where there is none to take or, for an idle worker, will never be.
        """
        with self._changed:
            if not idle:
                return self._tasks.popleft() if len(self._tasks) > len(self._idle) else None
            self._idle.add(worker)
            self._changed.wait_for(lambda: self._tasks or self._closed)
            self._idle.discard(worker)
            return self._tasks.popleft() if self._tasks else None

    def retire(self, worker: _Worker, error: CudaError) -> None:
        """Count a worker out whose GPU is lost; with the last one, all tasks fail."""
        with self._changed:
            self._workers.discard(worker)
            self._lost.append(error.message)
            left = self._clear() if not self._workers else []
        self._fail(left)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            left = self._clear()
            self._changed.notify_all()
        self._fail(left)

    def _clear(self) -> list[_Task]:
        left = list(self._tasks)
        self._tasks.clear()
        return left

    def _fail(self, tasks: list[_Task]) -> None:
        for task in tasks:
            task.fail(self._refusal())

    def _refusal(self) -> TrtNativeError:
        if self._closed:
            return ClosedError("the session pool is closed")
        return CudaError(
            f"the session pool has no GPU left ({'; '.join(self._lost)}): restart the process"
        )


class _SharedEngine:
    """The engine of one GPU, loaded for its first session and closed after its last."""

    def __init__(self, plan: Plan, ordinal: int, options: dict[str, Any]) -> None:
        self.device = f"cuda:{ordinal}"
        self._plan = plan
        self._ordinal = ordinal
        self._options = options
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._sessions = 0

    @contextmanager
    def session(self, cuda_graphs: int) -> Iterator[Session]:
        with self._lock:
            if self._engine is None:
                self._engine = Engine(self._plan, ordinal=self._ordinal, **self._options)
            self._sessions += 1
            engine = self._engine
        try:
            with Session(engine, cuda_graphs=cuda_graphs) as session:
                yield session
        finally:
            with self._lock:
                self._sessions -= 1
                if not self._sessions:
                    engine.close()
                    self._engine = None


class _Worker(threading.Thread):
    """Thread of one session, the only one that touches it: a thread has one current GPU.

    A daemon, which does not keep a process alive whose pool was not closed.

    Attributes:
        opened: The engine's inputs and outputs, once there is a session.
    """

    def __init__(
        self, engine: _SharedEngine, queue: _TaskQueue, depth: int, cuda_graphs: int
    ) -> None:
        super().__init__(name=f"session pool {engine.device}", daemon=True)
        self.opened: Future[_Interface] = Future()
        self._engine = engine
        self._queue = queue
        self._depth = depth
        self._cuda_graphs = cuda_graphs
        self._in_flight: deque[tuple[Future[_Outputs], InferenceFuture]] = deque()
        self._lost: CudaError | None = None
        queue.add(self)

    def run(self) -> None:
        try:
            with self._engine.session(self._cuda_graphs) as session:
                self.opened.set_result((session.inputs, session.outputs))
                while self._lost is None and self._step(session):
                    pass
                while self._in_flight:
                    self._finish()
        except Exception as error:
            if self.opened.done():
                raise
            self.opened.set_exception(self._named(error))
        if self._lost is not None:
            self._queue.retire(self, self._lost)

    def _step(self, session: Session) -> bool:
        """Start a task, or else finish the first run; False once there is neither."""
        task = None
        if len(self._in_flight) <= self._depth:
            task = self._queue.take(self, idle=not self._in_flight)
        if task is not None:
            self._start(session, task)
        elif self._in_flight:
            self._finish()
        else:
            return False
        return True

    def _start(self, session: Session, task: _Task) -> None:
        if not task.future.set_running_or_notify_cancel():
            return
        try:
            _check_on_host(task.inputs)
            self._in_flight.append((task.future, session.submit(task.inputs)))
        except Exception as error:
            task.future.set_exception(self._named(error))

    def _finish(self) -> None:
        future, run = self._in_flight.popleft()
        try:
            outputs = run.result()
        except Exception as error:
            future.set_exception(self._named(error))
        else:
            future.set_result(outputs)

    def _named(self, error: Exception) -> Exception:
        """Add the device to an error of this package; note one that loses the GPU."""
        if not isinstance(error, TrtNativeError):
            return error
        named = error.at(self._engine.device)
        if isinstance(named, CudaError) and named.sticky and self._lost is None:
            self._lost = named
        return named


def _check_on_host(inputs: Mapping[str, Any]) -> None:
    """Reject arrays on a GPU: which one, and which stream they are ready on, is the caller's."""
    found = [name for name, value in inputs.items() if _is_on_gpu(value)]
    if found:
        raise SpecError(
            f"{', '.join(map(repr, found))}: on a GPU, but a pool selects the GPU itself; give"
            " arrays on the host, or use a Session of that GPU"
        )


def _is_on_gpu(value: Any) -> bool:
    try:
        return read(value).host is None
    except SpecError:
        return False  # no array: the session lists it with all other problems


def _result(future: Future[_Outputs], return_exceptions: bool) -> Any:
    if return_exceptions:
        return future.exception() or future.result()
    return future.result()


def _close(queue: _TaskQueue, workers: Sequence[_Worker]) -> None:
    queue.close()
    for worker in workers:
        if worker.ident is not None and worker is not threading.current_thread():
            worker.join()
