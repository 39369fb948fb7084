#!/usr/bin/env bash
# Plans of a matrix on Ray; with a GPU also inference on a folder of .npz files, and on video frames.
set -euo pipefail
cd "$(dirname "$0")"

python net.py
trt-native build-all matrix.yaml --report report.json
python take.py report.json net fp16 net.plan

if python -c 'from trt_native.cuda import require_gpu; require_gpu()' 2>/dev/null; then
  python files.py net.plan samples results/files
  python video.py net.plan videos results/frames
fi
