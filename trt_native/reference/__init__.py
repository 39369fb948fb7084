"""ONNX's reference evaluator, with its wrong and missing operators replaced.

``onnx.reference`` runs a model node by node in NumPy. Some of its operators compute something other
than the specification of their version, or do not exist; those of this package take their place.
"""

__all__ = ["NAME"]

NAME = "onnx.reference"
