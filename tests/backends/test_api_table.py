"""Every name the package uses from TensorRT exists in every TensorRT that the code serves.

``tests/data/trt_api.json`` lists the class members of five releases, read off the installed
modules. The walk below follows TensorRT's objects through the source without running it: the module
(``trt``, ``self._trt``), what its classes and methods return, local names, loops and the helpers of
the backends. What it cannot follow it leaves alone, so it never guesses; the tests at the end show
that it does see what matters.

A module serves the releases of each backend that imports it at its top level: what only ``trt10``
imports is held against TensorRT 10 alone, what all of them share against all five. A name that some
release lacks may be used under ``hasattr(x, "name")`` or by ``getattr(x, "name", default)``.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trt_native
from trt_native import config

PACKAGE = Path(trt_native.__path__[0])
TABLE = json.loads((Path(__file__).parents[1] / "data" / "trt_api.json").read_text())
COLUMNS = tuple(TABLE["columns"])
MEMBERS = {name: frozenset(COLUMNS) for name in TABLE["present_everywhere"]}
MEMBERS |= {name: frozenset(columns) for name, columns in TABLE["present_only_in"].items()}
CLASSES_LISTED = {name.rpartition(".")[0] for name in MEMBERS} - {""}

BACKENDS = {
    "trt_native.backends.trt10": {"tensorrt-10"},
    "trt_native.backends.trt11": {"tensorrt-11"},
    "trt_native.backends.rtx": {"rtx-1.4", "rtx-1.6", "rtx-1.7"},
}

# Other names of DataType members, which the table does not list.
ALIASES = frozenset(
    {"bfloat16", "bool", "e8m0", "float16", "float32", "fp4", "fp8"}
    | {"int32", "int4", "int64", "int8", "uint8"}
)

# What a parameter of one of these names is, in a backend, where it is annotated Any or not at all.
PARAMETERS = {
    "boundary": "IAttentionInputLayer",
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "error": "ParserError",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "refitter": "Refitter",
    "runtime": "Runtime",
    "tensor": "ITensor",
}

RETURNS = {
    "Builder.build_serialized_network": "IHostMemory",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "IBuilderConfig.create_timing_cache": "ITimingCache",
    "IBuilderConfig.get_timing_cache": "ITimingCache",
    "ICudaEngine.create_engine_inspector": "EngineInspector",
    "ICudaEngine.create_execution_context": "IExecutionContext",
    "ICudaEngine.create_runtime_config": "IRuntimeConfig",
    "ICudaEngine.create_serialization_config": "ISerializationConfig",
    "ICudaEngine.serialize": "IHostMemory",
    "ICudaEngine.serialize_with_config": "IHostMemory",
    "ILayer.get_input": "ITensor",
    "ILayer.get_output": "ITensor",
    "INetworkDefinition.get_input": "ITensor",
    "INetworkDefinition.get_layer": "ILayer",
    "INetworkDefinition.get_output": "ITensor",
    "IRuntimeConfig.create_runtime_cache": "IRuntimeCache",
    "ITimingCache.serialize": "IHostMemory",
    "OnnxParser.get_error": "ParserError",
    "OnnxParserRefitter.get_error": "ParserError",
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
}


@dataclasses.dataclass(frozen=True)
class Module:
    """TensorRT itself."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A class of TensorRT, an enum, or something inside one, by its dotted path."""

    path: str


@dataclasses.dataclass(frozen=True)
class Object:
    """An instance of a class of TensorRT."""

    type: str


@dataclasses.dataclass(frozen=True)
class Many:
    """An iterable of one kind of thing."""

    of: Value


@dataclasses.dataclass(frozen=True)
class Text:
    """One of these strings."""

    options: frozenset[str]


Value = Module | Name | Object | Many | Text | None


@dataclasses.dataclass(frozen=True)
class Use:
    """A dotted name of TensorRT's that the code relies on."""

    path: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.path}"


class Walk(ast.NodeVisitor):
    """Find what one module uses of TensorRT.

    Args:
        file: The name to report.
        tree: Its syntax tree.
        helpers: Functions and methods by name, whose results are followed.
        in_backend: :data:`PARAMETERS` applies.
    """

    def __init__(
        self, file: str, tree: ast.Module, helpers: dict[str, ast.FunctionDef], in_backend: bool
    ) -> None:
        self.file = file
        self.helpers = helpers
        self.in_backend = in_backend
        self.uses: list[Use] = []
        self.scope: dict[str, Value] = {}
        self.members: dict[str, Value] = {}
        self.report_errors: list[frozenset[str]] = []
        self.returning: set[str] = set()
        for _ in range(2):  # methods may use what later ones assign to self
            self.uses.clear()
            self.visit(tree)

    # Names

    def use(self, owner: str, attribute: str, node: ast.AST) -> None:
        """Record ``owner.attribute`` if the table records whether it exists."""
        if attribute.startswith("__") or any(attribute in names for names in self.report_errors):
            return
        path = f"{owner}.{attribute}" if owner else attribute
        if not owner and attribute in ALIASES:
            return
        listed = owner in CLASSES_LISTED and attribute not in ("name", "value")
        if owner and not listed and path not in MEMBERS:
            return  # in a nested enum, or what every enum has
        self.uses.append(Use(path, self.file, getattr(node, "lineno", 0)))

    def attribute(self, value: Value, attribute: str, node: ast.AST) -> Value:
        match value:
            case Module():
                self.use("", attribute, node)
                return Name(attribute)
            case Name(path):
                self.use(path, attribute, node)
                return Name(f"{path}.{attribute}")
            case Object(type):
                self.use(type, attribute, node)
        return None

    # Expressions: what they are. Every visit of an expression comes through here.

    def value(self, node: ast.expr | None) -> Value:
        method = getattr(self, f"value_{type(node).__name__.lower()}", None)
        if method is not None:
            return method(node)
        if node is not None:
            self.generic_visit(node)
        return None

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.expr):
            self.value(node)
        else:
            super().visit(node)

    def value_name(self, node: ast.Name) -> Value:
        return Module() if node.id == "trt" else self.scope.get(node.id)

    def value_constant(self, node: ast.Constant) -> Value:
        return Text(frozenset({node.value})) if isinstance(node.value, str) else None

    def value_attribute(self, node: ast.Attribute) -> Value:
        if node.attr in ("_trt", "trt"):
            self.value(node.value)
            return Module()
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self.members.get(node.attr)
        return self.attribute(self.value(node.value), node.attr, node)

    def value_call(self, node: ast.Call) -> Value:
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            return self.reflection(node)
        owner: Value = None
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value)
            function = self.attribute(owner, node.func.attr, node.func)
        else:
            function = self.value(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.value(argument)
        if isinstance(function, Name):
            return Object(function.path) if "." not in function.path else None
        match node.func:
            case ast.Attribute(attr=method) if isinstance(owner, Object):
                result = RETURNS.get(f"{owner.type}.{method}")
                return Object(result) if result else None
            case ast.Attribute(value=ast.Name(id="self"), attr=method):
                return self.result_of(method)
            case ast.Attribute(attr="items" | "values"):
                return owner
            case ast.Name(id="list" | "tuple" | "sorted" | "reversed" | "set" | "iter"):
                return self.value(node.args[0]) if node.args else None
            case ast.Name(id=name):
                return self.result_of(name)
        return None

    def reflection(self, node: ast.Call) -> Value:
        """``getattr(x, name)``: every value the name may have is used."""
        owner, names = self.value(node.args[0]), self.value(node.args[1])
        if node.func.id == "hasattr" or len(node.args) > 2:  # type: ignore[attr-defined]
            return None
        if isinstance(owner, Name) and not isinstance(names, Text):
            names = named_by_our_enum(owner.path, node.args[1])
        results = [
            self.attribute(owner, name, node)
            for name in (sorted(names.options) if isinstance(names, Text) else ())
        ]
        return results[0] if len(results) == 1 else None

    def result_of(self, function: str) -> Value:
        """Return type of a helper, inferred from its parameters' names."""
        helper = self.helpers.get(function)
        if helper is None or function in self.returning:
            return None
        outer, uses, self.scope = self.scope, list(self.uses), self.parameters(helper, {})
        self.returning.add(function)
        results = [
            self.value(statement.value)
            for statement in ast.walk(helper)
            if isinstance(statement, ast.Return) and statement.value is not None
        ]
        self.returning.discard(function)
        self.scope, self.uses = outer, uses
        return results[0] if len(set(results)) == 1 else None

    def value_ifexp(self, node: ast.IfExp) -> Value:
        self.value(node.test)
        one, other = self.value(node.body), self.value(node.orelse)
        if isinstance(one, Text) and isinstance(other, Text):
            return Text(one.options | other.options)
        return one if one == other else one or other

    def value_namedexpr(self, node: ast.NamedExpr) -> Value:
        value = self.value(node.value)
        self.assign(node.target, value)
        return value

    def collection(self, items: list[ast.expr]) -> Value:
        values = [
            found.of if isinstance(found := self.value(item), Many) else found for item in items
        ]
        if values and all(isinstance(value, Text) for value in values):
            return Many(Text(frozenset().union(*(value.options for value in values))))  # type: ignore[union-attr]
        return Many(values[0]) if len(set(values)) == 1 and values[0] is not None else None

    def value_list(self, node: ast.List) -> Value:
        return self.collection(node.elts)

    def value_tuple(self, node: ast.Tuple) -> Value:
        return self.collection(node.elts)

    def value_set(self, node: ast.Set) -> Value:
        return self.collection(node.elts)

    def value_starred(self, node: ast.Starred) -> Value:
        return self.value(node.value)

    def value_dict(self, node: ast.Dict) -> Value:
        self.collection([key for key in node.keys if key is not None])
        return self.collection(node.values)

    def value_subscript(self, node: ast.Subscript) -> Value:
        value = self.value(node.value)
        self.value(node.slice)
        return value.of if isinstance(value, Many) else None

    def comprehension(self, node: ast.GeneratorExp | ast.ListComp | ast.SetComp) -> Value:
        outer, self.scope = self.scope, dict(self.scope)
        for part in node.generators:
            self.iterate(part.target, part.iter)
            for test in part.ifs:
                self.value(test)
        value = self.value(node.elt)
        self.scope = outer
        return Many(value) if value is not None else None

    value_generatorexp = value_listcomp = value_setcomp = comprehension

    def value_dictcomp(self, node: ast.DictComp) -> Value:
        outer, self.scope = self.scope, dict(self.scope)
        for part in node.generators:
            self.iterate(part.target, part.iter)
        self.value(node.key)
        value = self.value(node.value)
        self.scope = outer
        return Many(value) if value is not None else None

    def value_lambda(self, node: ast.Lambda) -> Value:
        outer, self.scope = self.scope, self.parameters(node, self.scope)
        self.value(node.body)
        self.scope = outer
        return None

    # Statements: what they make of names.

    def assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.scope[target.id] = value
        elif (
            isinstance(target, ast.Attribute)
            and isinstance(target.value, ast.Name)
            and target.value.id == "self"
        ):
            if value is not None:
                self.members[target.attr] = value
        else:
            self.value(target)

    def iterate(self, target: ast.expr, iterable: ast.expr) -> None:
        value = self.value(iterable)
        found = value.of if isinstance(value, Many) else None
        if isinstance(target, ast.Tuple):  # key and value of .items(): only the value is followed
            for element in target.elts:
                self.assign(element, None)
            self.assign(target.elts[-1], found)
        else:
            self.assign(target, found)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for one, value in zip(target.elts, node.value.elts, strict=True):
                    self.assign(one, self.value(value))
            elif isinstance(target, ast.Tuple):
                self.value(node.value)
                for one in target.elts:
                    self.assign(one, None)
            else:
                self.assign(target, self.value(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.assign(node.target, self.value(node.value))

    def visit_For(self, node: ast.For) -> None:
        self.iterate(node.target, node.iter)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_If(self, node: ast.If) -> None:
        self.value(node.test)
        tests = (call for call in ast.walk(node.test) if isinstance(call, ast.Call))
        names = frozenset(
            call.args[1].value
            for call in tests
            if isinstance(call.func, ast.Name) and call.func.id == "hasattr"
            if isinstance(call.args[1], ast.Constant)
        )
        self.report_errors.append(names)
        for statement in node.body:
            self.visit(statement)
        self.report_errors.pop()
        for statement in node.orelse:
            self.visit(statement)

    def parameters(
        self, node: ast.FunctionDef | ast.Lambda, scope: dict[str, Value]
    ) -> dict[str, Value]:
        scope = dict(scope)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            annotation = ast.unparse(argument.annotation) if argument.annotation else "Any"
            known = self.in_backend and annotation == "Any"
            kind = PARAMETERS.get(argument.arg) if known else None
            scope[argument.arg] = Object(kind) if kind else None
        return scope

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.scope = self.scope, self.parameters(node, self.scope)
        for statement in node.body:
            self.visit(statement)
        self.scope = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            self.value(base)
        outer, self.scope = self.scope, dict(self.scope)
        for statement in node.body:
            self.visit(statement)
        self.scope = outer


def named_by_our_enum(path: str, argument: ast.expr) -> Value:
    """``x.value.upper()``: the values of the enum of ours that is named like TensorRT's."""
    if ast.unparse(argument).endswith(".value.upper()"):
        for name, ours in vars(config).items():
            if isinstance(ours, type) and issubclass(ours, enum.Enum) and path.startswith(name):
                return Text(frozenset(str(member.value).upper() for member in ours))
    return None


@functools.cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return found


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules imported at the top level; what a function imports later serves that function."""
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)


def columns_served(trees: dict[str, ast.Module]) -> dict[str, frozenset[str]]:
    """The releases each module must do with: those of the backends that import it, or all."""
    served: dict[str, set[str]] = {name: set() for name in trees}
    for backend, columns in BACKENDS.items():
        waiting, seen = [backend], set()
        while waiting:
            name = waiting.pop()
            if name in trees and name not in seen:
                seen.add(name)
                served[name] |= columns
                waiting += imports(trees[name])
    return {name: frozenset(columns or COLUMNS) for name, columns in served.items()}


@functools.cache
def uses() -> dict[str, list[Use]]:
    trees = modules()
    helpers = {
        node.name: node
        for name, tree in trees.items()
        if name.startswith("trt_native.backends")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__")
    }
    return {
        name: Walk(
            name.replace(".", "/") + ".py",
            tree,
            helpers if name.startswith("trt_native.backends") else {},
            name.startswith("trt_native.backends"),
        ).uses
        for name, tree in trees.items()
    }


def missing_uses(used: list[Use], columns: frozenset[str]) -> list[str]:
    return [
        f"{use} is not in {', '.join(sorted(missing))}"
        for use in used
        if (missing := columns - MEMBERS.get(use.path, frozenset()))
    ]


def test_backends_use_only_names_that_their_releases_have() -> None:
    trees = modules()
    assert set(BACKENDS) <= set(trees)
    served = columns_served(trees)
    found = [use for name, used in uses().items() for use in missing_uses(used, served[name])]
    assert not found, "\n".join(["TensorRT has no such thing:", *found])


def test_each_backend_is_held_against_its_own_releases() -> None:
    served = columns_served(modules())
    for backend, columns in BACKENDS.items():
        assert served[backend] == columns


def test_the_walk_sees_the_calls_every_build_makes() -> None:
    seen = {use.path for used in uses().values() for use in used}
    assert seen >= {
        "Builder",
        "Builder.build_serialized_network",
        "Builder.create_network",
        "BuilderFlag.FP16",
        "BuilderFlag.REFIT_INDIVIDUAL",
        "BuilderFlag.STRIP_PLAN",
        "ComputeCapability",
        "IBuilderConfig.add_optimization_profile",
        "IBuilderConfig.set_flag",
        "ILayer.precision",
        "ILogger",
        "INetworkDefinition.get_output",
        "INetworkDefinition.mark_weights_refittable",
        "IOptimizationProfile.set_shape",
        "IProgressMonitor",
        "ITensor.dtype",
        "MemoryPoolType.WORKSPACE",
        "OnnxParser.parse_from_file",
        "ProfilingVerbosity.DETAILED",
        "Refitter.refit_cuda_engine_async",
        "Refitter.set_named_weights",
        "Runtime.deserialize_cuda_engine",
        "TensorLocation.DEVICE",
    }


TRT10, TRT11, RTX_1_4, RTX_1_7 = {"tensorrt-10"}, {"tensorrt-11"}, {"rtx-1.4"}, {"rtx-1.7"}


@pytest.mark.parametrize(
    ("source", "columns", "expected"),
    [
        ("trt.BuilderFlag.INT8", TRT11, ["BuilderFlag.INT8"]),
        ("trt.BuilderFlag.INT8", TRT10, []),
        ("trt.ComputeCapability", RTX_1_4 | TRT11, ["ComputeCapability"]),
        ("self._trt.BuilderFlag.TYPO", TRT10, ["BuilderFlag.TYPO"]),
        ("trt.NO_SUCH_THING", TRT10, ["NO_SUCH_THING"]),
        ("trt.ILogger.Severity.ERROR, trt.float16, trt.DataType.HALF.name", set(COLUMNS), []),
        ("flags = self._trt.BuilderFlag; flags.FP16", RTX_1_7, ["BuilderFlag.FP16"]),
        ("t, x = trt, y; t.QuantizationFlag", TRT11, ["QuantizationFlag"]),
        ("class C(trt.IInt8EntropyCalibrator2): ...", TRT11, ["IInt8EntropyCalibrator2"]),
        ("trt.Builder(x).platform_has_tf32", TRT11, ["Builder.platform_has_tf32"]),
        # objects, by the names of parameters and by what methods return
        ("def f(layer: Any): layer.precision = x", TRT11, ["ILayer.precision"]),
        ("def f(layer: Ours): layer.precision = x", TRT11, []),
        (
            "def f(builder): builder.create_network(0).get_input(0).dynamic_range = x",
            RTX_1_4,
            ["ITensor.dynamic_range"],
        ),
        (
            "def f(network):\n for t in (network.get_input(i) for i in n): t.dynamic_range",
            RTX_1_4,
            ["ITensor.dynamic_range"],
        ),
        (
            "def layers(network): return (network.get_layer(i) for i in n)\n"
            "def f(network):\n for x in layers(network): x.precision",
            TRT11,
            ["ILayer.precision"],
        ),
        # names given as text
        ("getattr(trt.BuilderFlag, 'INT8')", TRT11, ["BuilderFlag.INT8"]),
        (
            "FLAGS = {'a': 'TF32', 'b': 'INT8'}\n"
            "for option, flag in FLAGS.items(): getattr(trt.BuilderFlag, flag)",
            TRT11,
            ["BuilderFlag.INT8"],
        ),
        # asked for beforehand
        ("getattr(trt.BuilderFlag, 'INT8', None)", TRT11, []),
        ("if hasattr(trt, 'QuantizationFlag'): trt.QuantizationFlag", TRT11, []),
    ],
)
def test_the_walk(source: str, columns: set[str], expected: list[str]) -> None:
    tree = ast.parse(source)
    helpers = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    used = Walk("source", tree, helpers, in_backend=True).uses
    found = [use.path for use in used if missing_uses([use], frozenset(columns))]
    assert found == expected


@pytest.mark.backend
@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_an_installed_release_has_every_used_attribute(package: str) -> None:
    """The table's columns against a real module, for the names that matter here."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    trees = modules()
    served, used = columns_served(trees), uses()
    question = {
        column: sorted({use.path for name in trees if column in served[name] for use in used[name]})
        for column in COLUMNS
    }
    # In a process of its own, for two TensorRT libraries may not share one.
    script = f"""
import json, operator, sys, {package} as trt
question, columns = json.load(sys.stdin)
column = {{version: name for name, version in columns.items()}}.get(trt.__version__)
def lacks(path):
    try: operator.attrgetter(path)(trt)
    except AttributeError: return True
print(json.dumps([column, [path for path in question.get(column, ()) if lacks(path)]]))
"""
    answer = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([question, TABLE["columns"]]),
        capture_output=True,
        text=True,
        check=True,
    )
    column, missing = json.loads(answer.stdout)
    if column is None:
        pytest.skip(f"the installed {package} is not one of the releases in the table")
    assert not missing


NATIVE_OBJECTS = {  # how the modules of the runtime call TensorRT's engine, and its contexts
    ("runtime/engine.py", r"\bnative\.(\w+)"): "ICudaEngine",
    ("runtime/engine.py", r"\bengine\.(get_\w+|num_\w+)"): "ICudaEngine",
    ("runtime/execution.py", r"self\._context\.(\w+)"): "IExecutionContext",
}


def natively_used() -> set[str]:
    return {
        f"{kind}.{member}"
        for (file, pattern), kind in NATIVE_OBJECTS.items()
        for member in re.findall(pattern, (PACKAGE / file).read_text())
    }


def test_sessions_use_only_members_that_every_release_has() -> None:
    used = natively_used()
    assert used >= {
        "ICudaEngine.get_device_memory_size_for_profile_v2",
        "ICudaEngine.get_weight_streaming_automatic_budget",
        "ICudaEngine.weight_streaming_budget_v2",
        "IExecutionContext.set_device_memory",
        "IExecutionContext.update_device_memory_size_for_shapes",
    }
    lacking = {path: sorted(set(COLUMNS) - MEMBERS.get(path, frozenset())) for path in used}
    assert not {path: columns for path, columns in lacking.items() if columns}


@pytest.mark.backend
def test_an_installed_release_has_what_sessions_use(backend) -> None:
    lacking = []
    for path in natively_used():
        kind, member = path.split(".")
        if not hasattr(getattr(backend._trt, kind), member):
            lacking.append(path)
    assert not lacking
