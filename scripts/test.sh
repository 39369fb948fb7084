#!/usr/bin/env bash
# Everything that must pass: lint, types, import contract, tests, the backend tests once more on the
# real TensorRT 10 and 11 Python bindings, and the tests of parsed networks on every TensorRT-RTX
# (tests/lanes). Needs Python 3.10 or later.
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

# Tests on one other TensorRT: its lane, the backend, the tests.
lane() {
  local status=0
  PYTHON=$PWD/$bin/python tests/lanes/make_lane.sh "$1" ".lanes/$1" || status=$?
  if ((status == 75)); then
    echo "skipped: see the reason above"
    return
  fi
  ((status == 0)) || return "$status"
  PYTHONPATH=.lanes/$1 TRT_NATIVE_BACKEND=$2 "$bin/pytest" "$3"
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

lane trt10 tensorrt tests/backends >"$logs/trt10" 2>&1 & trt10=$!
lane trt11 tensorrt tests/backends >"$logs/trt11" 2>&1 & trt11=$!
rtx_lanes() {
  for version in 14 15 17; do
    lane "rtx$version" rtx tests/backends/test_interface.py || return
  done
}
rtx_lanes >"$logs/rtx" 2>&1 & rtx=$!
for name in trt10 trt11 rtx; do
  status=0
  wait "${!name}" || status=$?
  case $name in
    rtx) step "parsed networks of TensorRT-RTX 1.4, 1.5 and 1.7" ;;
    *) step "backend tests on the real Python API of TensorRT ${name#trt}" ;;
  esac
  cat "$logs/$name"
  ((status == 0)) || exit "$status"
done
echo
echo "everything passed"
