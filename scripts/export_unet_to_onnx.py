#!/usr/bin/env python3
"""Export the LatentSync U-Net to ONNX: `trt-native guide export`."""

import sys

import environment  # noqa: F401  (ends with one line where the package is not installed)

from trt_native.cli import main

main(["guide", "export", *sys.argv[1:]])
