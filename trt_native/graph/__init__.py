"""ONNX graphs: reading, rewriting and symbolic dimensions, with weights left on disk."""
