from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest

from trt_native.cuda import require_gpu
from trt_native.errors import CudaError
from trt_native.plan import Manifest


def pytest_collection_modifyitems(items):
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    try:
        require_gpu()
    except CudaError as error:
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=error.message))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="session")
def _every_manifest_is_valid():
    """Checks each manifest that is written in this process against the JSON Schema."""
    try:
        import jsonschema
    except ImportError:  # test_plan_manifest.py fails then; GPU tests may go without
        yield
        return
    text = (resources.files("trt_native") / "include" / "plan_manifest.schema.json").read_text()
    validator = jsonschema.Draft202012Validator(json.loads(text))
    write = Manifest.to_json

    def to_json(manifest):
        data = write(manifest)
        validator.validate(json.loads(json.dumps(data)))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "to_json", to_json)
        yield
