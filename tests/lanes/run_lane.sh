#!/usr/bin/env bash
#
# Make a lane, and run tests in it; where it cannot be made here, say why and pass.
#
# usage: run_lane.sh LANE TEST...     LANE as for make_lane.sh, or latentsync

set -euo pipefail
cd "$(dirname "$0")/../.."
lane=$1
shift

made() {
  local status=0
  PYTHON=$PWD/.venv/bin/python "$@" || status=$?
  ((status != 75)) || { echo "skipped: see the reason above" && exit 0; }
  return "$status"
}

if [[ $lane == latentsync ]]; then
  python=.lanes/latentsync/bin/python
  made tests/lanes/make_latentsync_env.sh .lanes/latentsync
  "$python" -c 'import cv2, diffusers, numpy, torch; from trt_native import LatentSyncUNet
print(*(f"{m.__name__} {m.__version__}" for m in (cv2, diffusers, numpy, torch)), sep=", ")'
  OMP_NUM_THREADS=1 exec "$python" -m pytest -p no:cacheprovider -m "not slow and not gpu" "$@"
fi

made tests/lanes/make_lane.sh "$lane" ".lanes/$lane"
[[ $lane == rtx* ]] && backend=rtx || backend=tensorrt
PYTHONPATH=.lanes/$lane TRT_NATIVE_BACKEND=$backend exec .venv/bin/pytest "$@"
