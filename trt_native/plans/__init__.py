"""Plans: TensorRT's serialized engines, and the manifests stored next to them.

The ``.plan`` file holds TensorRT's bytes and nothing else, so that trtexec, Triton and C++ programs
load it as it is. What else must be known is in ``NAME.plan.json`` next to it.
"""
