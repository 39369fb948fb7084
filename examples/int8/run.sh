#!/usr/bin/env bash
# INT8 in one step and in three, and what it costs.
set -euo pipefail
cd "$(dirname "$0")"

python net.py

# One step
trt-native build net.onnx -o one.plan --dim batch=1:32:64 --precision int8 --calibration-data net.py:calibration

# Three steps
trt-native calibrate net.onnx --calibration-data net.py:calibration -o net.calib
trt-native quantize net.onnx --calibration-cache net.calib -o net.int8.onnx
trt-native build net.int8.onnx -o three.plan --dim batch=1:32:64

# The error, on data that was not calibrated with
trt-native convert net.onnx -o net.fp16.int8.onnx --quantize int8 --precision fp16 --calibration-cache net.calib --input features=held_out.npy

if python -c 'from trt_native.cuda import require_gpu; require_gpu()' 2>/dev/null; then
  trt-native verify one.plan --against net.onnx --input features=held_out.npy
  trt-native bench one.plan --shape features=32x64
fi
