"""``python -m trt_native``."""

from trt_native.cli import main

main()
