"""Schemas of operators."""

from __future__ import annotations

import pytest

from trt_native.schemas import schema_of


@pytest.mark.parametrize(
    ("name", "opset", "since"),
    [
        ("Relu", 13, 13),
        ("Relu", 17, 14),
        ("Gelu", 19, None),
        ("Gelu", 20, 20),
        ("Softmax", 12, 11),
        ("NoSuchOperator", 20, None),
    ],
)
def test_schemas_are_those_of_the_opset(name, opset, since):
    schema = schema_of(name, opset)
    assert (schema and schema.since_version) == since
