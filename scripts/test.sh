#!/usr/bin/env bash
# Everything that must pass: lint, types, import contract, tests; once more the backend tests on the
# real TensorRT 10 and 11 Python bindings, the tests of parsed networks on every TensorRT-RTX, and the
# tests of what LatentSync's pipeline calls with the versions that it pins (tests/lanes). Needs Python
# 3.10 or later.
#
#   scripts/test.sh                all of it
#   scripts/test.sh ARGUMENT…      only pytest, with these arguments
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup_venv.sh rtx,dev
bin=.venv/bin

if (($#)); then
  exec "$bin/pytest" "$@"
fi

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
step() { printf '\n== %s\n' "$1"; }

# made COMMAND...: run a script that makes a lane; 75 where it cannot be made here.
made() {
  local status=0
  PYTHON=$PWD/$bin/python "$@" || status=$?
  ((status != 75)) || echo "skipped: see the reason above"
  return "$status"
}

# Tests on one other TensorRT: its lane, the backend, the tests.
lane() {
  made tests/lanes/make_lane.sh "$1" ".lanes/$1" || return
  PYTHONPATH=.lanes/$1 TRT_NATIVE_BACKEND=$2 "$bin/pytest" "$3"
}

# The tests of the drop-in, and of what it stands on, with LatentSync's versions.
latentsync_lane() {
  local python=.lanes/latentsync/bin/python
  made tests/lanes/make_latentsync_env.sh .lanes/latentsync || return
  "$python" -c 'import cv2, diffusers, numpy, torch; from trt_native import LatentSyncUNet
print(*(f"{m.__name__} {m.__version__}" for m in (cv2, diffusers, numpy, torch)), sep=", ")'
  OMP_NUM_THREADS=1 "$python" -m pytest -p no:cacheprovider -m "not slow and not gpu" \
    tests/models tests/plans tests/runtime tests/test_arrays.py
}

step "lint"
"$bin/ruff" check .
"$bin/ruff" format --check .

# Two at a time, like the tests.
"$bin/mypy" >"$logs/types" 2>&1 & types=$!
"$bin/lint-imports" >"$logs/imports" 2>&1 & imports=$!
status=0
wait "$types" || status=$?
step "types"
cat "$logs/types"
((status == 0)) || exit "$status"
wait "$imports" || status=$?
step "import contract"
cat "$logs/imports"
((status == 0)) || exit "$status"

step "tests"
# One thread in each of two processes: on two cores more of them wait for one another.
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \
  "$bin/pytest" -n 2 --dist loadfile --no-loadscope-reorder --cov trt_native --cov-report=
echo "coverage: $("$bin/coverage" report --format=total) % of the lines of trt_native," \
  "without slow tests and what needs a GPU"

rtx_lanes() {
  for version in 14 15 17; do
    lane "rtx$version" rtx tests/backends/test_interface.py || return
  done
}

lane trt10 tensorrt tests/backends >"$logs/trt10" 2>&1 & trt10=$!
lane trt11 tensorrt tests/backends >"$logs/trt11" 2>&1 & trt11=$!
rtx_lanes >"$logs/rtx" 2>&1 & rtx=$!
latentsync_lane >"$logs/latentsync" 2>&1 & latentsync=$!
declare -A titles=(
  [trt10]="backend tests on the real Python API of TensorRT 10"
  [trt11]="backend tests on the real Python API of TensorRT 11"
  [rtx]="parsed networks of TensorRT-RTX 1.4, 1.5 and 1.7"
  [latentsync]="tests of the drop-in with LatentSync's versions"
)
for name in trt10 trt11 rtx latentsync; do
  status=0
  wait "${!name}" || status=$?
  step "${titles[$name]}"
  cat "$logs/$name"
  ((status == 0 || status == 75)) || exit "$status"
done
echo
echo "everything passed"
