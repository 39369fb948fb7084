"""Imported by the scripts before the package: ends them with one line where that is missing."""

import importlib.util
import sys

for _name in ("trt_native", "typer"):
    if importlib.util.find_spec(_name) is None:
        sys.exit(
            f"error: {_name} is not installed for {sys.executable}: run `scripts/setup_venv.sh"
            f" rtx,export` once, then `.venv/bin/python {sys.argv[0]}`; or install it into this"
            " Python with `pip install '.[rtx,export]'`"
        )
