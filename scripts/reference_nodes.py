#!/usr/bin/env python3
"""ONNX's own tests through the reference evaluator, on the CPU; takes about 15 seconds.

The node tests of the newest operators, and the models that the onnx package has from PyTorch and
Caffe2, of opsets 6 to 12. Differences that are not known make the exit code 1.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from trt_native.cli.console import report_errors, stdout, table
from trt_native.reference.evaluator import evaluator

LIMIT = 4e-3  # relative L2 error: BF16, whose sums may be rounded in another order
KNOWN = {
    "test_bernoulli*": "random",
    "test_if_opt": "optional values",
    "test_not_?d": "opset 1",
    "test_scan_sum": "Scan 8",
    "*strnorm*": "text",
    "*string*": "text",
    "test_gradient_of_*": "training",
}


def stored(folder: Path, kind: str) -> list[Any]:
    """Tensors of a test that is stored in files."""
    found = folder.glob(f"test_data_set_0/{kind}_*.pb")
    paths = sorted(found, key=lambda path: (len(path.name), path.name))
    return [numpy_helper.to_array(onnx.load_tensor(path)) for path in paths]


def tests() -> Iterator[tuple[str, onnx.ModelProto, list[Any], list[Any]]]:
    """Name, model, inputs and outputs of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            for inputs, outputs in case.data_sets or ():
                if case.model is not None:
                    yield case.name, case.model, list(inputs), list(outputs)
    data = Path(onnx.__file__).parent / "backend/test/data"
    for model in sorted(data.glob("[ps][yi]*/*/model.onnx")):
        if not model.parts[-2].startswith("test_sequence"):
            inputs, outputs = (stored(model.parent, kind) for kind in ("input", "output"))
            yield model.parts[-2], onnx.load(model), inputs, outputs


def plain(value: Any) -> Any:
    """A tensor as an array."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def difference(found: Any, expected: Any) -> float:
    """The relative L2 error; infinite where types or shapes differ, or values without a norm."""
    if isinstance(expected, list):
        pairs = zip(found, expected, strict=True)
        return max((difference(f, e) for f, e in pairs), default=0.0)
    f, e = np.asarray(found), np.asarray(expected)
    if f.shape != e.shape or f.dtype != e.dtype:
        return float("inf")
    if e.dtype.kind in "OSUT":
        return 0.0 if np.array_equal(f, e) else float("inf")
    f, e = f.astype(np.complex128), e.astype(np.complex128)
    finite = np.isfinite(e)
    if not np.array_equal(f[~finite], e[~finite], equal_nan=True):
        return float("inf")
    norm = float(np.linalg.norm(e[finite]))
    return float(np.linalg.norm(f[finite] - e[finite])) / (norm or 1.0)


def outcome(model: onnx.ModelProto, inputs: list[Any], outputs: list[Any]) -> str:
    """``right``, or what is not."""
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in weights]
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    try:
        with np.errstate(all="ignore"):
            run = evaluator(model.graph, opsets).run
            found = run(None, dict(zip(names, map(plain, inputs), strict=False)))
        worst = max(map(difference, found, map(plain, outputs)), default=0.0)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return "right" if worst <= LIMIT else f"off by {worst:.1e}"


@report_errors
def main(pattern: Annotated[str, typer.Argument(help="Names of tests.")] = "*") -> None:
    """Run the tests, and list what is not right."""
    counts: Counter[str] = Counter()
    rows = []
    for name, model, inputs, outputs in tests():
        if not fnmatch.fnmatch(name, pattern) or model.functions:
            continue
        found = outcome(model, inputs, outputs)
        known = next((why for p, why in KNOWN.items() if fnmatch.fnmatch(name, p)), "")
        counts["right" if found == "right" else "known" if known else "wrong"] += 1
        if found != "right":
            rows.append((name, found, known))
    table("Not right", ("test", "found", "known"), rows)
    stdout.print(dict(counts))
    if counts["wrong"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
