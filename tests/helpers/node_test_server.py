"""Parses ONNX's tests of single nodes: a module's name comes in, a line of JSON goes out.

It is a process of its own because TensorRT may not survive what it is given.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import onnx
from onnx_node_tests import node_tests

from trt_native.backends.registry import load_backend
from trt_native.builder.build import decide
from trt_native.config import BuildConfig
from trt_native.errors import TrtNativeError


def main():
    answers, sys.stdout = sys.stdout, sys.stderr
    backend = load_backend("rtx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for line in sys.stdin:
            parsed, refused = [], []
            for case in node_tests(json.loads(line)):
                onnx.save(case.model, path)
                try:
                    decide(path, BuildConfig(), backend=backend)
                except TrtNativeError:
                    refused.append(case.name)
                else:
                    parsed.append(case.name)
            print(json.dumps({"parsed": parsed, "refused": refused}), file=answers, flush=True)


main()
