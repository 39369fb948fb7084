"""The documentation says what is there: names, options, errors and links; its commands run."""

from __future__ import annotations

import ast
import importlib
import itertools
import pkgutil
import re
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT
from helpers.program import trt_native as program
from markdown_it import MarkdownIt

import trt_native
from trt_native import errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SITE = ROOT / "scripts/docs_site"
WRITTEN = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    ROOT / "calib_data/README.md",
]
MADE = ("cli.md", "api/", "findings.md", "changelog.md", "contributing.md", "security.md")
MADE += ("calibration_data.md", "examples/")


def pages(paths=WRITTEN):
    return pytest.mark.parametrize("path", paths, ids=lambda p: str(p.relative_to(ROOT)))


@pytest.fixture(scope="module")
def site():
    """The modules that make pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SITE))
        names = ("api_reference", "cli_reference", "findings_index")
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            del sys.modules[name]


@pytest.fixture(scope="module")
def options(site):
    """The options of each command, by what is typed after ``trt-native``."""
    return {
        words: {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"-h"}
        for words, command in site["cli_reference"].commands().items()
    }


# The Python API


INTERNAL = {"trt_native.cli", "trt_native.reference"}
"""Packages that export names to the rest of this one alone."""


def public_packages():
    """Packages with names to export."""
    found = [trt_native, *pkgutil.walk_packages(trt_native.__path__, "trt_native.")]
    for one in found[1:]:
        if one.ispkg and one.name not in INTERNAL:
            package = importlib.import_module(one.name)
            if getattr(package, "__all__", ()):
                yield one.name
    yield "trt_native"


def test_every_package_with_exports_is_in_the_api_reference(site):
    assert set(public_packages()) <= set(site["api_reference"].PUBLIC_MODULES)


def test_the_pages_have_every_public_name_and_no_other(site):
    made = site["api_reference"].api_pages()
    for module in site["api_reference"].PUBLIC_MODULES:
        text = made[f"api/{module}.md"]
        described = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", text, re.MULTILINE)
        linked = re.findall(r"\]\[trt_native\.(\w+)\]", text)
        public = [name for name in importlib.import_module(module).__all__ if name[0] != "_"]
        assert sorted(described + linked) == sorted(public), module
        assert set(linked) <= set(trt_native.__all__)


def test_a_name_of_the_root_is_the_same_thing_in_its_module(site):
    pytest.importorskip("torch")
    for module in site["api_reference"].PUBLIC_MODULES:
        for name in set(importlib.import_module(module).__all__) & set(trt_native.__all__):
            assert getattr(importlib.import_module(module), name) is getattr(trt_native, name)


@pages()
def test_the_pages_import_public_names_only(path, site):
    for module, names in re.findall(r"from (trt_native[\w.]*) import ([\w, ]+)", path.read_text()):
        assert module in site["api_reference"].PUBLIC_MODULES, module
        exported = importlib.import_module(module).__all__
        assert set(map(str.strip, names.split(","))) <= set(exported)


# The command line


def test_the_reference_has_what_help_prints(site):
    text = site["cli_reference"].cli_reference()
    sections = dict(
        re.findall(r"^#+ `trt-native ([\w -]+)` .*?$(.*?)(?=^#)", text + "\n#", re.M | re.S)
    )
    assert len(sections) > 20
    for words, section in sections.items():
        printed = program(*words.split(), "--help", width=400).stdout
        flags = set(re.findall(r"(?<![\w/'-])--[a-z][a-z0-9-]+", printed.split("Usage:")[1]))
        described = set(re.findall(r"`(--[a-z0-9-]+)", section))
        assert flags - {"--help"} <= described | set(re.findall(r"--[a-z0-9-]+", section)), words


def commands_in(text):
    """The ``trt-native`` commands of the console blocks of a page, as words."""
    for block in re.findall(r"^ *```console\n(.*?)^ *```", text, re.M | re.S):
        joined = re.sub(r"\\\n\s*", "", block)
        for line in re.findall(r"^ *\$ (?:\S+/)?trt-native (.*)$", joined, re.M):
            yield shlex.split(line, comments=True)


@pages()
def test_the_commands_of_a_page_have_these_options(path, options):
    for words in commands_in(path.read_text()):
        names = (" ".join(words[:2]), " ".join([*words[:1], "module"]), *words[:1])
        command = next((name for name in names if name in options), "")
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        unknown = given - options[command] - options[""] - {"-vv"}
        assert not unknown, (path.name, words)


def test_the_page_of_options_names_ours_and_no_others(options):
    known = set().union(*options.values())
    rows = [r for r in (ROOT / "docs/options.md").read_text().splitlines() if r.startswith("| ")]
    ours = [
        flag for row in rows for flag in re.findall(r"(?<![\w-])--[a-z0-9-]+", row.split(" | ")[-1])
    ]
    assert len(ours) > 40
    assert set(ours) <= known | {"--help"}


# Look-up pages


def source_texts():
    """The texts in the package's code, with … for what is filled in."""
    for file in sorted((ROOT / "trt_native").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values)


def test_the_errors_of_the_troubleshooting_page_exist():
    text = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r"^### `(.*?)`", text, re.MULTILINE)
    assert len(quoted) > 25
    source = "\n".join(source_texts())
    for error in quoted:
        for piece in filter(None, (part.strip(" .") for part in error.split("…"))):
            assert piece in source, error


def test_the_environment_variables_are_those_that_the_code_reads():
    pattern = r"\bTRT_NATIVE_[A-Z_]+\b"
    text = "".join(file.read_text() for file in (ROOT / "trt_native").rglob("*.py"))
    page = (ROOT / "docs/environment.md").read_text()
    assert set(re.findall(pattern, text)) == set(re.findall(pattern, page))


def test_the_kinds_of_errors_are_the_classes():
    page = (ROOT / "docs/exit_codes.md").read_text()
    kinds = set(re.findall(r"^\| `(\w+Error)` \|", page, re.MULTILINE))
    classes = {name for name in errors.__all__ if name.endswith("Error")}
    assert kinds == classes | {"UsageError"}


def test_the_layers_are_those_of_the_import_contract():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    documented = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    contract = [set(layer.split(" | ")) for layer in layers]
    assert documented == [layer for layer in contract if not all(n[0] == "_" for n in layer)]


def test_every_finding_is_in_the_index(site):
    scripts = sorted((ROOT / "findings").glob("*.sh"))
    headers = site["findings_index"].headers(ROOT / "findings")
    assert list(headers) == [script.name for script in scripts]
    index = site["findings_index"].findings_index(ROOT / "findings")
    for name, text in headers.items():
        assert re.match(r"[\w-]+ [\d.]+( \([^)]*\))?: \S.*\.$", text), name
        assert index.count(f"`{name}`") == 1


# Links and commands


def anchors(path):
    """The places in a page that links may name, as hosts of repositories call them."""
    tokens = MarkdownIt().parse(path.read_text())
    titles = [
        after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"
    ]
    for title in titles:
        yield re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower()))


@pages()
def test_the_links_of_a_page_lead_somewhere(path):
    inline = [token for token in MarkdownIt().parse(path.read_text()) if token.type == "inline"]
    links = [
        child.attrGet("href")
        for token in inline
        for child in token.children
        if child.type == "link_open"
    ]
    for link in links:
        file, _, anchor = link.partition("#")
        if "://" in file or file.startswith("mailto:"):
            continue
        target = (path.parent / file).resolve() if file else path
        if path.parent == ROOT / "docs" and file.startswith(MADE):
            continue  # made for the site, which checks them
        assert target.exists(), link
        assert not anchor or anchor in set(anchors(target)), link


@pytest.mark.backend
def test_the_first_five_minutes(tmp_path):
    """Export, look, build, and the error of the page, as it is printed there."""
    pytest.importorskip("torch")
    text = (ROOT / "docs/index.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "net.py").write_text(code[0])
    subprocess.run([sys.executable, "net.py"], cwd=tmp_path, check=True, capture_output=True)
    ran = [words for words in commands_in(text) if words[0] in ("inspect", "build")]
    assert len(ran) == 3
    looked, built, refused = (
        program(
            *words, *(() if words[0] == "inspect" else ("--backend", "rtx")), cwd=tmp_path, width=80
        )
        for words in ran
    )
    assert looked.stdout.splitlines()[-1] == "trt-native build net.onnx --dim batch=MIN:OPT:MAX"
    assert built.returncode == 0
    shown = text.split("$ trt-native build net.onnx --dim batch=1:8:32\n")[1].split("```")[0]
    for row in ("precision", "autocast"):
        line = next(line for line in shown.splitlines() if line.startswith(f"│ {row}"))
        assert line in built.stdout
    assert (tmp_path / "net.plan").is_file()
    error = text.split("$ trt-native build net.onnx --dim batc=2\n")[1].split("```")[0]
    assert refused.returncode == 1
    assert error in refused.stderr
