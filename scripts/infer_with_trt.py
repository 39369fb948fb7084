#!/usr/bin/env python3
"""Run a TensorRT plan: `trt-native run` under the familiar name."""

import sys

from trt_native.cli import main

main(["run", *sys.argv[1:]])
