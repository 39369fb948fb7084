"""The files for hosting and releases agree with the package."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from helpers import ROOT
from ruamel.yaml import YAML

from trt_native import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def read(path):
    return YAML(typ="safe").load(path)


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def test_every_python_that_the_package_takes_is_tested():
    matrix = read(ROOT / ".github/workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first = int(project["requires-python"].removeprefix(">=3."))
    assert matrix["python"] == [f"3.{minor}" for minor in range(first, 15)]


@named(WORKFLOWS)
def test_a_workflow_has_limits_and_calls_what_there_is(path):
    workflow = read(path)
    assert workflow["permissions"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))
            for script in re.findall(r"\bscripts/[\w./-]+", step.get("run", "")):
                assert (ROOT / script).is_file(), script


def test_only_a_labelled_request_runs_on_the_machine_with_a_gpu():
    workflow = read(ROOT / ".github/workflows/gpu.yml")
    assert set(workflow["on"]) == {"workflow_dispatch", "pull_request"}
    assert workflow["on"]["pull_request"] == {"types": ["labeled"]}
    assert workflow["jobs"]["tests"]["runs-on"][-1] == "gpu"
    assert "github.event.label.name == 'gpu'" in workflow["jobs"]["tests"]["if"]


@named(FORMS)
def test_an_issue_form_asks(path):
    form = read(path)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names)
    assert all(field["attributes"]["label"] for field in fields)
    assert fields[0]["validations"] == {"required": True}


def test_the_citation_is_of_this_version():
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == __version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_changelog_has_a_section_for_each_version_newest_first():
    titles = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert titles[0] == "[Unreleased]" or titles[0].startswith(f"[{__version__}] - ")
    versions = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d", t) for t in titles]
    numbers = [tuple(map(int, v.groups())) for v in versions[titles[0] == "[Unreleased]" :]]
    assert numbers == sorted(set(numbers), reverse=True)


class TestReleaseNotes:
    @pytest.fixture
    def notes(self, monkeypatch):
        monkeypatch.syspath_prepend(str(ROOT / "scripts"))
        from release_notes import notes

        yield notes
        del sys.modules["release_notes"]

    TEXT = (
        "# Changelog\n\n## [Unreleased]\n\n- c\n\n## [1.10.0] - 2026-02-01\n\n### Added\n\n- b\n\n"
        "## [1.1.0] - 2026-01-01\n\n- a\n\n## [1.0.0] - 2025-01-01\n"
    )

    @pytest.mark.parametrize(
        ("version", "text"), [("1.10.0", "### Added\n\n- b\n"), ("1.1.0", "- a\n")]
    )
    def test_they_are_the_section(self, notes, version, text):
        assert notes(f"v{version}", version, self.TEXT) == text

    @pytest.mark.parametrize(
        ("tag", "version", "message"),
        [
            ("v1.1.1", "1.1.0", "the tag is v1.1.1, but the version of the package is 1.1.0"),
            ("1.1.0", "1.1.0", "the tag is 1.1.0, but"),
            ("v1.2.0", "1.2.0", "has no section '## [1.2.0] - YYYY-MM-DD'"),
            ("v1.0.0", "1.0.0", "the section of 1.0.0 in CHANGELOG.md is empty"),
            ("v1x1.0", "1x1.0", "has no section"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, notes, tag, version, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            notes(tag, version, self.TEXT)

    def test_the_program_refuses_another_tag_by_one_line(self):
        command = [sys.executable, "scripts/release_notes.py", "v0.0.0"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr == (
            f"error: the tag is v0.0.0, but the version of the package is {__version__}\n"
        )
