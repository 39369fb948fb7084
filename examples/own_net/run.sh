#!/usr/bin/env bash
# A network of your own: export, look, convert, build; with a GPU also run, verify and time it.
set -euo pipefail
cd "$(dirname "$0")"

python net.py
trt-native inspect net.onnx
trt-native convert net.onnx -o net.fp16.onnx --precision fp16
trt-native build net.onnx --dim batch=1:8:32

if python -c 'from trt_native.cuda import require_gpu; require_gpu()' 2>/dev/null; then
  trt-native run net.plan --random 0
  trt-native verify net.plan --against net.py:net --random 0
  trt-native bench net.plan --shape image=8x3x32x32
fi
