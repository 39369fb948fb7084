#!/usr/bin/env bash
# What every change must pass: lint, types, import contract, tests; and the backend tests once more on
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

logs=$(mktemp -d)
declare -A started
trap 'for group in "${started[@]}"; do kill -- "-$group" 2>/dev/null || true; done; rm -rf "$logs"' EXIT
step() { printf '\n== %s\n' "$1"; }

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

# finish NAME TITLE: wait for it, and show what it printed.
finish() {
  local status=0
  wait "${started[$1]}" || status=$?
  unset "started[$1]"
  step "$2"
  cat "$logs/$1"
  ((status == 0)) || exit "$status"
}

step "lint"
"$bin/ruff" check .
"$bin/ruff" format --check .

in_background types "$bin/mypy"
in_background imports "$bin/lint-imports"
in_background package "$bin/python" scripts/check_package.py
in_background trt10 tests/lanes/run_lane.sh trt10 tests/backends
in_background trt11 tests/lanes/run_lane.sh trt11 tests/backends

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
finish package "wheel and source distribution"
finish trt10 "backend tests on the real Python API of TensorRT 10"
finish trt11 "backend tests on the real Python API of TensorRT 11"
echo
echo "everything passed"
