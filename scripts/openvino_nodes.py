#!/usr/bin/env python3
"""Single nodes through OpenVINO, against the reference evaluator: which operators it has right.

ONNX's node tests and some more cases, each in every version of the operator since opset 7 that
takes it, with large integers in the place of numbers where the operator takes these, and with all,
some or none of the further inputs as constants. ``--write`` puts the result into the file by which
calibration and verification choose what OpenVINO runs. Without it, differences from that file make
the exit code 1. Takes about 9 minutes on two cores.
"""

from __future__ import annotations

import itertools
import json
import resource
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Annotated, Any

import environment  # noqa: F401  (ends with one line where the package is not installed)
import numpy as np
import onnx
import onnx_ir as ir
import typer
from differences import difference
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from trt_native.calibration.openvino_operators import FILE, node_features
from trt_native.calibration.openvino_runner import OpenVinoModel, openvino_version
from trt_native.cli.console import report_errors, stdout, table
from trt_native.graph.nodes import DATA_MOVEMENT_OPS, op_set
from trt_native.reference.evaluator import evaluator
from trt_native.schemas import schema_of

LIMIT = 1e-5  # relative L2 error; integers and booleans must be equal
OLDEST = 7
WORKERS = 2
MOST_MEMORY = 8 << 30
TYPES = ("float32", "int64", "int32", "bool")
LEFT_OUT = op_set(  # random, for training, or so large that a wrong case is easily missed
    "Bernoulli Multinomial RandomNormalLike RandomUniformLike Dropout"
    " SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss Attention"
)
INTEGERS = (
    (np.int64, 3e4),
    (np.int64, 2.0**30),
    (np.int32, 2.0**30),
)  # results beyond INT32 do not count
INTEGER_OPS = DATA_MOVEMENT_OPS | op_set(  # of which shapes are made, and masks
    "Add Sub Mul Div Mod Pow Neg Abs Sign Sum Max Min Clip Relu Equal Less Greater LessOrEqual"
    " GreaterOrEqual Where ReduceSum ReduceMax ReduceMin ReduceProd ArgMax ArgMin CumSum Range"
)
AXES = op_set(  # their axes were an attribute once
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd"
    " ReduceSum ReduceSumSquare Squeeze Unsqueeze"
)

Array = np.ndarray[Any, Any]
Results = list[tuple[tuple[str, ...], str, str]]


@dataclass(frozen=True)
class Case:
    """One node with its inputs.

    Attributes:
        name: The test, and how it was varied.
        node: The node.
        opset: Version of the operators.
        inputs: Array by input name.
        constants: Those that are constants of the model.
    """

    name: str
    node: onnx.NodeProto
    opset: int
    inputs: Mapping[str, Array]
    constants: frozenset[str] = frozenset()

    @property
    def since(self) -> int:
        """Version of the operator."""
        schema = schema_of(self.node.op_type, self.opset)
        return schema.since_version if schema else 0


def node_tests() -> Iterator[Case]:
    """ONNX's, of one node and of types that OpenVINO is given."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        tests = collect_testcases(None)
    for test in tests:
        model = test.model
        if model is None or model.functions or len(model.graph.node) != 1:
            continue
        node, opset = model.graph.node[0], {o.domain: o.version for o in model.opset_import}
        if node.domain or node.op_type in LEFT_OUT or "" not in opset:
            continue
        for given, _ in test.data_sets or ():
            names = [value.name for value in model.graph.input]
            arrays = [
                numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in given
            ]
            inputs = dict(zip(names, arrays, strict=False))
            if all(isinstance(a, np.ndarray) and a.dtype.name in TYPES for a in arrays):
                yield Case(test.name, node, opset[""], inputs)


def own_cases() -> Iterator[Case]:
    """Shapes and attributes that the node tests lack."""
    random, number_of = np.random.default_rng(0), itertools.count()

    def case(operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Case:
        arrays = {
            f"i{number}": random.standard_normal(given, np.float32)
            if isinstance(given, tuple)
            else np.asarray(given)
            for number, given in enumerate(inputs)
            if given is not None
        }
        names = [f"i{n}" if given is not None else "" for n, given in enumerate(inputs)]
        node = onnx.helper.make_node(
            operator, names, [f"o{number}" for number in range(outputs)], **attributes
        )
        words = " ".join(f"{name}={value}" for name, value in attributes.items())
        shapes = " ".join("x".join(map(str, array.shape)) for array in arrays.values())
        name = f"own {next(number_of)} {operator} of {shapes} {words}".strip()
        return Case(name, node, onnx.defs.onnx_opset_version(), arrays)

    for rank in (1, 2, 3):
        space, kernel = (9, 8, 7)[:rank], (3, 2, 3)[:rank]
        yield case("Conv", (2, 4, *space), (6, 4, *kernel), (6,))
        yield case("Conv", (2, 4, *space), (6, 2, *kernel), None, group=2, strides=[2] * rank)
        yield case("Conv", (2, 4, *space), (8, 1, *kernel), (8,), group=4, dilations=[2] * rank)
        yield case(
            "Conv", (2, 4, *space), (6, 4, *kernel), (6,), pads=[1, 0, 2, 1, 1, 0][: 2 * rank]
        )
        yield case("Conv", (2, 4, *space), (6, 4, *kernel), kernel_shape=list(kernel))
        for padding in ("SAME_UPPER", "SAME_LOWER", "VALID"):
            yield case(
                "Conv", (2, 4, *space), (6, 4, *kernel), auto_pad=padding, strides=[2] * rank
            )
        yield case("ConvTranspose", (2, 4, *space), (4, 3, *kernel), (3,), strides=[2] * rank)
        yield case("ConvTranspose", (2, 4, *space), (4, 3, *kernel), group=2, pads=[1] * 2 * rank)
        for operator in ("MaxPool", "AveragePool", "LpPool"):
            pads: dict[str, Any] = {"kernel_shape": list(kernel), "pads": [1] * 2 * rank}
            yield case(operator, (2, 4, *space), kernel_shape=list(kernel), strides=[2] * rank)
            yield case(operator, (2, 4, *space), **pads)
            yield case(operator, (2, 4, *space), **pads, ceil_mode=1, strides=[2] * rank)
        yield case("AveragePool", (2, 4, *space), **pads, count_include_pad=1)
        for operator in ("GlobalAveragePool", "GlobalMaxPool"):
            yield case(operator, (2, 4, *space))
        yield case("InstanceNormalization", (2, 4, *space), (4,), (4,), epsilon=1e-3)
        yield case("GroupNormalization", (2, 4, *space), (4,), (4,), num_groups=2)
        yield case("BatchNormalization", (2, 4, *space), (4,), (4,), (4,), np.ones(4, np.float32))
        yield case("PRelu", (2, 4, *space), (4, *[1] * rank))
        yield case("LRN", (2, 4, *space), size=3)
        scales = np.array([1, 1, *[2] * rank], np.float32)
        for mode, place in itertools.product(
            ("nearest", "linear", "cubic"), ("half_pixel", "asymmetric", "align_corners")
        ):
            more: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": place}
            yield case("Resize", (1, 2, *space), None, scales, **more)
            yield case("Resize", (1, 2, *space), None, None, np.array([1, 2, *[12] * rank]), **more)
            yield case("Resize", (1, 2, *space), None, scales * 1.3, **more)
            if mode == "nearest":
                yield case("Resize", (1, 2, *space), None, scales, nearest_mode="floor", **more)
    for shapes in (
        ((5,), (5,)), ((3, 5), (5, 4)), ((2, 3, 5), (5, 4)), ((2, 3, 5), (2, 5, 4)),
        ((2, 1, 3, 5), (6, 5, 4)), ((5,), (2, 5, 4)), ((2, 3, 5), (5,)), ((1, 2, 2, 3, 5), (5, 4)),
    ):  # fmt: skip
        yield case("MatMul", *shapes)
    for rank in range(2, 6):
        shape = (2, 3, 4, 5, 6)[:rank]
        x = random.standard_normal(shape, np.float32) * 4
        masked = np.where(x > 2, -np.inf, x).astype(np.float32)
        for operator in ("Softmax", "LogSoftmax", "Hardmax"):
            for axis in range(rank):
                yield case(operator, x, axis=axis)
            yield case(operator, np.where(x > 40, x, masked), axis=-1)
        for axis in range(-rank, 0):
            yield case("LayerNormalization", shape, shape[axis:], shape[axis:], axis=axis)
        yield case("LayerNormalization", shape, shape[-1:], epsilon=1e-3)
        yield case("RMSNormalization", shape, shape[-1:])
        yield case("Transpose", shape, perm=[*range(1, rank), 0])
        yield case("Slice", shape, [0], [2**63 - 1], [-1])
        yield case("Slice", shape, [-1], [-(2**63) + 1], [0], [-1])
        yield case("Slice", shape, [1], [2**31 - 1], [1], [1])
        yield case("Gather", shape, np.array([[0, -1], [1, 0]]), axis=rank - 1)
        yield case("Split", shape, [1, 1], axis=0, outputs=2)
        yield case("Expand", shape, np.array([3, *[1] * rank]))
        yield case("Tile", shape, np.array([2] * rank))
        for operator in (
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceL2",
            "ReduceMin",
            "ReduceProd",
        ):
            yield case(operator, shape, np.array([0, -1]), keepdims=0)
            yield case(operator, shape, np.array([-1]))
            yield case(operator, shape)
        for operator in ("ArgMax", "ArgMin"):
            yield case(operator, shape, axis=-1, keepdims=0)
        for operator in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Mod", "PRelu"):
            left = random.standard_normal(shape, np.float32) ** 2 + 1
            more = {"fmod": 1} if operator == "Mod" else {}
            yield case(operator, left, (shape[-1],), **more)
            yield case(operator, left, np.float32(1.5), **more)
            if operator in ("Add", "Mul", "Sub", "Div"):
                yield case(operator, np.float32(1.5), left)
        yield case("Where", x > 0, x, np.float32(-np.inf))
        yield case("Where", x[:1] > 0, x, (shape[-1],))
        yield case("Concat", shape, shape, shape, axis=-1)
    number = np.array([-7.9, -1.5, -0.5, 0.0, 0.49, 1.5, 2.5, 1000.7], np.float32)
    for given, to in itertools.product(
        (number, number.astype(np.int64), number.astype(np.int32), number > 1), range(1, 14)
    ):
        if to in (1, 6, 7, 9):
            yield case("Cast", given, to=to)
    for rows in (0, 1):  # a row without any finite score has no softmax
        scores = np.zeros((2, 3), np.float32)
        scores[:rows] = -np.inf
        yield case("Softmax", scores)
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield case("Pad", (1, 2, 5, 6), np.array([0, 0, 1, 2, 0, 0, 2, 1]), mode=mode)
    yield case("Pad", (1, 2, 5, 6), np.array([0, 0, -1, 2, 0, 0, 2, -1]), np.float32(3))
    yield case("Reshape", (2, 3, 4), np.array([0, -1, 2]))
    yield case("Reshape", (2, 3, 4), np.array([-1]))
    yield case("Reshape", (2, 3, 4), np.array([-1, 3]), allowzero=1)
    yield case("Reshape", (2, 3, 4), np.array([4, 3, 2]), allowzero=1)
    for equation, *operands in (
        ("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)), ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
        ("bchw,cd->bdhw", (2, 3, 4, 5), (3, 6)), ("i,j->ij", (3,), (4,)), ("ii->i", (3, 3)),
    ):  # fmt: skip
        yield case("Einsum", *operands, equation=equation)


def varied(cases: Iterable[Case]) -> Iterator[Case]:
    """Each case in all versions of its operator, with integers, and with constants."""
    seen = set()
    for first in cases:
        for case in (first, *older(first)):
            for typed in (case, *with_integers(case)):
                for constants in subsets(list(typed.inputs)):
                    name = f"{typed.name} constants={','.join(sorted(constants)) or 'none'}"
                    if name not in seen:
                        seen.add(name)
                        yield Case(name, typed.node, typed.opset, typed.inputs, constants)


def older(case: Case) -> Iterator[Case]:
    """The case in other versions, which the checker may refuse."""
    versions = {
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if (schema.name, schema.domain) == (case.node.op_type, "") and not schema.deprecated
    }
    for since, until in itertools.pairwise([*sorted(versions), case.opset + 1]):
        if until > OLDEST and since != case.since:
            yield Case(f"{case.name} opset={until - 1}", case.node, until - 1, case.inputs)
    if list(case.inputs)[1:] and case.node.op_type in AXES and len(case.node.input) == 2:
        node = onnx.NodeProto()
        node.CopyFrom(case.node)
        axes = case.inputs[node.input.pop()]
        if axes.ndim == 1 and axes.size:
            node.attribute.append(onnx.helper.make_attribute("axes", axes.tolist()))
            kept = {node.input[0]: case.inputs[node.input[0]]}
            for opset in (10, 12, 17):
                yield Case(f"{case.name} axes opset={opset}", node, opset, kept)


def with_integers(case: Case) -> Iterator[Case]:
    """The case with large integers in the place of numbers."""
    random = np.random.default_rng(0)
    floats = any(array.dtype == np.float32 for array in case.inputs.values())
    if case.node.op_type not in INTEGER_OPS or not floats:
        return
    for dtype, largest in INTEGERS:
        inputs = {
            name: np.asarray(random.uniform(-largest, largest, array.shape)).astype(dtype)
            if array.dtype == np.float32
            else array
            for name, array in case.inputs.items()
        }
        name = f"{case.name} {np.dtype(dtype).name} {largest:.0e}"
        yield Case(name, case.node, case.opset, inputs)


def subsets(names: list[str]) -> Iterator[frozenset[str]]:
    """Choices of inputs that are constants: none, all but one, the first, the last."""
    rest = [frozenset(names) - {name} for name in names]
    ends = [frozenset(names[:1]), frozenset(names[-1:])] if len(names) > 1 else []
    yield from dict.fromkeys([frozenset(), *rest, *ends])


def outcome(case: Case) -> tuple[str, tuple[str, ...], str]:
    """``right``, ``wrong``, ``refused`` or empty where there is nothing to compare; features."""
    try:
        model, expected = reference(case)
    except Exception:  # of any kind: the case is not one of this version, or of these types
        return "", (), ""
    if expected is None:
        return "", (), ""
    parsed, features = described(case, model)
    given = {name: a for name, a in case.inputs.items() if name not in case.constants}
    try:
        found = OpenVinoModel(parsed)(given)
    except Exception as error:
        return "refused", features, " ".join(str(error).split())[:60]
    worst = max(off(f, e) for f, e in zip(found, expected, strict=True))
    return ("right" if worst <= LIMIT else "wrong"), features, f"{worst:.1e}"


def described(case: Case, model: onnx.ModelProto | None = None) -> tuple[ir.Model, tuple[str, ...]]:
    """The model of a case and the features of its node."""
    parsed = ir.from_proto(model or reference(case)[0])
    schema = schema_of(case.node.op_type, case.opset)
    assert schema is not None  # noqa: S101  # the checker knew it
    return parsed, tuple(node_features(parsed.graph.node(0), schema))


def off(found: Array, expected: Array) -> float:
    """The relative L2 error; infinite for another shape or type, or integers that differ."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if expected.dtype.kind in "iub":
        return 0.0 if np.array_equal(found, expected) else float("inf")
    return difference(found, expected)


def reference(case: Case) -> tuple[onnx.ModelProto, list[Array] | None]:
    """A model of the node, and its outputs; None of types or values that OpenVINO is not given."""
    node = onnx.NodeProto()
    node.CopyFrom(case.node)
    inputs = {name: array for name, array in case.inputs.items() if name not in case.constants}
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [value(name, a.dtype, a.shape) for name, a in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
        [numpy_helper.from_array(case.inputs[name], name) for name in sorted(case.constants)],
    )
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = evaluator(graph, {"": case.opset}).run(None, inputs)
    results = [np.asarray(output) for output in outputs]
    graph.output.clear()
    named = [name for name in node.output if name]
    graph.output.extend(
        value(name, a.dtype, a.shape) for name, a in zip(named, results, strict=True)
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", case.opset)], ir_version=10
    )
    onnx.checker.check_model(model, full_check=True)
    for array in results:
        if array.dtype.name not in TYPES or (array.dtype.kind == "i" and beyond_int32(array)):
            return model, None
    return model, results


def value(name: str, dtype: Any, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    """An input or output of any extents, but for short lists of integers."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    of_shapes = len(shape) == 1 and np.dtype(dtype).kind == "i"  # whose number is known
    return onnx.helper.make_tensor_value_info(
        name, kind, shape if of_shapes else [None] * len(shape)
    )


def beyond_int32(array: Array) -> bool:
    """Whether an integer has more than 32 bits."""
    return bool(array.size) and not -(2**31) < array.min() <= array.max() < 2**31


def run_all(cases: list[Case]) -> list[tuple[Case, str, tuple[str, ...], str]]:
    """The outcome of each, in other processes: a crash is one more."""
    with ThreadPoolExecutor(WORKERS) as threads:
        parts = threads.map(run_part, [cases[n::WORKERS] for n in range(WORKERS)])
        return [result for part in parts for result in part]


def run_part(cases: list[Case]) -> list[tuple[Case, str, tuple[str, ...], str]]:
    """The outcome of each, in a process that is made again where it crashes."""
    results, left = [], list(reversed(cases))
    while left:
        with ProcessPoolExecutor(1, initializer=limit_memory) as pool:
            try:
                while left:
                    results.append((left[-1], *pool.submit(outcome, left[-1]).result()))
                    left.pop()
            except BrokenProcessPool:
                case = left.pop()
                results.append((case, "crashed", described(case)[1], ""))
    return results


def limit_memory() -> None:
    """Let a case that asks for much memory fail."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


def learned(results: Results) -> tuple[set[str], dict[str, str]]:
    """Features with which OpenVINO is right, and an example for each of the others.

    As few features are distrusted as it takes for each wrong case to have one; and types with which
    OpenVINO refuses all cases with the same features, so that it is not asked in vain.
    """
    statuses: dict[frozenset[str], set[str]] = defaultdict(set)
    examples: dict[frozenset[str], str] = {}
    for features, status, found in results:
        statuses[frozenset(features)].add(status)
        if status != "right":
            examples.setdefault(frozenset(features), found)
    bad = {one for one, found in statuses.items() if found & {"wrong", "crashed"}}
    refused = {one for one, found in statuses.items() if found == {"refused"}}
    trusted = set().union(*(one for one in statuses if one not in bad | refused))
    wrong: dict[str, str] = {}
    for group, of_types in ((bad, False), (refused, True)):
        while blamed := [one for one in group if trusted >= one]:
            suspects = {f for one in blamed for f in one if "->" in f or not of_types}
            counts = Counter(f for one in statuses if trusted >= one for f in one)
            blames = Counter(f for one in blamed for f in one)
            worst = max(sorted(suspects), key=lambda f: (blames[f] / counts[f], blames[f]))
            wrong[worst] = next(examples[one] for one in statuses if one in group and worst in one)
            trusted.discard(worst)
    for one in (*bad, *refused):
        for feature in one - trusted:
            wrong.setdefault(feature, examples[one])
    return trusted, wrong


def measured() -> tuple[dict[str, Any], Counter[str]]:
    """What the file holds, and the number of cases by outcome."""
    counts: Counter[str] = Counter()
    results: dict[str, dict[int, Results]] = defaultdict(lambda: defaultdict(list))
    for case, status, features, detail in run_all(list(varied((*node_tests(), *own_cases())))):
        counts[status or "not comparable"] += 1
        if status:
            found = f"{case.name}: {status} {detail}"
            results[case.node.op_type][case.since].append((features, status, found))
    trusted: dict[str, dict[str, list[str]]] = {}
    wrong: dict[str, dict[str, str]] = {}
    for operator, versions in sorted(results.items()):
        known = {since: learned(versions[since]) for since in sorted(versions)}
        same: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for since, (good, _) in known.items():
            if good:
                same[tuple(sorted(good))].append(since)
        trusted[operator] = {" ".join(map(str, s)): list(good) for good, s in same.items()}
        # The newest version that has it wrong stands for the others.
        wrong[operator] = {f: test for _, bad in known.values() for f, test in sorted(bad.items())}
    return {
        "openvino": openvino_version(),
        "onnx": onnx.__version__,
        "trusted": {operator: versions for operator, versions in trusted.items() if versions},
        "wrong": {operator: tests for operator, tests in wrong.items() if tests},
    }, counts


@report_errors
def main(
    write: Annotated[bool, typer.Option(help="Write the file that the package reads.")] = False,
) -> None:
    """Measure all operators, and list what OpenVINO is not trusted with."""
    data, counts = measured()
    rows = [(o, f, test) for o, tests in data["wrong"].items() for f, test in tests.items()]
    table("Not trusted", ("operator", "node with", "for example"), rows)
    stdout.print(dict(counts))
    if write:
        FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    elif data != json.loads(FILE.read_text(encoding="utf-8")):
        stdout.print(f"differs from {FILE.name}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
