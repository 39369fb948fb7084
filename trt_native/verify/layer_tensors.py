"""The tensors inside a model, what they are made from, and their values in the reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array, Batch
from trt_native.calibration.cpu_runner import CpuRunner
from trt_native.config import CpuRuntime
from trt_native.errors import SpecError, UnsupportedError
from trt_native.graph.nodes import all_nodes, bodies, is_fp32
from trt_native.progress import Progress, phase
from trt_native.verify.metrics import root_mean_square
from trt_native.verify.reference import reference_program

__all__ = ["ExpectedTensors", "ModelTensors", "members", "set_of"]


class ModelTensors:
    """The floating-point tensors that nodes of a main graph make, in its order.

    Sets of tensors are integers whose bits are the tensors' numbers.
    """

    def __init__(self, model: ir.Model) -> None:
        graph = model.graph
        self.names: list[str] = []
        self.nodes: list[ir.Node] = []
        self.reads: list[tuple[str, ...]] = []  # what the node reads, by name, but for weights
        self.ancestors: list[int] = []  # what a tensor is computed from, itself included
        self.number: dict[str, int] = {}
        above: dict[ir.Value, int] = {}
        for node in graph:
            inner = [n for body in bodies(node) for n in all_nodes(body)]
            values = [v for n in (node, *inner) for v in n.inputs if v is not None]
            mask = 0
            for value in values:
                mask |= above.get(value, 0)
            names = tuple(str(v.name) for v in values if v.name not in graph.initializers)
            for value in node.outputs:
                above[value] = mask
                if value.name and is_fp32(value) and node.op_type != "Constant":
                    self._add(value, node, names, mask)
                    above[value] = self.ancestors[-1]

    def _add(self, value: ir.Value, node: ir.Node, reads: tuple[str, ...], above: int) -> None:
        number = len(self.names)
        self.number[str(value.name)] = number
        self.names.append(str(value.name))
        self.nodes.append(node)
        self.reads.append(reads)
        self.ancestors.append(above | 1 << number)

    def value(self, name: str) -> ir.Value:
        """The tensor in the graph."""
        node = self.nodes[self.number[name]]
        return next(value for value in node.outputs if value.name == name)


class ExpectedTensors:
    """Expected values of the tensors, kept in files: one pass is slow, and all of it is large."""

    def __init__(
        self,
        folder: Path,
        model: ir.Model,
        names: Sequence[str],
        inputs: Batch,
        runtime: CpuRuntime,
        progress: Progress | None,
    ) -> None:
        made = {value.name for node in model.graph for value in node.outputs}
        wanted = [name for name in names if name in made]
        if not wanted:
            raise SpecError(
                "the plan's model and the reference have no tensor names in common; compare with"
                " the ONNX file that the plan was built from"
            )
        self.bytes: dict[str, int] = {}
        self.outputs = [str(v.name) for v in model.graph.outputs if v.name in set(wanted)]
        self.rms = {name: root_mean_square(array) for name, array in inputs.items()}
        self._files: dict[str, Path] = {}
        with phase(progress, "Running the reference", len(wanted)) as step:
            run = CpuRunner(
                model,
                wanted,
                runtime,
                reference_program=reference_program(model),
                alternative="compare the outputs alone, with a callable or with stored outputs",
                options=("layers", "against"),
            )
            for number, (name, values) in enumerate(run(inputs)):
                self._keep(folder, name, np.asarray(values))
                step(number)
        self.program = run.program

    def _keep(self, folder: Path, name: str, values: Array) -> None:
        plain = values.astype(np.float32) if values.dtype.kind == "V" else values
        path = folder / f"{len(self._files)}.npy"
        try:
            np.save(path, plain)
        except OSError as error:
            raise UnsupportedError(
                f"the reference's tensors do not fit {folder.parent}: {error.strerror or error};"
                " point the environment variable TMPDIR at a folder with more space"
            ) from error
        self._files[name] = path
        self.bytes[name] = int(values.nbytes)
        self.rms[name] = root_mean_square(values)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Array:
        array: Array = np.load(self._files[name], mmap_mode="r", allow_pickle=False)
        return array


def set_of(numbers: Iterable[int]) -> int:
    """The set of these tensors."""
    return sum(1 << number for number in set(numbers))


def members(numbers: int) -> Iterator[int]:
    """The tensors of a set, in their order."""
    while numbers:
        lowest = numbers & -numbers
        yield lowest.bit_length() - 1
        numbers ^= lowest
