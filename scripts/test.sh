#!/usr/bin/env bash
# Everything that must pass: lint, types, import contract, tests, and the backend tests once more on
# the real TensorRT 10 and 11 Python bindings (tests/lanes). Needs Python 3.10 or later.
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

step() { printf '\n== %s\n' "$1"; }
step "lint"
"$bin/ruff" check .
"$bin/ruff" format --check .
step "types"
"$bin/mypy"
step "import contract"
"$bin/lint-imports"
step "tests"
"$bin/pytest" -n 2 --dist loadfile --no-loadscope-reorder \
  --cov trt_native --cov-report=
echo "coverage: $("$bin/coverage" report --format=total) % of the lines of trt_native, without what needs a GPU"
for lane in trt10 trt11; do
  step "backend tests on the real Python API of TensorRT ${lane#trt}"
  status=0
  PYTHON=$PWD/$bin/python tests/lanes/make_lane.sh "$lane" ".lanes/$lane" || status=$?
  if ((status == 75)); then
    echo "skipped: see the reason above"
  elif ((status)); then
    exit "$status"
  else
    PYTHONPATH=.lanes/$lane TRT_NATIVE_BACKEND=tensorrt "$bin/pytest" tests/backends
  fi
done
echo
echo "everything passed"
