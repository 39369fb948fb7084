"""Calibration: the data, the ranges found in it, and TensorRT's cache of them."""
