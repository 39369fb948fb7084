"""Builds one model after the other: a line with its path comes in, a line of JSON goes out.

It is a process of its own because TensorRT may not survive what it is given.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
from pathlib import Path

import onnx_ir as ir

from trt_native.backends.registry import load_backend
from trt_native.builder.build_plan import build_plan
from trt_native.config import BuildConfig
from trt_native.errors import TrtNativeError
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.shapes import ProfileSpec

_MEMORY = 24 * 2**30


def profile(path):
    """A range for each dimension that the model names, so that a build can begin."""
    inputs, _ = tensor_specs(read_model(path))
    names = {axis for tensor in inputs for axis in tensor.shape or () if isinstance(axis, str)}
    symbols = {name for name in names if ir.SymbolicDim(name).value.isidentifier()}
    return ProfileSpec.parse(f"{name}=1:2:4" for name in sorted(symbols))


def build(path, backend):
    given = profile(path)
    config = BuildConfig(profiles=(given,) if given.dims else ())
    return {"bytes": len(build_plan(path, config, backend=backend).data)}


def main():
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = sys.stdout
    sys.stdout = sys.stderr
    backend = load_backend("rtx")
    for line in sys.stdin:
        try:
            answer = build(Path(json.loads(line)), backend)
        except (TrtNativeError, MemoryError) as error:
            answer = {"error": str(error)}
        except Exception:
            answer = {"traceback": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


main()
