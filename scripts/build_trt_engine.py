#!/usr/bin/env python3
"""Build a TensorRT plan from ONNX: `trt-native build` under the familiar name."""

import sys

from trt_native.cli import main

main(["build", *sys.argv[1:]])
