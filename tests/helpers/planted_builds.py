"""Code that replaces the step in which TensorRT builds."""

from __future__ import annotations

# The step in which TensorRT builds, replaced by {body}; {body} may use build(), the real one.
PLANT = """
import os, signal, sys, threading, time
from trt_native.backends.native import TensorRTBackend
from trt_native.errors import BuildError, SpecError
real = TensorRTBackend._serialize
def serialize(self, builder, network, config, progress, cancelled, output):
    build = lambda: real(self, builder, network, config, progress, cancelled, output)
    workspace = config.get_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE)
    level = config.builder_optimization_level
    progress.phase_start("Building engine", None, 3)
    {body}
TensorRTBackend._serialize = serialize
"""

# The parser's process ends by a signal once it has begun with the node {node}.
PARSER_CRASH = """
import os, signal
from trt_native.backends.callbacks import Log
write = Log.write
def write_and_crash(self, severity, message):
    write(self, severity, message)
    if "arsing node: {node}" in message:
        os.kill(os.getpid(), signal.SIGFPE)
Log.write = write_and_crash
"""
