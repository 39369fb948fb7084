#!/usr/bin/env python3
"""Build a TensorRT plan of the LatentSync U-Net: `trt-native guide build`."""

import sys

import environment  # noqa: F401  (ends with one line where the package is not installed)

from trt_native.cli import main

main(["guide", "build", *sys.argv[1:]])
