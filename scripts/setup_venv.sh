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

wanted="$("$python" -c 'import sys; print(sys.version)') $(cat pyproject.toml constraints.txt | cksum)"
stamp=.venv/.trt-native
if [[ -f $stamp && $(head -n 1 "$stamp") == "$wanted" ]]; then
  installed=",$(tail -n 1 "$stamp"),"
  missing=0
  for extra in ${extras//,/ }; do [[ $installed == *",$extra,"* ]] || missing=1; done
  ((missing)) || exit 0
  extras=$(tail -n 1 "$stamp"),$extras
fi

if [[ ! -x .venv/bin/python || $(head -n 1 "$stamp" 2>/dev/null) != "$wanted" ]]; then
  "$python" -m venv --clear .venv || {
    echo "error: '$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
  }
fi
echo "installing trt-native[$extras] into .venv" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt --editable ".[$extras]"
printf '%s\n%s\n' "$wanted" "$extras" >"$stamp"
