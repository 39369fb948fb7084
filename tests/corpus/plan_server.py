"""Runs one plan after the other: a line with two paths comes in, a line of JSON goes out.

It is a process of its own because TensorRT and the GPU may not survive what they are given.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
from pathlib import Path

import numpy as np

from trt_native.errors import CudaError, TrtNativeError
from trt_native.inspection import inspect_plan
from trt_native.plans.plan import Plan
from trt_native.runtime import Session


def run(path, inputs):
    """Load, inspect and run a plan, its manifest beside it or not."""
    plan = Plan.load(Path(path))
    inspect_plan(plan)
    with Session(plan) as session, np.load(inputs) as arrays:
        outputs = session.run({name: arrays[name] for name in arrays.files})
    np.savez(Path(path).with_suffix(".npz"), **outputs)
    return {"outputs": list(outputs)}


def main():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        last = False
        try:
            answer = run(*json.loads(line))
        except (TrtNativeError, MemoryError) as error:
            answer = {"error": str(error) or "MemoryError"}
            last = isinstance(error, CudaError)  # the GPU's context may be of no use any more
        except Exception:
            answer = {"traceback": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
        if last:
            break


main()
