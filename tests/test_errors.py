"""Exceptions: their text, their options, and no command-line flags in the library."""

import ast
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import trt_native
from trt_native import errors
from trt_native.cli.console import report_errors

PACKAGE = Path(trt_native.__file__).parent
OTHER_TOOLS = {
    "deploy/__init__.py": {
        "--backend-config=tensorrt,version-compatible=true",
        "--leanDLLPath=",
        "--loadEngine=",
        "--noDataTransfers",
        "--shapes=",
        "--staticPlugins=",
        "--useCudaGraph",
        "--useProfile=",
        "--useSpinWait",
        "--versionCompatible",
    },
    "debug/checks.py": {
        "--against",
        "--json",
        "--max-relative-error",
        "--no-corners",
        "--random",
        "--seeds",
    },
}
"""Flags of trtexec, and of the commands that a file starts, in the words that it gives them."""


def flags_in(path):
    tree = ast.parse(path.read_text())
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documentation
        and re.search(r"(?<![\w-])--[a-z]", node.value)
    ]


def test_the_library_knows_no_command_line_flags():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        own = OTHER_TOOLS.get(name, set())
        flags = [text for text in flags_in(path) if text not in own]
        if flags and not name.startswith("cli/"):
            found[name] = flags
    assert found == {}


def test_text_lists_problems_before_details():
    error = errors.SpecError("bad", ["log"], options=["a"], problems=["one", "two"])
    assert str(error) == "bad\n  - one\n  - two\n  log"
    assert (error.options, error.problems, error.details) == (("a",), ("one", "two"), ("log",))
    assert errors.CudaError("bad", code=2, options=("a",)).options == ("a",)


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (("memory_bytes",), " (--memory)"),
        (("memory_bytes", "unknown", "tf32"), " (--memory, --tf32/--no-tf32)"),
        (("ignore_manifest",), " (--no-manifest)"),
        (("model", "unknown"), ""),
        ((), ""),
    ],
)
def test_console_adds_the_flags_of_the_running_command(options, flags):
    app = typer.Typer()

    @app.command()
    @report_errors
    def fail(
        model: str,
        memory_bytes: str = typer.Option("1", "-m", "--memory"),
        tf32: bool | None = typer.Option(None, "--tf32/--no-tf32"),
        ignore_manifest: bool = typer.Option(False, "--no-manifest/--manifest"),
    ) -> None:
        assert model, (memory_bytes, tf32, ignore_manifest)
        raise errors.SpecError("bad", ["log"], options=options, problems=["one"])

    result = CliRunner().invoke(app, ["m"])
    assert result.exit_code == 1
    assert result.stderr == f"error: bad{flags}\n  - one\n  log\n"


def test_a_line_end_in_a_name_ends_no_line_of_the_list():
    error = errors.PlanError("bad\nname", problems=["one\r\nmore", "two"])
    assert str(error) == "bad\\nname\n  - one\\r\\nmore\n  - two"


@pytest.mark.parametrize(
    ("control", "shown"),
    [
        ("\x1b", r"\x1b"),
        ("\x9b", r"\x9b"),
        ("\x00", r"\x00"),
        ("\u2028", r"\u2028"),
        ("\u202e", r"\u202e"),
        ("\udcff", r"\udcff"),
        ("\t", "\t"),
        ("\u00e9", "\u00e9"),
    ],
)
def test_controls_in_a_name_are_escaped(control, shown):
    error = errors.ModelError(f"a{control}b", problems=[f"c{control}d"])
    assert str(error) == f"a{shown}b\n  - c{shown}d"


def test_a_restated_error_keeps_all_but_its_message_and_class():
    error = errors.CudaError("lost", ["log"], options=["a"], problems=["p"])
    again = error.restated("plan: lost", errors.PlanError, details=["more"], options=["b"])
    assert type(again) is errors.PlanError
    assert str(again) == "plan: lost\n  - p\n  log\n  more"
    assert again.options == ("a", "b")


class TestLongNames:
    NAME = "a" * 35_000 + "b" * 35_000

    @pytest.mark.parametrize("length", [0, 1, 500])
    def test_what_is_short_stays(self, length):
        assert errors.shortened("x" * length) == "x" * length

    def test_words_lose_their_middle(self):
        text = errors.shortened(f"node '{self.NAME}' reads '/a/path'")
        assert len(text) < 550
        assert text.startswith("node 'aaaa")
        assert "a...(69," in text
        assert " characters)...b" in text
        assert text.endswith("bbbb' reads '/a/path'")

    def test_lines_lose_their_middle(self):
        text = errors.shortened("ab " * 30_000)
        assert len(text) <= 8000
        assert text.startswith("ab ab")
        assert text.endswith("ab ab ")
        assert len(errors.shortened("ab " * 30_000, 100)) <= 100

    def test_errors_have_them_whole(self):
        error = errors.SpecError(self.NAME, [self.NAME], problems=[self.NAME])
        assert len(str(error)) < 2000
        assert (error.message, error.details, error.problems) == (self.NAME, *[(self.NAME,)] * 2)

    def test_close_names_are_not_looked_for(self):
        # 70,000 letters of 150 kinds: a comparison would take hours.
        name = "".join(chr(0x4E00 + 37 * i % 151) for i in range(70_000))
        assert errors.close_names(name, [name[1:], "b"]) == []
        assert errors.close_names("stpe", [name, "step"]) == ["step"]
