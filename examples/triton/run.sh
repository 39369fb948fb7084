#!/usr/bin/env bash
# A plan in Triton's model repository; without a GPU and TensorRT, the configuration that it would have.
set -euo pipefail
cd "$(dirname "$0")"

python net.py
if python -c 'import tensorrt; from trt_native.cuda import require_gpu; require_gpu()' 2>/dev/null; then
  trt-native build net.onnx --dim batch=1:8:32 --backend tensorrt
  trt-native deploy triton net.plan --repository models --name net --instances 2 --force
else
  trt-native build net.onnx --dim batch=1:8:32
  python show_config.py net.plan
fi
