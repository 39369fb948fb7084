#!/usr/bin/env bash
# Make the PTX of the calibration kernels again; needs nvcc (CUDA 12 or later). Prints where to.
# usage: scripts/make_ptx.sh [OUTPUT.ptx]
set -euo pipefail
folder="$(dirname "$0")/../trt_native/calibration/kernels"
output="${1:-$folder/activations.ptx}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
nvcc -ptx -O3 -std=c++17 -arch=compute_75 "$folder/activations.cu" -o "$scratch/new.ptx"
{
  echo "// Made from activations.cu by scripts/make_ptx.sh; do not edit."
  # The comments name the compiler's build, which changes nothing. PTX 8.0 is that of CUDA 12.0.
  sed -e '/^\/\//d' -e '/^$/d' -e 's/^\.version .*/.version 8.0/' "$scratch/new.ptx"
} > "$scratch/activations.ptx"
if command -v ptxas > /dev/null; then  # it refuses what PTX 8.0 does not have
  for target in sm_75 sm_90; do ptxas -arch="$target" "$scratch/activations.ptx" -o /dev/null; done
fi
cp "$scratch/activations.ptx" "$output"
echo "$output"
