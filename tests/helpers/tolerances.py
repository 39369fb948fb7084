"""How exact results of engines can be, where that is not plain."""

FP32_PRODUCTS = 5e-5
"""Relative L2 error of matrix products and convolutions in FP32, split for TF32 or not."""

TF32_PRODUCTS = 4e-3
"""The same in TF32.

On GPUs that it does not list as supported, such as those of compute capability 9.0, TensorRT-RTX
computes in TF32 regardless of the builder flag: the plans differ, the results do not. Only builds
of plans split their products; the engines of a calibration need not be that exact.
"""
