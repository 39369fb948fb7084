#!/usr/bin/env bash
# A decoder that generates tokens, with caches of keys and values that are updated in place.
set -euo pipefail
cd "$(dirname "$0")"

python decoder.py
trt-native build decoder.onnx --in-place-caches --precision fp32
trt-native inspect decoder.plan

if python -c 'from trt_native.cuda import require_gpu; require_gpu()' 2>/dev/null; then
  python generate.py
fi
