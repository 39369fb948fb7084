"""Things that the package's own code never does, for any file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import trt_native

ROOT = Path(trt_native.__file__).parent
SOURCES = sorted({*ROOT.rglob("*.py"), *(ROOT.parent / "scripts").rglob("*.py")})
PICKLES = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle"}
HARMLESS = {"from pickle import UnpicklingError"}  # what torch.load raises
SHELLS = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "commands.getoutput", "pty.spawn",
}  # fmt: skip
# The safe way to say each of these; None: there is none.
RULES = {
    "eval": None,
    "exec": None,
    "__import__": None,
    "compile": None,
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "read_array": ("allow_pickle", False),
    "write_array": ("allow_pickle", False),
    "YAML": ("typ", "safe"),
}


def dotted(node):
    """``np.lib.format.read_array`` of a call; empty for what is no plain name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value) or '?'}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(tree):
    """Every forbidden import or call in a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and ast.unparse(node) in HARMLESS:
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            if {module.partition(".")[0] for module in modules} & PICKLES:
                yield node.lineno, f"import of {modules}"
        elif isinstance(node, ast.Call):
            yield from _call_offences(node)


def _call_offences(node):
    name = dotted(node.func)
    given = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
    if name in SHELLS or given.get("shell", False):
        yield node.lineno, f"{name} starts a shell"
    for rule, wanted in RULES.items():
        # A method of another object may be called "compile", as re.compile is.
        if name == rule or ("." not in rule and name.endswith(f".{rule}") and wanted):
            if wanted is None:
                yield node.lineno, f"{name} runs text as code"
            elif given.get(wanted[0]) is not wanted[1] and given.get(wanted[0]) != wanted[1]:
                yield node.lineno, f"{name} without {wanted[0]}={wanted[1]}"
    if name.startswith("yaml.") and name.endswith("load"):
        yield node.lineno, f"{name} makes objects of any kind"


def test_there_is_something_to_look_at():
    assert {"plan.py", "isolated.py", "run.py"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_nothing_in_a_file_becomes_code(path):
    found = list(offences(ast.parse(path.read_text(encoding="utf-8"))))
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import os, marshal.x",
        "eval('1')",
        "exec(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.lib.format.read_array(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "subprocess.run('ls', shell=True)",
        "subprocess.run(words, shell=flag)",
        "os.system(name)",
        "yaml.load(text)",
        "YAML().load(text)",
        "YAML(typ='unsafe')",
    ],
)
def test_each_offence_is_found(text):
    assert list(offences(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "re.compile('x')",
        "model.eval()",
        "np.load(path, allow_pickle=False)",
        "torch.load(path, weights_only=True)",
        "YAML(typ='safe', pure=True).load(text)",
        "subprocess.run(['ls'])",
        "json.load(file)",
    ],
)
def test_what_is_safe_is_let_be(text):
    assert not list(offences(ast.parse(text)))
