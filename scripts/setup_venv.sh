#!/usr/bin/env bash
# Makes .venv in the project's root and installs trt-native into it, with the versions of
# constraints.txt. Does nothing where that was done before.
#
#   scripts/setup_venv.sh EXTRA[,EXTRA...]     for example: scripts/setup_venv.sh rtx,export
#   PYTHON=python3.12 scripts/setup_venv.sh …  with another Python (3.10 or later)
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:?usage: scripts/setup_venv.sh EXTRA[,EXTRA...]}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
  echo "error: '$python' is missing or older than 3.10; set PYTHON to a Python 3.10 or later" >&2
  exit 1
}

stamp=.venv/.trt-native # the Python, the checksum of what is asked for, the extras installed
version=$("$python" -c 'import sys; print(sys.version.replace("\n", " "))')
sum=$(cat pyproject.toml constraints.txt | cksum)
present=$(sed -n 3p "$stamp" 2>/dev/null || true)
tensorrt_of() { tr , '\n' <<<"$1" | grep -E '^(rtx|tensorrt)' || true; }
# Two TensorRT extras share files, so another one needs a new environment.
if [[ $(sed -n 1p "$stamp" 2>/dev/null) != "$version" ||
  (-n $present && $(tensorrt_of "$present") != "$(tensorrt_of "$extras")") ]]; then
  present=
  "$python" -m venv --clear .venv || {
    echo "error: '$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
  }
fi
all=$(tr , '\n' <<<"$present,$extras" | sed '/^$/d' | sort -u | paste -sd,)
if [[ $(sed -n 2p "$stamp" 2>/dev/null) == "$sum" && $all == "$present" ]]; then
  exit 0
fi
echo "installing trt-native[$all] into .venv" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt --editable ".[$all]"
printf '%s\n' "$version" "$sum" "$all" >"$stamp"
