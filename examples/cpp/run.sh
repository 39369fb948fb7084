#!/usr/bin/env bash
# A plan for a C++ program; where TENSORRT_ROOT names a TensorRT with headers and there is a GPU, also
# the program, and its outputs compared with PyTorch's.
set -euo pipefail
cd "$(dirname "$0")"

python net.py
trt-native build net.onnx --dim batch=1:8:32
trt-native deploy trtexec net.plan

if [[ -n ${TENSORRT_ROOT:-} ]]; then
  cmake -S ../../scripts/cpp_loader -B build -DTENSORRT_ROOT="$TENSORRT_ROOT"
  cmake --build build
  build/loader net.plan outputs image=image.npy
  python compare.py outputs expected
fi
