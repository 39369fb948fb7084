#!/usr/bin/env bash
#
# Make a virtual environment with the versions that LatentSync pins (latentsync_pins.txt, torch) and
# this package, on a machine without a GPU. See README.md next to this file.
#
# usage: make_latentsync_env.sh TARGET_DIR
#
#   PYTHON          the interpreter to make it with (default: python3)
#   CC              the C compiler (default: cc)
#
# exit status: 0 it is there, 75 it cannot be made here (one line on stderr says why),
#              2 wrong usage, 1 anything else.

set -euo pipefail
shopt -s inherit_errexit

TORCH=2.5.1
# Its own requirements, less the CUDA packages and triton.
TORCH_NEEDS=(fsspec jinja2 networkx sympy==1.13.1)
TOOLS=(hypothesis jsonschema pytest pytest-timeout safetensors)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../..
PYTHON=${PYTHON:-python3}
CC=${CC:-cc}

say() { printf 'make_latentsync_env: %s\n' "$1" >&2; }
unavailable() {
  say "it cannot be made here: $1"
  exit 75
}

[[ $# -eq 1 && -n $1 ]] || {
  say "usage: make_latentsync_env.sh TARGET_DIR"
  exit 2
}
target=$1

[[ $(uname -s)/$(uname -m) == Linux/x86_64 ]] ||
  unavailable "it needs Linux on x86_64, this is $(uname -s) on $(uname -m)"
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
  unavailable "$PYTHON does not run"
case $version in
  3.10 | 3.11 | 3.12) ;;
  *) unavailable "NumPy 1.26.4 has wheels for Python 3.10 to 3.12, $PYTHON is $version" ;;
esac
for tool in "$CC" nm; do
  command -v "$tool" >/dev/null || unavailable "'$tool' is missing"
done

sum=$(cat "$here/make_latentsync_env.sh" "$here/latentsync_pins.txt" "$root/pyproject.toml" \
  "$root/constraints.txt" | cksum)
stamp="Python $version, sources $sum"
if [[ -f $target/.lane && $(<"$target/.lane") == "$stamp" ]]; then
  exit 0
fi
if [[ -e $target && ! -f $target/.lane ]]; then
  say "$target exists and is not a lane; name another folder"
  exit 2
fi

rm -rf "$target"
trap 'rm -rf "$target"' EXIT
"$PYTHON" -m venv "$target" || unavailable "'$PYTHON -m venv' failed"
touch "$target/.lane"
pip() { "$target/bin/python" -m pip --disable-pip-version-check --quiet --no-input "$@"; }

log=$(pip install --no-deps --only-binary :all: "torch==$TORCH" 2>&1) ||
  unavailable "pip found no torch $TORCH: $(grep '^ERROR' <<<"$log" | head -n 1)"
# Everything that neither LatentSync nor torch pins has the version of the other tests.
pinned=$(sed -n 's/^\([a-z-]*\)[=<].*/\1/p' "$here/latentsync_pins.txt" | paste -sd'|')
constraints=$target/constraints.txt
grep -vE "^($pinned|ml-dtypes|sympy|torch)==" "$root/constraints.txt" >"$constraints"
pip install --constraint "$constraints" --requirement "$here/latentsync_pins.txt" \
  "${TORCH_NEEDS[@]}" "${TOOLS[@]}" --editable "$root[rtx-cu12]"

# torch imports only with the CUDA libraries it was linked with. Here they are functions that return
# an error, "no device" where it is CUDA's, so that it runs on the CPU alone.
lib=$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch/lib
symbols=$target/symbols
nm -D --undefined-only --with-symbol-versions "$lib"/*.so | awk '$1 == "U" { print $2 }' |
  sort -u >"$symbols"
# stub LIBRARY FUNCTION...
stub() {
  local library=$1
  shift
  printf 'int %s(void) { return 100; }\n' "$@" |
    "$CC" -x c -w -shared -fPIC -fno-builtin "-Wl,-soname,$library" \
      "-Wl,--version-script,$target/version" -o "$lib/$library" -
}
for library in $(sed -n 's/.*@\(lib\(cu\|nv\)[^@]*\)$/\1/p' "$symbols" | sort -u); do
  printf '%s { global: *; };\n' "$library" >"$target/version"
  mapfile -t functions < <(sed -n "s/@*@$library\$//p" "$symbols")
  stub "$library" "${functions[@]}"
done
printf '{ global: *; };\n' >"$target/version" # of these two nothing has a version
stub libcurand.so.10 unused
mapfile -t functions < <(grep '^nccl[A-Za-z]*$' "$symbols")
stub libnccl.so.2 "${functions[@]}"

found=$("$target/bin/python" -c 'import torch; print(torch.__version__, torch.cuda.is_available())')
[[ $found == "$TORCH"*" False" ]] || {
  say "the environment was made, but torch is '$found' in it, not $TORCH"
  exit 1
}
printf '%s\n' "$stamp" >"$target/.lane"
trap - EXIT
