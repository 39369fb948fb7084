"""The error of a converted ONNX file against the original, on inputs from a command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_native.builder.conversion_config import ConversionConfig
from trt_native.builder.convert import ConvertedFile
from trt_native.cli.inputs import GivenInputs, check_seed, fill_random
from trt_native.errors import SpecError, TrtNativeError, UnsupportedError
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.graph.types import reduced_types
from trt_native.progress import Progress
from trt_native.shapes import Shape
from trt_native.verify.metrics import OutputComparison, Thresholds, relative_limit
from trt_native.verify.models import (
    compare_models,
    model_inputs,
    product_size,
    random_operators,
)

__all__ = ["ConversionComparison", "ConversionSamples"]

_CHEAP = 4e8  # multiply-adds that the reference does in a few seconds


@dataclass(frozen=True, slots=True)
class ConversionComparison:
    """Comparison of a converted file with the original.

    Attributes:
        outputs: The comparison of each output; empty where there is none.
        inputs: Description of the inputs, or the reason why nothing was compared.
        problems: Outputs beyond the error that the precision explains.
    """

    outputs: tuple[OutputComparison, ...]
    inputs: str
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""
        if not self.outputs:
            return {"error": None, "not_compared": self.inputs}
        keys = ("name", "relative_l2", "max_abs", "nonfinite_differs")
        outputs = [{key: found.to_json()[key] for key in keys} for found in self.outputs]
        return {"error": outputs, "compared_with": self.inputs, "problems": list(self.problems)}

    def lines(self) -> tuple[str, ...]:
        """What was found, for people."""
        if not self.outputs:
            return (f"not compared: {self.inputs}",)
        worst = max(self.outputs, key=lambda found: found.relative_l2)
        of = f", the largest of {len(self.outputs)} outputs" if len(self.outputs) > 1 else ""
        return (
            f"relative L2 {worst.relative_l2:.2g}, at most {worst.max_abs:.2g} ({worst.name}{of})",
            f"on the CPU, with {self.inputs}",
        )


class ConversionSamples:
    """The inputs to compare a result with, from the options.

    Args:
        given: The arrays that were given.
        seed: Seed of random values for other inputs; None for none, or where that takes seconds.
        shapes: Shapes of random inputs.

    Raises:
        SpecError: the seed is negative.
    """

    def __init__(self, given: GivenInputs, seed: int | None, shapes: Mapping[str, Shape]) -> None:
        self._seed = 0 if seed is None and shapes else seed
        check_seed(self._seed, dict(shapes))
        self._given, self._shapes = given, shapes

    def check(self, model: Path) -> None:
        """Check before the conversion that inputs are named that the model has.

        Raises:
            SpecError: one is not.
            ModelError: the model cannot be read.
        """
        named = {"--input": self._given.names, "--shape": self._shapes.keys()}
        if not any(named.values()):
            return
        known = [tensor.name for tensor in tensor_specs(read_model(model))[0]]
        for flag, names in named.items():
            if unknown := sorted(set(names) - set(known)):
                raise SpecError(f"{flag} {', '.join(unknown)}: the inputs are {', '.join(known)}")

    def compare(
        self, model: Path, result: ConvertedFile, config: ConversionConfig, progress: Progress
    ) -> ConversionComparison:
        """Compare a converted file with the original.

        Raises:
            TrtNativeError: inputs were asked for that do not fit, or cannot be run.
        """
        try:
            return self._compare(model, result, config, progress)
        except TrtNativeError as error:
            if self._seed is not None or self._given.names:
                raise
            is_missing = isinstance(error, UnsupportedError)
            hint = "" if is_missing else "; give other inputs with --input or --shape"
            return ConversionComparison((), f"{error.message}{hint}")

    def _compare(
        self, model: Path, result: ConvertedFile, config: ConversionConfig, progress: Progress
    ) -> ConversionComparison:
        if drawing := random_operators(model):
            return ConversionComparison(
                (), f"the model draws random numbers ({', '.join(drawing)})"
            )
        fixed = config.build_config().fixed_values()
        tensors = model_inputs(result.path, {**self._shapes, **self._given.shapes})
        described = f"random inputs (seed {self._seed or 0})"
        if self._given.names:
            others = "" if self._seed is None else f" and random others (seed {self._seed})"
            described = f"the inputs given{others}"
        elif self._seed is None:
            size = product_size(model, {t.name: t.shape for t in tensors}, fixed)
            if size is None or size > _CHEAP:
                counted = "an unknown number of" if size is None else f"{size:.1e}"
                return ConversionComparison(
                    (), f"{counted} multiply-adds take the CPU long; compare with --random 0"
                )
        arrays = self._given.read(tensors)
        if self._seed is not None or not self._given.names:
            arrays = fill_random(tensors, arrays, {}, np.random.default_rng(self._seed or 0))
        found = compare_models(model, result.path, arrays, fixed_inputs=fixed, progress=progress)
        limit = Thresholds(max_relative_error=relative_limit(_arithmetic(model, config)))
        problems = [
            f"output {output.name!r}: {problem}"
            for output in found
            for problem in limit.problems(output)
        ]
        return ConversionComparison(found, described, tuple(problems))


def _arithmetic(model: Path, config: ConversionConfig) -> str:
    """What the error of the result is due to."""
    if config.quantize is not None or config.precision is not None:
        return str(config.quantize or config.precision)
    types = reduced_types(read_model(model))
    return "bf16" if "bfloat16" in types else "fp16" if types else "fp32"
