from __future__ import annotations

import traceback

import pytest
import typer.main
import typer.testing
from typer.testing import CliRunner

from trt_native.cli.app import app
from trt_native.plans.manifest import Manifest


@pytest.fixture(autouse=True)
def _manifests_as_they_are_read(monkeypatch):
    """A reader need not refuse all that a writer must not write."""
    write = getattr(Manifest.to_json, "__wrapped__", Manifest.to_json)
    monkeypatch.setattr(Manifest, "to_json", write)


@pytest.fixture(scope="session")
def commands():
    return typer.main.get_command(app)


@pytest.fixture
def command(commands, monkeypatch):
    """Run a command in this process; it must end well, or with one line that says what is wrong."""
    monkeypatch.setenv("COLUMNS", "120")
    # The whole command tree would be made again for each call.
    monkeypatch.setattr(typer.testing, "_get_command", lambda _: commands)
    runner = CliRunner()

    def run(*arguments, codes=(0, 1)):
        result = runner.invoke(app, [str(word) for word in arguments])
        what = f"{arguments}: {result.exit_code}\n{result.stderr}"
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            what += "".join(traceback.format_exception(result.exception))
            pytest.fail(what)
        assert "Traceback" not in result.output, what
        assert result.exit_code in codes, what
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) <= 1, what
        if result.exit_code == 1 and not result.stdout:
            assert len(errors) == 1, what
            assert len(errors[0]) > len("error: "), what
        return result

    return run
