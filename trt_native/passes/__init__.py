"""Rewrites of ONNX graphs, and the order in which a build applies them."""
