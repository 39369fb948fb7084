#!/usr/bin/env bash
# From nothing to a TensorRT plan of the LatentSync U-Net.
#
#   scripts/quickstart.sh                        a small U-Net with random weights
#   scripts/quickstart.sh CHECKPOINT [CONFIG]    your own; CONFIG is its YAML or JSON, or a preset
#
#   EXTRA=rtx-cu12 scripts/quickstart.sh …       another TensorRT: rtx (default), rtx-cu12,
#                                                tensorrt, tensorrt11
#   PYTHON=python3.12 scripts/quickstart.sh …    another Python (3.10 or later)
#
# Makes .venv and quickstart/ in the project's root; safe to run again.
set -euo pipefail
if (($# > 2)) || [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi

start=$PWD
absolute() { [[ $1 == /* || ! -e $start/$1 ]] && echo "$1" || echo "$start/$1"; }
if (($#)); then
  [[ -f $1 ]] || { echo "error: no checkpoint at $1" >&2; exit 1; }
  weights=("$(absolute "$1")")
  [[ -z ${2:-} ]] || weights+=(--config "$(absolute "$2")")
  name=$(basename "${1%.*}")
  dims=(--dim batch=1:2:2 --dim frames=1:16:16 --dim height=32:64:64 --dim width=32:64:64)
else
  weights=(--random-weights 0 --config small)
  name=unet_small
  dims=(--dim batch=1:2:2 --dim frames=1:4:16 --dim height=8:16:32 --dim width=8:16:32)
fi

cd "$(dirname "$0")/.."
scripts/setup_venv.sh "${EXTRA:-rtx},export"
mkdir -p quickstart
onnx=quickstart/$name.onnx
plan=quickstart/$name.plan
step() { printf '\n== %s\n' "$1"; }

step "1. Export to ONNX, and build the plan (FP16, dynamic shapes)"
.venv/bin/trt-native export latentsync "${weights[@]}" --output "$onnx" --build "$plan" "${dims[@]}"
step "2. Inspect it"
.venv/bin/trt-native inspect "$plan"
if .venv/bin/python -c 'from trt_native.cuda import require_gpu; require_gpu()' 2>/dev/null; then
  step "3. Run it and compare with PyTorch"
  .venv/bin/python scripts/compare_with_pytorch.py "$plan" "${weights[@]}"
else
  step "3. Run it: on a machine with a GPU"
  cat <<TEXT
This machine has no usable NVIDIA GPU, so the plan was built but cannot run here.
Copy these two files to a machine with a supported GPU and the same TensorRT version:
  $plan
  $plan.json
and run there:
  trt-native run $(basename "$plan") --random 0
or run this script there: it then compares the plan with PyTorch as well.
TEXT
fi
