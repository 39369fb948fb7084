#!/usr/bin/env python3
"""Lower ONNX's node tests to older opsets, and compare the outputs.

Every model of the node tests that is newer than an opset is lowered to it, or refused. What was
lowered must be valid, and compute bit by bit what the original does, by the reference evaluator of
this package. ``Bernoulli`` draws random numbers, and is not compared. Takes about 20 seconds.

    scripts/lower_nodes.py            # opsets 13, 17, 19 and 21
    scripts/lower_nodes.py 18 20
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from typing import Any

import environment  # noqa: F401  (ends with one line where the package is not installed)
import numpy as np
import onnx
import onnx_ir as ir
from onnx.backend.test.case.node import collect_testcases

from trt_native.errors import TrtNativeError
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import opset_of
from trt_native.passes.lower_opset import lower_opset, lowering_problems
from trt_native.passes.normalize import normalize
from trt_native.reference.evaluator import evaluator

_OPSETS = (13, 17, 19, 21)


def main(opsets: tuple[int, ...]) -> int:
    """Lower all models to each opset; prints what became of them, and returns 1 if any is wrong."""
    counts: Counter[str] = Counter()
    for case in collect_testcases(None):
        for opset in opsets:
            counts[_outcome(case, opset)] += 1
    counts.pop("", None)
    for outcome, count in sorted(counts.items()):
        print(f"{count:6} {outcome}")
    return int(any(outcome.startswith("WRONG") for outcome in counts))


def _outcome(case: Any, opset: int) -> str:
    original = case.model
    if any(entry.domain for entry in original.opset_import):
        return ""
    try:
        model = ir.from_proto(original)
        if opset_of(model) <= opset:
            return ""
        normalize(model)
        infer_values(model)
    except (TrtNativeError, TypeError, ValueError):
        return "not read"
    if lowering_problems(model, opset):
        return "refused"
    lower_opset(model, opset)
    made = ir.to_proto(model)
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"WRONG {case.name} at opset {opset}: {str(error).splitlines()[0]}"
    if "bernoulli" in case.name:
        return "lowered, random"
    return _compared(case, original, made, opset)


def _compared(case: Any, original: onnx.ModelProto, made: onnx.ModelProto, opset: int) -> str:
    names = [value.name for value in original.graph.input]
    kept = {value.name for value in made.graph.input}
    for inputs, _ in case.data_sets:
        batch = dict(zip(names, inputs, strict=False))
        batch = {name: value for name, value in batch.items() if name in kept}
        try:
            expected = _run(original, batch)
        except Exception:  # the evaluator raises many kinds for what it does not have
            return "lowered, not run by the reference"
        for found, wanted in zip(_run(made, batch), expected, strict=True):
            if not _equal(found, wanted):
                return f"WRONG {case.name} at opset {opset}"
    return "lowered, equal"


def _run(model: onnx.ModelProto, batch: dict[str, Any]) -> list[Any]:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    return list(evaluator(model.graph, opsets).run(None, batch))


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_equal, found, wanted))
    floats = np.asarray(wanted).dtype.kind == "f"
    return bool(np.array_equal(found, wanted, equal_nan=floats))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main(tuple(map(int, sys.argv[1:])) or _OPSETS))
