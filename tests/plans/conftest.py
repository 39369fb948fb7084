from __future__ import annotations

import json
import subprocess
from importlib import resources

import jsonschema
import pytest
from helpers.header_plans import header_plan


@pytest.fixture
def plan():
    return header_plan()


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)  # noqa: S607


@pytest.fixture(scope="module")
def schema():
    text = (resources.files("trt_native") / "include" / "plan_manifest.schema.json").read_text()
    return json.loads(text)


@pytest.fixture(scope="module")
def validator(schema):
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema, format_checker=checker)
