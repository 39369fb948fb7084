#!/usr/bin/env python3
"""Run the plan of the LatentSync U-Net on random inputs: `trt-native guide infer`."""

import sys

import environment  # noqa: F401  (ends with one line where the package is not installed)

from trt_native.cli import main

main(["guide", "infer", *sys.argv[1:]])
