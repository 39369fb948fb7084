"""How exact results of engines can be, where that is not plain."""

FP32_PRODUCTS = 4e-3
"""Relative L2 error of matrix products and convolutions in FP32.

On GPUs that it does not list as supported, such as those of compute capability 9.0, TensorRT-RTX
computes them in TF32 whatever the builder flag says: the plans differ, the results do not.
"""
