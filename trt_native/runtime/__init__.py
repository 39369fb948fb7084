"""Running engines: sessions with their buffers, streams and CUDA graphs."""

from trt_native.runtime.activation_memory import ActivationMemory
from trt_native.runtime.engine_session_pool import EngineSessionPool
from trt_native.runtime.future import InferenceFuture
from trt_native.runtime.input_checks import check_inputs, describe_input
from trt_native.runtime.session import Session
from trt_native.runtime.session_pool import SessionPool
from trt_native.runtime.staging import HostExecution

__all__ = [
    "ActivationMemory",
    "EngineSessionPool",
    "HostExecution",
    "InferenceFuture",
    "Session",
    "SessionPool",
    "check_inputs",
    "describe_input",
]
