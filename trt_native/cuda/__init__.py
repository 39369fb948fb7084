"""The GPU: what it is, streams, events, memory and graphs, on top of cuda-python.

``cuda.core`` is used where it has a word for the thing, ``cuda.bindings`` where it has not, and for
the few calls that every inference makes, where a microsecond counts. No driver is touched before a
function of this package is called.
"""

from trt_native.cuda.arrays import DeviceArray
from trt_native.cuda.driver import (
    GpuInfo,
    device_ordinal,
    gpu_info,
    memory_info,
    require_gpu,
    select_gpu,
)
from trt_native.cuda.graphs import Graph
from trt_native.cuda.memory import (
    DeviceBuffer,
    PinnedBlock,
    PinnedPool,
    copy_host,
    copy_rows,
    copy_to_device,
    copy_to_host,
    fill_zeros,
)
from trt_native.cuda.streams import Event, Stream, is_capturing, stream_handle

__all__ = [
    "DeviceArray",
    "DeviceBuffer",
    "Event",
    "GpuInfo",
    "Graph",
    "PinnedBlock",
    "PinnedPool",
    "Stream",
    "copy_host",
    "copy_rows",
    "copy_to_device",
    "copy_to_host",
    "device_ordinal",
    "fill_zeros",
    "gpu_info",
    "is_capturing",
    "memory_info",
    "require_gpu",
    "select_gpu",
    "stream_handle",
]
