"""Help pages and tables in narrow terminals, in files and without colours."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from typer.main import get_command

from trt_native.cli import console
from trt_native.cli.app import app
from trt_native.cli.console import table
from trt_native.cli.help_pages import PLACEHOLDERS, names_of, paragraphs

ESCAPE = "\x1b"
ORDER = [
    *(
        "export",
        "build",
        "build-all",
        "build-latentsync",
        "convert",
        "quantize",
        "calibrate",
        "inspect",
        "run",
    ),
    *("verify", "bench", "diff", "debug", "refit", "deploy", "cache", "doctor"),
]

_PRINT_PAGES = """
import io, json, sys
from trt_native.cli import main
pages = {}
for words in json.loads(sys.argv[1]):
    sys.stdout = io.TextIOWrapper(io.BytesIO(), "utf-8")
    try:
        main([*words.split(), "--help"])
    except SystemExit as end:
        assert not end.code, words
    sys.stdout.flush()
    pages[words] = sys.stdout.buffer.getvalue().decode()
sys.__stdout__.write(json.dumps(pages))
"""


def walk(command, words=""):
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{words} {name}".strip())


COMMANDS = dict(walk(get_command(app)))


def pages(**environment):
    """The page of every command, written to a pipe by a process of its own."""
    import json
    import os

    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, "-c", _PRINT_PAGES, json.dumps(list(COMMANDS))],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("width", "environment"),
    [
        (80, {}),
        (80, {"COLUMNS": "80"}),
        (80, {"COLUMNS": "80", "NO_COLOR": "1"}),
        (80, {"COLUMNS": "80", "FORCE_COLOR": "1"}),
        (60, {"COLUMNS": "60"}),
        (60, {"COLUMNS": "60", "NO_COLOR": "1"}),
    ],
    ids=str,
)
def test_names_are_whole_in_every_help_page(width, environment):
    for words, page in pages(**environment).items():
        assert (ESCAPE in page) == ("FORCE_COLOR" in environment)
        lines = re.sub(ESCAPE + r"\[[0-9;]*m", "", page).splitlines()
        assert max(map(len, lines)) <= width, (words, max(lines, key=len))
        assert "…" not in page
        command = COMMANDS[words]
        for parameter in command.params:
            for name in names_of(parameter):
                found = rf"^ +(.*, )?{re.escape(name)}(,|  |$)"
                assert any(re.search(found, line) for line in lines), (words, name)
        for name in getattr(command, "commands", {}):
            hidden = command.commands[name].hidden
            assert any(re.match(rf"  {name}( |$)", line) for line in lines) != hidden, name
        said = " ".join(" ".join(lines).split())
        for parameter in command.params:
            help_text = re.sub(r"\\?\[default:.*", "", parameter.help or "")
            assert " ".join(help_text.split()) in said, (words, parameter.name)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_help_text_has_an_example_that_the_command_can_read(words):
    import shlex

    examples = [p for p in paragraphs(COMMANDS[words]) if p.startswith("$ ")]
    found = []
    for line in "\n".join(examples).replace("\\\n", " ").splitlines():
        assert line.startswith("$ trt-native ")
        given = shlex.split(line)[2:]
        at, command = "", COMMANDS[""]
        while given and given[0] in getattr(command, "commands", {}):
            at = f"{at} {given.pop(0)}".strip()
            command = COMMANDS[at]
        command.make_context(at, given)
        found.append(at)
    assert any(at.startswith(words) for at in found)


def test_commands_are_listed_in_the_order_of_work():
    panels = get_command(app).panels
    assert [name for names in panels.values() for name in names] == ORDER
    assert {n for n, command in get_command(app).commands.items() if not command.hidden} == {*ORDER}


def test_an_option_has_the_same_name_for_its_value_in_every_command():
    used = set()
    for command in COMMANDS.values():
        for parameter in command.params:
            takes_value = parameter.param_type_name == "option" and not parameter.is_flag
            if takes_value and not parameter.count:
                *_, last = names_of(parameter)
                flag, _, value = last.partition(" ")
                used |= {flag} if value == PLACEHOLDERS.get(flag) else set()
    assert used == set(PLACEHOLDERS)


def test_the_same_option_has_the_same_short_form():
    forms = {}
    for command in COMMANDS.values():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                forms.setdefault(max(parameter.opts, key=len), set()).add(tuple(parameter.opts))
    assert [flag for flag, found in forms.items() if len(found) > 1] == ["--calibration-data"]


NAME = "/down_blocks.0/attentions.1/transformer_blocks.0/attn1/to_out.0/MatMul_output_0"
TABLES = {
    "build": ("", ""),
    "tensors": ("", "name", "dtype", "min", "opt", "max"),
    "layers": ("name", "type", "precision", "inputs", "outputs", "tactic"),
    "bench": ("layer", "median ms", "mean ms", "share"),
    "diff": ("", "", "/plans/" + "a" * 40 + "/old.plan", "/plans/" + "b" * 40 + "/new.plan"),
}


@pytest.mark.parametrize("columns", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("name", ["short", "some-longer.name_of/3", NAME])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_word_is_broken_in_a_table(columns, name, width, monkeypatch, capsys):
    monkeypatch.setattr(console.stdout, "width", width)
    rows = [[f"{name}{i}{j}" for j in range(len(columns))] for i in range(3)]
    rows[1][1] = (f"{name}, and twelve words more that a cell of this table has", "2nd")
    table(f"{name} of the title", columns, rows)
    printed = capsys.readouterr().out
    words = set(re.split(r"[\s│┃]+", printed.replace(":", " ")))
    flat = [part for row in rows for c in row for part in (c if isinstance(c, tuple) else (c,))]
    expected = {word for text in [*flat, *columns, name] for word in text.split()}
    assert expected <= words
    for line in printed.splitlines()[1:]:
        assert len(line) <= width or len(line.split()) <= 3
        assert not (len(line) > width and "│" in line)


def test_a_table_is_as_wide_as_its_words_where_that_fits(monkeypatch, capsys):
    monkeypatch.setattr(console.stdout, "width", 21)
    table("", ("name", "text"), [("ab/cd", "one two three"), ("x", "y")])
    assert capsys.readouterr().out.splitlines()[3:6] == [
        "│ ab/cd │ one two   │",
        "│       │ three     │",
        "│ x     │ y         │",
    ]


def test_a_table_that_does_not_fit_is_a_list(monkeypatch, capsys):
    monkeypatch.setattr(console.stdout, "width", 20)
    table("T", ("name", "kind", ""), [("a/long/name/of/a/node", "Conv and Relu, fused", "z")])
    assert capsys.readouterr().out.splitlines() == [
        "T",
        "name: a/long/name/of/a/node",
        "  kind: Conv and",
        "    Relu, fused",
        "  z",
    ]
