#!/usr/bin/env bash
#
# Make a lane: a directory that, put on PYTHONPATH, gives `import tensorrt` NVIDIA's own Python
# bindings on a machine that has neither TensorRT nor a GPU, or `import tensorrt_rtx` another version
# than the environment has. See README.md next to this file.
#
# usage: make_lane.sh trt10|trt11|trt10-stub|rtx14|rtx15|rtx17 TARGET_DIR
#
#   PYTHON          the interpreter the lane is for (default: python3); it needs pip
#   CC              the C compiler (default: cc)
#   LANE_CACHE_DIR  where downloads are kept (default: ~/.cache/trt-native/lanes)
#
# exit status: 0 the lane is there, 75 it cannot be made here (one line on stderr says why),
#              2 wrong usage, 1 anything else.

set -euo pipefail
shopt -s inherit_errexit

# What each lane is made of. TensorRT-RTX 1.4 and 1.6 are the builds whose C++ interfaces match
# those of the bindings next to them; neither pair survives a change of one half untested.
TRT10_BINDINGS=10.16.1.11
TRT10_LIBS=1.4.0.76
TRT11_BINDINGS=11.4.0.106
TRT11_LIBS=1.6.1.120

RTX14=1.4.0.76
RTX15=1.5.0.114
RTX17=1.7.1.116

BINDINGS_PACKAGE=tensorrt-cu13-bindings
LIBS_PACKAGE=tensorrt-rtx-cu12-libs

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python3}
CC=${CC:-cc}
CACHE=${LANE_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/trt-native/lanes}

EX_USAGE=2
EX_UNAVAILABLE=75

say() { printf 'make_lane: %s\n' "$1" >&2; }

fail() {
  say "$2"
  exit "$1"
}

unavailable() { fail "$EX_UNAVAILABLE" "lane $lane cannot be made here: $1"; }

# fetch PACKAGE VERSION: print the path of the wheel, downloaded once.
fetch() {
  local package=$1 version=$2 wheels=$CACHE/$python_tag/$1-$2 found log into
  found=$(find "$wheels" -name '*.whl' 2>/dev/null | head -n 1 || true)
  if [[ -z $found ]]; then
    mkdir -p "$CACHE/$python_tag"
    into=$(mktemp -d "$CACHE/$python_tag/.fetch.XXXXXX")
    log=$("$PYTHON" -m pip download --quiet --disable-pip-version-check --no-input --no-deps \
      --only-binary :all: --dest "$into" "$package==$version" 2>&1) || {
      rm -rf "$into"
      unavailable "pip found no $package $version for $python_tag: $(
        grep '^ERROR' <<<"$log" | head -n 1 || tail -n 1 <<<"$log"
      )"
    }
    rm -rf "$wheels"
    mv -T "$into" "$wheels"
    found=$(find "$wheels" -name '*.whl' | head -n 1)
  fi
  printf '%s\n' "$found"
}

# runtime_libs VERSION: print the folder with TensorRT-RTX's libraries of that version, taken from
# PYTHON's own environment if it has them, else downloaded and unpacked once.
runtime_libs() {
  local version=$1 found wheel into
  found=$("$PYTHON" - "$LIBS_PACKAGE" "$version" <<'PY'
import importlib.metadata
import sys

package, version = sys.argv[1:]
try:
    dist = importlib.metadata.distribution(package)
except importlib.metadata.PackageNotFoundError:
    sys.exit()
folder = dist.locate_file("tensorrt_rtx_libs")
if dist.version == version and folder.is_dir():
    print(folder)
PY
  )
  if [[ -z $found ]]; then
    found=$CACHE/$LIBS_PACKAGE-$version/tensorrt_rtx_libs
    if [[ ! -d $found ]]; then
      wheel=$(fetch "$LIBS_PACKAGE" "$version")
      into=$(mktemp -d "$CACHE/.unpack.XXXXXX")
      "$PYTHON" -m zipfile -e "$wheel" "$into"
      rm -rf "$CACHE/$LIBS_PACKAGE-$version"
      mv -T "$into" "$CACHE/$LIBS_PACKAGE-$version"
      rm -rf "$(dirname "$wheel")" # 90 MB that nothing reads again
    fi
  fi
  printf '%s\n' "$found"
}

# stub LIBRARY [LINKER ARGUMENT...]: compile the C program on stdin into that shared library.
stub() {
  local log output=$1
  shift
  log=$("$CC" -x c -shared -fPIC -O1 "-Wl,-soname,$(basename "$output")" -o "$output" - \
    -x none "$@" 2>&1) || {
    [[ -z $compiler_works ]] || fail 1 "$CC rejects the source of $(basename "$output"): $log"
    unavailable "$CC compiles no shared library: $(head -n 1 <<<"$log")"
  }
  compiler_works=yes
}
compiler_works=

# A file of its own inside the lane, at no cost in space where a hard link is possible: unlike a
# symbolic link it keeps its content when the environment it came from is upgraded or removed.
place() { cp -lL "$1" "$2" 2>/dev/null || cp -L "$1" "$2"; }

[[ $# -eq 2 && -n $2 ]] ||
  fail "$EX_USAGE" "usage: make_lane.sh trt10|trt11|trt10-stub|rtx14|rtx15|rtx17 TARGET_DIR"
lane=$1
target=$2
case $lane in
  trt10) bindings=$TRT10_BINDINGS libs=$TRT10_LIBS ;;
  trt11) bindings=$TRT11_BINDINGS libs=$TRT11_LIBS ;;
  trt10-stub) bindings=$TRT10_BINDINGS libs=stub ;;
  rtx14) bindings=$RTX14 libs=$RTX14 ;;
  rtx15) bindings=$RTX15 libs=$RTX15 ;;
  rtx17) bindings=$RTX17 libs=$RTX17 ;;
  *)
    fail "$EX_USAGE" \
      "no lane is called '$lane'; there are trt10, trt11, trt10-stub, rtx14, rtx15 and rtx17"
    ;;
esac
module=tensorrt
if [[ $lane == rtx* ]]; then
  module=tensorrt_rtx
  BINDINGS_PACKAGE=tensorrt-rtx-cu12-bindings
fi
soname=${bindings%%.*} # libnvinfer.so.10, libnvinfer.so.11

[[ $(uname -s)/$(uname -m) == Linux/x86_64 ]] ||
  unavailable "it needs Linux on x86_64, this is $(uname -s) on $(uname -m)"
python_tag=$("$PYTHON" -c 'import sys; print(sys.implementation.cache_tag)' 2>/dev/null) ||
  unavailable "$PYTHON does not run"
[[ $python_tag == cpython-* ]] || unavailable "it needs CPython, $PYTHON is $python_tag"

sources=$(cat "$here/make_lane.sh" "$here/trt10_config.c" | cksum)
stamp="$lane: $BINDINGS_PACKAGE $bindings, $LIBS_PACKAGE $libs, $python_tag, sources $sources"
if [[ -f $target/.lane && $(<"$target/.lane") == "$stamp" ]]; then
  exit 0
fi
if [[ -e $target && ! -f $target/.lane ]]; then
  [[ -d $target && -z $(find "$target" -mindepth 1 -print -quit) ]] ||
    fail "$EX_USAGE" "$target exists and is not a lane; name another folder"
fi

[[ $lane == rtx* ]] || command -v "$CC" >/dev/null || unavailable "no C compiler ('$CC')"
"$PYTHON" -m pip --version >/dev/null 2>&1 || unavailable "$PYTHON has no pip"

mkdir -p "$CACHE" "$(dirname "$target")"
new=$(mktemp -d "$(dirname "$target")/.lane.XXXXXX")
trap 'rm -rf "$new"' EXIT

wheel=$(fetch "$BINDINGS_PACKAGE" "$bindings")
"$PYTHON" -m zipfile -e "$wheel" "$new"

# The bindings of TensorRT look for the three libraries next to themselves (their run path is
# $ORIGIN), those of TensorRT-RTX in a package of their own.
bindings_dir=$new/${module}_bindings
if [[ $lane == rtx* ]]; then
  from=$(runtime_libs "$libs")
  mkdir "$new/tensorrt_rtx_libs"
  for file in libtensorrt_rtx.so.1 libtensorrt_onnxparser_rtx.so.1 __init__.py; do
    place "$from/$file" "$new/tensorrt_rtx_libs/$file"
  done
else
  stub "$bindings_dir/libnvinfer_plugin.so.$soname" <<'C'
int initLibNvInferPlugins(void *logger, char const *name_space) { return 1; }
C
fi
if [[ $libs == stub ]]; then
  stub "$bindings_dir/libnvinfer.so.$soname" <<'C'
void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
void *getPluginRegistry(void) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
C
  stub "$bindings_dir/libnvonnxparser.so.$soname" <<'C'
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
C
elif [[ $lane == trt* ]]; then
  from=$(runtime_libs "$libs")
  place "$from/libtensorrt_onnxparser_rtx.so.1" "$bindings_dir/libnvonnxparser.so.$soname"
  if [[ $lane == trt10 ]]; then
    place "$from/libtensorrt_rtx.so.1" "$bindings_dir/libtensorrt_rtx.so.1"
    stub "$bindings_dir/libnvinfer.so.$soname" -Wl,--no-as-needed "$bindings_dir/libtensorrt_rtx.so.1" \
      "-Wl,-rpath,\$ORIGIN" <"$here/trt10_config.c"
  else
    place "$from/libtensorrt_rtx.so.1" "$bindings_dir/libnvinfer.so.$soname"
  fi
fi

# The package users import is this re-export. The empty tensorrt_libs keeps the bindings from
# loading a real TensorRT that the environment may have, ahead of the libraries placed here.
mkdir "$new/$module"
cat >"$new/$module/__init__.py" <<PY
from ${module}_bindings import *
from ${module}_bindings import __version__
PY
if [[ $lane == trt* ]]; then
  mkdir "$new/tensorrt_libs"
  : >"$new/tensorrt_libs/__init__.py"
fi

version=$(PYTHONPATH=$new "$PYTHON" -c "import $module; print($module.__version__)") ||
  fail 1 "lane $lane was laid out, but $module does not import from it"
[[ $version == "$bindings" ]] ||
  fail 1 "lane $lane was laid out, but $module is $version in it, not $bindings"

printf '%s\n' "$stamp" >"$new/.lane"
chmod 755 "$new"
rm -rf "$target"
mv -T "$new" "$target"
