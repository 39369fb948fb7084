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
declare -A started
trap 'for group in "${started[@]}"; do kill -- "-$group" 2>/dev/null || true; done; rm -rf "$logs"' EXIT
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
    tests/models tests/runtime tests/test_arrays.py
}

rtx_lanes() {
  for version in 14 15 17; do
    lane "rtx$version" rtx tests/backends/test_interface.py || return
  done
}

# in_background NAME COMMAND...: start it; what the tests leave of the processors is enough for it.
in_background() {
  set -m # a process group of its own, to end with all it started
  (
    renice -n 10 "$BASHPID" >/dev/null
    "${@:2}"
  ) >"$logs/$1" 2>&1 &
  set +m
  started[$1]=$!
}

# finish NAME TITLE: wait for it, and show what it printed; a status of 75 is no failure.
finish() {
  local status=0
  wait "${started[$1]}" || status=$?
  unset "started[$1]"
  step "$2"
  cat "$logs/$1"
  ((status == 0 || status == 75)) || exit "$status"
}

step "lint"
"$bin/ruff" check .
"$bin/ruff" format --check .

in_background types "$bin/mypy"
in_background imports "$bin/lint-imports"
in_background latentsync latentsync_lane
in_background trt10 lane trt10 tensorrt tests/backends
in_background trt11 lane trt11 tensorrt tests/backends
in_background rtx rtx_lanes

step "tests"
# One thread in each of two processes: on two cores more of them wait for one another.
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \
  "$bin/python" -m slipcover --source trt_native --json --out "$logs/coverage.json" \
  -m pytest -n 2 --dist loadfile --no-loadscope-reorder
"$bin/python" -c 'import json, sys
print("coverage: {percent_covered:.1f} %".format(**json.load(open(sys.argv[1]))["summary"]),
  "of the lines of trt_native, without what needs a GPU")' "$logs/coverage.json"

finish types "types"
finish imports "import contract"
finish trt10 "backend tests on the real Python API of TensorRT 10"
finish trt11 "backend tests on the real Python API of TensorRT 11"
finish rtx "parsed networks of TensorRT-RTX 1.4, 1.5 and 1.7"
finish latentsync "tests of the drop-in with LatentSync's versions"
echo
echo "everything passed"
