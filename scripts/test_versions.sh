#!/usr/bin/env bash
# The tests that depend on other versions than the development environment has: the parsed networks
# of every TensorRT-RTX, and the drop-in with the versions that LatentSync pins (tests/lanes).
#
#   scripts/test_versions.sh [LANE]     latentsync, rtx14, rtx15, rtx17; all of them without a name
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup_venv.sh rtx,dev

(($#)) || set -- latentsync rtx14 rtx15 rtx17
for lane in "$@"; do
  printf '\n== %s\n' "$lane"
  tests=(tests/backends/test_interface.py)
  [[ $lane != latentsync ]] || tests=(tests/models tests/runtime tests/test_arrays.py)
  tests/lanes/run_lane.sh "$lane" "${tests[@]}"
done
echo
echo "everything passed"
