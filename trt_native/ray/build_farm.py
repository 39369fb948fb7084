"""Builds of a matrix on the nodes of a Ray cluster."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trt_native.builder.plan_cache import EngineCache, code_hash
from trt_native.calibration.caches import provenance_path
from trt_native.errors import SpecError, TrtNativeError, on_one_line
from trt_native.graph.onnx_file import hash_files, model_files, read_model
from trt_native.progress import Progress, phase
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.ray import worker
from trt_native.ray.library import connected
from trt_native.ray.matrix import Matrix, MatrixBuild, Target
from trt_native.ray.store import BuildStore, FileSet, StoredPlan
from trt_native.ray.tasks import TaskResult, Tasks

__all__ = ["BuildFailure", "BuildRow", "FarmReport", "build_all"]


@dataclass(frozen=True, slots=True)
class BuildFailure:
    """Why a plan is not there.

    Attributes:
        kind: Name of the class of :mod:`trt_native.errors`.
        message: One line.
        details: Further lines, such as TensorRT's log.
        problems: Problems that a validation found.
    """

    kind: str
    message: str
    details: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildRow:
    """What became of one build of a matrix.

    Attributes:
        build: The build.
        state: ``built``; ``cached``, where the plan was in the store; or ``failed``.
        plan: The plan in the store; None after a failure.
        path: Its path or URL; empty after a failure.
        starts: How often the build was started; more than once where a worker or node was lost.
        failure: The failure, if it failed.
    """

    build: MatrixBuild
    state: str
    plan: StoredPlan | None = None
    path: str = ""
    starts: int = 0
    failure: BuildFailure | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "model": self.build.model,
            "precision": self.build.precision,
            "profile": self.build.profile,
            "target": self.build.target.name,
            "state": self.state,
            "path": self.path or None,
            "starts": self.starts,
            "plan": None if self.plan is None else asdict(self.plan),
            "error": None if self.failure is None else asdict(self.failure),
        }


@dataclass(frozen=True, slots=True)
class FarmReport:
    """What became of all builds of a matrix.

    Attributes:
        rows: The builds, in the matrix's order.
        store: Path or URL of the store.
        seconds: Time that all took.
    """

    rows: tuple[BuildRow, ...]
    store: str
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """How many builds have each state."""
        found = Counter(row.state for row in self.rows)
        return {state: found[state] for state in ("built", "cached", "failed")}

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "producer": "trt-native",
            "store": self.store,
            "seconds": self.seconds,
            "counts": self.counts,
            "builds": [row.to_json() for row in self.rows],
        }


@shows_progress
def build_all(
    matrix: Matrix,
    *,
    store: str | None = None,
    address: str | None = None,
    restarts: int = 3,
    retry: bool = False,
    wait_s: float = 0.0,
    progress: AnyProgress = None,
) -> FarmReport:
    """Build the plans of a matrix on a Ray cluster, but those that the store has.

    Each build runs in a process of its own on a node with what its target needs. One whose worker
    or node is lost, or that Ray ends for lack of memory, is started again. A build that fails does
    not stop the others.

    Args:
        matrix: The builds; see :func:`~trt_native.ray.matrix.read_matrix`.
        store: Folder or URL of the store. None: the matrix's.
        address: Address of the cluster, as for ``ray.init``. None: a Ray on this machine alone,
            which ends with this call; or the cluster that this process is connected to.
        restarts: How often a build is started again at most.
        retry: Build again with other settings where memory, workspace or an implementation is
            lacking; see :class:`~trt_native.builder.fallback.FallbackLadder`.
        wait_s: Time in seconds to wait for a node that a build needs, where there is none.
        progress: Receives progress callbacks.

    Returns:
        What became of each build; failures are in it.

    Raises:
        SpecError: there is no store, or it cannot be used; or ``restarts`` is negative.
        UnsupportedError: Ray is not installed, or there is no cluster at the address.
    """
    started = time.perf_counter()
    url = store or matrix.store
    if not url:
        raise SpecError("no store: name a folder or a URL for the plans", options=("store",))
    if restarts < 0:
        raise SpecError(f"restarts={restarts}: must be 0 or more", options=("restarts",))
    opened = BuildStore(url)
    farm = _Farm(opened, opened.open(), restarts, retry, wait_s, progress)
    with connected(address) as ray:
        rows = farm.build(ray, matrix.builds)
    return FarmReport(rows, opened.url, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Files of a build, and where they are."""

    files: FileSet
    sources: Mapping[str, Path]


_Model = tuple[_Inputs, dict[str, Any]]
"""The files of a model, and their hashes as a manifest has them."""


class _Farm:
    """One run over a matrix."""

    def __init__(
        self,
        store: BuildStore,
        identity: str,
        restarts: int,
        retry: bool,
        wait_s: float,
        progress: Progress | None,
    ) -> None:
        self._store = store
        self._identity = identity
        self._restarts = restarts
        self._retry = retry
        self._wait_s = wait_s
        self._progress = progress
        self._hashes = EngineCache()
        self._models: dict[Path, _Model | BuildFailure] = {}

    def build(self, ray: Any, builds: tuple[MatrixBuild, ...]) -> tuple[BuildRow, ...]:
        """Build what is not in the store; returns a row for each build, in their order."""
        with phase(self._progress, "Hashing models", steps=len(builds)) as step:
            for done, build in enumerate(builds):
                self._model(build.file)
                step(done)
        facts = self._facts(ray, builds)
        requests = [self._requested(build, facts) for build in builds]
        wanted: dict[str, tuple[MatrixBuild, worker.BuildRequest]] = {}
        for build, request in zip(builds, requests, strict=True):
            if isinstance(request, worker.BuildRequest):
                wanted.setdefault(request.key, (build, request))
        plans, attempts = self._plans(ray, wanted)
        return tuple(
            self._row(build, request, plans, attempts)
            for build, request in zip(builds, requests, strict=True)
        )

    def _requested(
        self, build: MatrixBuild, facts: Mapping[str, worker.NodeFacts | BuildFailure]
    ) -> worker.BuildRequest | BuildFailure:
        model, known = self._model(build.file), facts[build.target.name]
        if isinstance(model, BuildFailure):
            return model
        if isinstance(known, BuildFailure):
            return known
        try:
            return self._request(build, model, known)
        except (TrtNativeError, TypeError, OSError) as error:
            return _failure(error)

    def _row(
        self,
        build: MatrixBuild,
        request: worker.BuildRequest | BuildFailure,
        plans: Mapping[str, StoredPlan | BuildFailure],
        attempts: Mapping[str, int],
    ) -> BuildRow:
        if isinstance(request, BuildFailure):
            return BuildRow(build, "failed", failure=request)
        plan, starts = plans[request.key], attempts.get(request.key, 0)
        if isinstance(plan, BuildFailure):
            return BuildRow(build, "failed", starts=starts, failure=plan)
        state = "built" if starts else "cached"
        return BuildRow(build, state, plan, self._store.path_of(plan), starts)

    # What goes into a build

    def _model(self, file: Path) -> _Model | BuildFailure:
        """The files of a model, and their hashes as a manifest has them."""
        if file not in self._models:
            try:
                self._models[file] = self._read_model(file)
            except (TrtNativeError, OSError) as error:
                self._models[file] = _failure(error)
        return self._models[file]

    def _read_model(self, file: Path) -> _Model:
        graph = read_model(file)
        hashed = hash_files(file, graph, self._hashes.hash_file)
        entries = (hashed, *hashed["external"])
        sources = dict(zip((e["file"] for e in entries), model_files(file, graph), strict=True))
        hashes = {entry["file"]: entry["sha256"] for entry in entries}
        return _Inputs(FileSet(hashed["file"], hashes), sources), hashed

    def _calibration(self, build: MatrixBuild) -> dict[str, _Inputs]:
        spec, found = build.config.quantization, {}
        if (cache := spec.calibration_cache) is not None:
            files = [cache, *filter(Path.exists, [provenance_path(cache)])]
            found["calibration_cache"] = self._inputs(cache, files)
        if spec.calibration_data is not None:
            data = Path(spec.calibration_data)
            inside = sorted(f for f in data.rglob("*") if f.is_file()) if data.is_dir() else [data]
            found["calibration_data"] = self._inputs(data, inside)
        return found

    def _inputs(self, main: Path, files: Iterable[Path]) -> _Inputs:
        sources = {str(file.relative_to(main.parent)): file for file in files}
        hashes = {name: self._hashes.hash_file(file) for name, file in sources.items()}
        return _Inputs(FileSet(main.name, hashes), sources)

    def _request(
        self, build: MatrixBuild, model: _Model, facts: worker.NodeFacts
    ) -> worker.BuildRequest:
        inputs, hashed = model
        key = self._hashes.build_key(
            build.config,
            backend=(facts.backend, facts.version),
            gpu=facts.gpu,
            model=hashed["sha256"],
            external={file["file"]: file["sha256"] for file in hashed["external"]},
            profiles=build.config.profiles,
            workspace_bytes=build.config.workspace_bytes,
            warm=build.target.warm,
        )
        return worker.BuildRequest(
            key=key,
            store=self._store.url,
            facts=facts,
            model=inputs.files,
            backend=build.target.backend,
            calibration={name: one.files for name, one in self._calibration(build).items()},
            config=build.config,
            timeout_s=build.timeout_s,
            retry=self._retry,
            warm=build.target.warm,
        )

    # What runs on nodes

    def _facts(
        self, ray: Any, builds: Iterable[MatrixBuild]
    ) -> dict[str, worker.NodeFacts | BuildFailure]:
        """What the nodes of each target build with."""
        targets = {build.target.name: build for build in builds}
        # In a process of its own: the first use of CUDA in one decides which GPUs it sees.
        describe = ray.remote(max_calls=1)(worker.describe_node)
        tasks = Tasks(ray, self._restarts, self._wait_s)
        for name, build in targets.items():
            demands = _demands(replace(build, memory_bytes=None))
            with_gpu = build.target.gpu is not None
            tasks.add(name, describe, demands, build.target.backend, self._store.url, with_gpu)
        found = {}
        with phase(self._progress, "Asking the nodes", steps=len(targets)) as step:
            for done, (name, result) in enumerate(tasks.results()):
                found[name] = self._checked_facts(name, result)
                step(done)
        return found

    def _checked_facts(self, target: str, result: TaskResult) -> worker.NodeFacts | BuildFailure:
        if result.lost or "error" in result.value:
            failure = _failure_of(result)
            return replace(failure, message=f"target {target}: {failure.message}")
        node = result.value["node"]
        facts: worker.NodeFacts = result.value["facts"]
        if facts.store != self._identity:
            return BuildFailure(
                "SpecError",
                f"target {target}: {node} does not see the store {self._store.url}: name a folder"
                " that all nodes share, or a URL",
            )
        if facts.code != code_hash():
            return BuildFailure(
                "UnsupportedError",
                f"target {target}: {node} has another trt_native than this machine; install the"
                " same everywhere",
            )
        return facts

    def _plans(
        self, ray: Any, wanted: Mapping[str, tuple[MatrixBuild, worker.BuildRequest]]
    ) -> tuple[dict[str, StoredPlan | BuildFailure], dict[str, int]]:
        """The plan, or the failure, of each key; and how often its build was started."""
        plans: dict[str, StoredPlan | BuildFailure] = dict(self._store.entries())
        missing = {key: both for key, both in wanted.items() if key not in plans}
        build_on_node = ray.remote(worker.build_on_node)
        tasks = Tasks(ray, self._restarts, self._wait_s)
        attempts = dict.fromkeys(missing, 0)
        with phase(self._progress, "Copying models to the store", steps=len(missing)) as step:
            for done, (key, (build, request)) in enumerate(missing.items()):
                try:
                    self._put_inputs(build)
                except (TrtNativeError, OSError) as error:
                    plans[key] = _failure(error)
                else:
                    tasks.add(key, build_on_node, _demands(build), request)
                step(done)
        with phase(self._progress, "Building plans", steps=len(tasks)) as step:
            for done, (key, result) in enumerate(tasks.results()):
                attempts[key] = result.starts
                plans[key] = _plan_of(result)
                step(done)
        return plans, attempts

    def _put_inputs(self, build: MatrixBuild) -> None:
        model = self._model(build.file)
        own = [] if isinstance(model, BuildFailure) else [model[0]]
        for inputs in (*own, *self._calibration(build).values()):
            self._store.put_inputs(inputs.files, inputs.sources)


def _demands(build: MatrixBuild) -> dict[str, Any]:
    """What a build needs of a node, as options of a Ray task."""
    target: Target = build.target
    options: dict[str, Any] = {"num_cpus": build.cpus}
    if build.memory_bytes is not None:
        options["memory"] = build.memory_bytes
    if target.gpu is not None:
        options["num_gpus"] = 1
        if target.gpu != "any":
            options["accelerator_type"] = target.gpu
    if target.labels:
        # Ray allows spaces between values, but takes them for part of a value.
        labels = {name: text.replace(", ", ",") for name, text in target.labels.items()}
        options["label_selector"] = labels
    if target.resources:
        options["resources"] = dict(target.resources)
    return options


def _failure(error: Exception) -> BuildFailure:
    if isinstance(error, TrtNativeError):
        return BuildFailure(type(error).__name__, error.message, error.details, error.problems)
    if isinstance(error, OSError):
        text = f"{error.filename or 'input/output'}: {error.strerror or error}"
        return BuildFailure("TrtNativeError", on_one_line(text))
    return BuildFailure("SpecError", on_one_line(str(error)))


def _failure_of(result: TaskResult) -> BuildFailure:
    """The failure of a task that was lost or returned an error."""
    if result.lost:
        return BuildFailure("BuildError", result.lost)
    error = result.value["error"]
    return BuildFailure(
        error["kind"],
        f"{result.value['node']}: {error['message']}",
        tuple(error["details"]),
        tuple(error["problems"]),
    )


def _plan_of(result: TaskResult) -> StoredPlan | BuildFailure:
    if result.lost or "error" in result.value:
        return _failure_of(result)
    entry: StoredPlan = result.value["entry"]
    return entry
