from __future__ import annotations

import json
from importlib import resources

import jsonschema
import pytest
from helpers.header_plans import header_plan


@pytest.fixture
def plan():
    return header_plan()


@pytest.fixture(scope="module")
def schema():
    text = (resources.files("trt_native") / "include" / "plan_manifest.schema.json").read_text()
    return json.loads(text)


@pytest.fixture(scope="module")
def validator(schema):
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema, format_checker=checker)
