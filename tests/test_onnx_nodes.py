"""How many of ONNX's own tests of single nodes TensorRT's parser takes after the passes.

``scripts/onnx_nodes.py`` builds them all, and runs them on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from helpers.child_server import ChildServer
from onnx.backend.test.case import node

from trt_native.backends.registry import load_backend
from trt_native.errors import UnsupportedError

SERVER = Path(__file__).parent / "helpers" / "node_test_server.py"
# Every sixth file: all take 10 s. A number that has grown is to be raised here.
MODULES = sorted(path.stem for path in Path(node.__file__).parent.glob("[a-z]*.py"))[::6]
VERSIONS = ("1.6.1.120", "1.23.2")  # of TensorRT-RTX and ONNX, with which they were counted
PARSED = 125


@pytest.mark.backend
def test_no_fewer_nodes_are_parsed_than_before():
    try:
        backend = load_backend("rtx")
    except UnsupportedError as error:
        pytest.skip(error.message)
    if (backend.version, onnx.__version__) != VERSIONS:
        pytest.skip(
            f"the number was counted with TensorRT-RTX {VERSIONS[0]} and ONNX {VERSIONS[1]}"
        )
    with ChildServer(SERVER) as server:
        answers = {module: server.ask(module) for module in MODULES}
    assert [module for module, answer in answers.items() if "parsed" not in answer] == []
    parsed = [name for answer in answers.values() for name in answer["parsed"]]
    refused = [name for answer in answers.values() for name in answer["refused"]]
    assert len(parsed) >= PARSED, refused
