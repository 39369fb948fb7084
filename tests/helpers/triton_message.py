"""Triton's own ``ModelConfig`` message, without the gRPC client that the package belongs to."""

from __future__ import annotations

import importlib.util
from importlib import metadata

import pytest
from google.protobuf import text_format


def parse_model_config(text):
    """Parse a ``config.pbtxt`` as Triton does: unknown fields and wrong types are errors."""
    return text_format.Parse(text, _module().ModelConfig())


def _module():
    try:
        file = metadata.distribution("tritonclient").locate_file(
            "tritonclient/grpc/model_config_pb2.py"
        )
    except metadata.PackageNotFoundError:
        pytest.skip("tritonclient is not installed; it is in the extra 'dev'")
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
