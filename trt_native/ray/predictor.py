"""Inference on the rows of a Ray Dataset."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_native.errors import PlanError, SpecError, TrtNativeError
from trt_native.files import as_path
from trt_native.plans.manifest import manifest_path, runtime_cache_path
from trt_native.ray.library import import_optional
from trt_native.ray.rows import RowBatcher
from trt_native.scratch import scratch_folder

if TYPE_CHECKING:
    from trt_native.runtime.future import InferenceFuture
    from trt_native.runtime.session import Session

__all__ = ["Predictor", "predict"]

Array = npt.NDArray[Any]

_WITHOUT_ARROW = ("bfloat16", "float8_e4m3fn", "float4_e2m1fn", "int4")


class Predictor:
    """A plan as a class for ``Dataset.map_batches``: each actor has one engine on its own GPU.

    A batch is an Arrow table (``batch_format="pyarrow"``) or a mapping of columns to NumPy arrays.
    Columns of tensors of one shape, of numbers and of lists of one length are used where they are
    in Ray's memory, unless their rows are in several pieces. A row has one result. Uploads, runs
    and downloads overlap, within a batch and between those of several threads.

    A row is an element of the plan's batch if each of the plan's inputs has one axis more than a
    row, and a run of its own if it has as many. Batches are as large as the plan's profiles allow;
    the last one is filled up where it must be.

    Args:
        plan: Path of the plan, on every node, or a URL of fsspec.
        columns: Column of each input; those that are left out have the input's name.
        outputs: The outputs to return, and the column of each. None: all, by their names.
        keep: Columns of the dataset to pass on. None: all.
        cast: Convert columns of another type to the input's.
        depth: Runs that are submitted ahead.
        options: As for :class:`~trt_native.runtime.Session`.

    Raises:
        SpecError: a name is unknown; or an output has a type that Arrow lacks, such as bfloat16.
        PlanError, UnsupportedError, CudaError: as :class:`~trt_native.runtime.Session`.
    """

    def __init__(
        self,
        plan: str | os.PathLike[str],
        *,
        columns: Mapping[str, str] | None = None,
        outputs: Mapping[str, str] | None = None,
        keep: Sequence[str] | None = None,
        cast: bool = False,
        depth: int = 2,
        **options: Any,
    ) -> None:
        self._resources = ExitStack()
        self._finalizer = weakref.finalize(self, self._resources.close)
        if depth < 1:
            raise SpecError(f"depth={depth}: must be at least 1", options=("depth",))
        self._keep, self._cast, self._depth = keep, cast, depth
        self._submitting = threading.Lock()
        session = self._opened(plan, options)
        self._session = session
        self._batcher = RowBatcher(session.inputs, session.outputs)
        self._columns = _named({t.name: t.name for t in session.inputs}, columns, "input")
        names = {t.name: t.name for t in session.outputs}
        renamed = _named(names, outputs, "output")
        self._outputs = renamed if outputs is None else {name: renamed[name] for name in outputs}
        _check_outputs({t.name: t.dtype for t in session.outputs}, self._outputs)

    def _opened(self, plan: str | os.PathLike[str], options: Mapping[str, Any]) -> Session:
        from trt_native.runtime.session import Session

        path = _local(plan, self._resources)
        return self._resources.enter_context(Session(path, **options))

    def __call__(self, batch: Any) -> Iterator[Any]:
        """Run the plan for the rows of a batch.

        Ray lets one thread make the calls of an actor, but several take their results: the GPU has
        the rows of one call while another begins or ends.

        Args:
            batch: An Arrow table, or a mapping of columns to arrays.

        Yields:
            Once: the same kind of batch, with the columns to keep and the outputs.

        Raises:
            SpecError: a column is missing, or does not fit the plan; or an output's first axis is
                not that of the rows.
            CudaError: the GPU has too little memory, or TensorRT failed.
        """
        table = not isinstance(batch, Mapping)
        names = batch.column_names if table else list(batch)
        kept = self._kept(names)
        rows = _arrays(batch.select(self._used(names))) if table else batch
        found = self._predicted({i: np.asarray(rows[c]) for i, c in self._columns.items()})
        if table:
            yield _with_columns(batch.select(kept), found)
        else:
            yield {**{name: batch[name] for name in kept}, **found}

    def _predicted(self, columns: dict[str, Array]) -> dict[str, Array]:
        """Outputs by column, a row for each row of the inputs."""
        batches = []

        def inputs() -> Any:
            for batch in self._batcher.batches(columns):
                batches.append(batch)
                yield self._typed(batch.inputs)

        results = list(self._results(inputs()))
        found = self._batcher.joined(list(zip(batches, results, strict=True)))
        return {column: found[name] for name, column in self._outputs.items()}

    def _results(self, batches: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        """Run the engine for batches, as ``Session.map`` does for one thread."""
        ahead: deque[InferenceFuture] = deque()
        for inputs in batches:
            with self._submitting:
                ahead.append(self._session.submit(inputs))
            if len(ahead) > self._depth:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _typed(self, inputs: dict[str, Array]) -> dict[str, Array]:
        if not self._cast:
            return inputs
        types = {tensor.name: tensor.dtype for tensor in self._session.inputs}
        return {name: array.astype(types[name], copy=False) for name, array in inputs.items()}

    def _used(self, names: Sequence[str]) -> list[str]:
        lacking = {i: c for i, c in self._columns.items() if c not in names}
        if lacking:
            raise SpecError(
                f"the dataset has no column {', '.join(map(repr, lacking.values()))} for the plan's"
                f" inputs {', '.join(lacking)}; it has {', '.join(names)}",
                options=("columns",),
            )
        return list(dict.fromkeys(self._columns.values()))

    def _kept(self, names: Sequence[str]) -> list[str]:
        self._used(names)
        kept = list(names) if self._keep is None else list(self._keep)
        unknown = [name for name in kept if name not in names]
        if unknown:
            raise SpecError(f"the dataset has no column {unknown[0]!r} to keep", options=("keep",))
        twice = [name for name in self._outputs.values() if name in kept]
        if twice:
            raise SpecError(
                f"the dataset has a column {twice[0]!r} already: name the output otherwise, or keep"
                " other columns",
                options=("outputs", "keep"),
            )
        return kept


def predict(
    dataset: Any,
    plan: str | os.PathLike[str],
    *,
    gpus: int = 1,
    batch_size: int = 256,
    columns: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    keep: Sequence[str] | None = None,
    cast: bool = False,
    **options: Any,
) -> Any:
    """Add the outputs of a plan to a Ray Dataset, with an actor for each GPU.

    Ray reads ahead no more than the actors can take, starts an actor that dies again, with its
    rows, and shows progress.

    Args:
        dataset: A ``ray.data.Dataset``.
        plan: As for :class:`Predictor`, like the rest.
        gpus: Number of GPUs.
        batch_size: Number of rows that an actor gets at a time. Multiples of the plan's largest
            batch need no filling up.
        columns: As for :class:`Predictor`.
        outputs: The same.
        keep: The same.
        cast: The same.
        options: The same.

    Returns:
        The dataset with the outputs; like others, it is computed when it is consumed.

    Raises:
        UnsupportedError: Ray is not installed.
        SpecError: a number is below 1.
    """
    data = import_optional("ray.data")
    for name, value in (("gpus", gpus), ("batch_size", batch_size)):
        if value < 1:
            raise SpecError(f"{name}={value}: must be at least 1", options=(name,))
    plan = plan if isinstance(plan, str) and "://" in plan else str(as_path(plan).absolute())
    given = {"columns": columns, "outputs": outputs, "keep": keep, "cast": cast, **options}
    return dataset.map_batches(
        Predictor,
        fn_constructor_args=(plan,),
        fn_constructor_kwargs=given,
        # Ray prepares the rows of some calls and stores those of others while the GPU is busy.
        compute=data.ActorPoolStrategy(size=gpus, max_concurrent_calls_per_actor=4),
        batch_size=batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_gpus=1,
    )


def _named(known: dict[str, str], given: Mapping[str, str] | None, kind: str) -> dict[str, str]:
    for name in given or {}:
        if name not in known:
            raise SpecError(f"the plan has no {kind} {name!r}; it has {', '.join(known)}")
    return {**known, **(given or {})}


def _check_outputs(types: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for name in wanted:
        if types[name] in _WITHOUT_ARROW:
            raise SpecError(
                f"output {name!r} is {types[name]}, which Arrow has no type for: build the plan"
                " with outputs in FP32 or FP16"
            )


def _arrays(table: Any) -> dict[str, Array]:
    """The columns of a table as arrays, not copied where they are in one piece."""
    blocks = import_optional("ray.data.block")
    arrow = import_optional("pyarrow")
    found = {}
    for name in table.column_names:
        column = table.column(name)
        if arrow.types.is_fixed_size_list(column.type) and column.null_count == 0:
            # combine_chunks copies a chunk that is alone
            whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            flat = whole.flatten()
            found[name] = flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)
        else:
            found[name] = blocks.BlockAccessor.for_block(table.select([name])).to_numpy()[name]
    return found


def _with_columns(table: Any, columns: Mapping[str, Array]) -> Any:
    """A table with further columns, whose arrays it holds without a copy."""
    blocks = import_optional("ray.data.block")
    added = blocks.BlockAccessor.batch_to_arrow_block(dict(columns))
    if not table.num_columns:
        return added
    for name in added.column_names:
        table = table.append_column(added.schema.field(name), added.column(name))
    return table


def _local(plan: str | os.PathLike[str], resources: ExitStack) -> Path:
    """The path of a plan; one with a URL is fetched with what is next to it."""
    if not isinstance(plan, str) or "://" not in plan:
        return as_path(plan)
    fsspec = import_optional("fsspec")
    folder = resources.enter_context(scratch_folder())
    path = folder / plan.rstrip("/").rpartition("/")[2]
    try:
        files, source = fsspec.core.url_to_fs(plan)
        files.get_file(source, str(path))
        for companion in (manifest_path(path), runtime_cache_path(path)):
            name = source + companion.name.removeprefix(path.name)
            if files.exists(name):
                files.get_file(name, str(companion))
    except TrtNativeError:
        raise
    except Exception as error:  # each kind of storage has its own
        raise PlanError(f"{plan}: cannot be read: {' '.join(str(error).split())}") from None
    return path
