"""Running an engine: one execution context with its buffers, streams and graphs."""

from trt_native.session.binding import check_inputs, describe_input
from trt_native.session.memory import SharedMemory
from trt_native.session.pending import Pending
from trt_native.session.pool import SessionPool
from trt_native.session.session import Session
from trt_native.session.staging import Call

__all__ = [
    "Call",
    "Pending",
    "Session",
    "SessionPool",
    "SharedMemory",
    "check_inputs",
    "describe_input",
]
