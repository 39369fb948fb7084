"""Print the config.pbtxt that Triton gets for a plan: python show_config.py PLAN."""

import sys

from trt_native import Plan
from trt_native.deploy import TritonConfig, plan_tensors, triton_config

model = triton_config(plan_tensors(Plan.open(sys.argv[1])), TritonConfig(name="net", instances=2))
print(model.config, end="")
if model.no_batching is not None:
    print(f"Triton forms no batches: {model.no_batching}", file=sys.stderr)
