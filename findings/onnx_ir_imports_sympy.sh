#!/usr/bin/env bash
# onnx-ir 1.1.0: `import onnx_ir` imports sympy, 419 modules of it, for the names of
# five functions in dimensions that are expressions. With Python 3.11 that is more than half of the
# time of the import, also in programs whose models have no such dimension.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx-ir==1.1.0 onnx==1.23.2 \
  numpy==2.4.6 sympy==1.14.0
"$work/venv/bin/python" - <<'PY'
import sys

import onnx_ir

loaded = [name for name in sys.modules if name.split(".")[0] == "sympy"]
print(f"onnx_ir {onnx_ir.__version__}: {len(loaded)} modules of sympy")
assert onnx_ir.__version__ == "1.1.0"
assert len(loaded) > 100, "onnx_ir has changed"
PY
