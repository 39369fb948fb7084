"""Random ONNX graphs, their references, and the smallest graph that still fails."""
