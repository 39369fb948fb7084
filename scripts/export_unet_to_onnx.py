#!/usr/bin/env python3
"""Export the LatentSync U-Net to ONNX: `trt-native export latentsync` under the familiar name."""

import sys

from trt_native.cli import main

main(["export", "latentsync", *sys.argv[1:]])
