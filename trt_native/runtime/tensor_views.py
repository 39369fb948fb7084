"""Views of the caller's arrays: NumPy, PyTorch, CUDA array interface and DLPack."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401  (makes bfloat16 and float8 known to NumPy by name)
import numpy as np

from trt_native.arrays import Array
from trt_native.cuda import DeviceArray
from trt_native.errors import SpecError
from trt_native.shapes import Shape

__all__ = [
    "ALIGNMENT",
    "Array",
    "TensorView",
    "empty_like_factory",
    "foreign_result",
    "nbytes_of",
    "read",
    "torch_dtype",
    "torch_from_host",
    "torch_host",
    "torch_record_stream",
    "torch_stream",
]


ALIGNMENT = 256
"""Alignment of device addresses, in bytes (``IExecutionContext.setTensorAddress``)."""

_UNKNOWN_TO_NUMPY = {"bfloat16": "int16", "float8_e4m3fn": "int8", "float8_e8m0fnu": "int8"}


@dataclass(slots=True)
class TensorView:
    """View of a caller's array, on the host or the GPU.

    Attributes:
        kind: ``numpy``, ``torch`` or ``foreign``.
        value: The array itself.
        shape: Extents, in elements.
        dtype: NumPy or ml_dtypes name.
        host: The array on the host; None where it is on the GPU.
        pointer: Device address; 0 where it is on the host.
        contiguous: Whether it is in C order without gaps.
        producer: Handle of the stream that produces a foreign array; None where it is ready.
        ordinal: CUDA ordinal of its GPU; None on the host, and where it is unknown.
    """

    kind: str
    value: Any
    shape: Shape
    dtype: str
    host: Array | None = None
    pointer: int = 0
    contiguous: bool = True
    producer: int | None = None
    ordinal: int | None = None

    @property
    def on_device(self) -> bool:
        """Whether it is on the GPU."""
        return self.host is None

    @property
    def aligned(self) -> bool:
        """Whether TensorRT accepts its address."""
        return self.pointer % ALIGNMENT == 0

    def converted(self, dtype: str) -> TensorView:
        """Return a contiguous, aligned copy in this type.

        Raises:
            SpecError: it is neither NumPy's nor PyTorch's.
        """
        if self.kind == "numpy":
            return read(np.ascontiguousarray(self.value, dtype).reshape(self.shape))
        if self.kind == "torch":
            value = self.value.detach().to(torch_dtype(dtype)).contiguous()
            return read(value if value.data_ptr() % ALIGNMENT == 0 else value.clone())
        raise SpecError(
            f"an array of {type(self.value).__name__} cannot be cast here: give it contiguous,"
            f" {ALIGNMENT}-byte aligned and of type {dtype}"
        )


def read(value: Any) -> TensorView:
    """View a caller's array.

    Raises:
        SpecError: the value is not an array.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        return TensorView("numpy", array, array.shape, _numpy_name(array.dtype), array)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _read_torch(value)
    if isinstance(value, DeviceArray):
        name = value.dtype.name
        pointer, ordinal = value.pointer, value.ordinal
        return TensorView("foreign", value, value.shape, name, pointer=pointer, ordinal=ordinal)
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        return _read_interface(value, interface)
    if hasattr(value, "__dlpack__"):
        return _read_dlpack(value)
    raise SpecError(
        "expected a NumPy array, a torch tensor, or an object with __cuda_array_interface__ or"
        f" __dlpack__, got {type(value).__name__}"
    )


def _read_torch(value: Any) -> TensorView:
    dtype = _name_of(value.dtype)
    shape = tuple(value.shape)
    if value.is_cuda:
        return TensorView(
            "torch",
            value,
            shape,
            dtype,
            pointer=value.data_ptr(),
            contiguous=value.is_contiguous(),
            ordinal=value.get_device(),
        )
    if value.device.type != "cpu":
        raise SpecError(f"a torch tensor on {value.device}: give one on cpu or cuda")
    return TensorView("torch", value, shape, dtype, torch_host(value))


def torch_host(value: Any) -> Array:
    """Return the NumPy view of a CPU tensor, with ml_dtypes for types unknown to NumPy."""
    name = _name_of(value.dtype)
    detached = value.detach()
    if name not in _UNKNOWN_TO_NUMPY:
        array: Array = detached.numpy()
        return array
    carrier = getattr(sys.modules["torch"], _UNKNOWN_TO_NUMPY[name])
    view: Array = detached.view(carrier).numpy().view(np.dtype(name))
    return view


def torch_from_host(array: Array) -> Any:
    """Return a CPU tensor over an array's memory, which it keeps alive."""
    torch = sys.modules["torch"]
    carrier = _UNKNOWN_TO_NUMPY.get(array.dtype.name)
    if carrier is None:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(carrier)).view(getattr(torch, array.dtype.name))


def empty_like_factory(like: Any) -> Callable[[], Any]:
    """Return a function that allocates contiguous, uninitialized tensors like one."""
    shape, dtype, device = tuple(like.shape), like.dtype, like.device
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    torch = sys.modules["torch"]
    # Half the time of empty and new_empty, which look for a memory format.
    make = functools.partial(torch.empty_strided, shape, strides, dtype=dtype, device=device)
    try:
        # Half of that again; what PyTorch's own compiler calls. It allocates on the current GPU.
        quick = torch._C._dynamo.guards._empty_strided_cuda
    except AttributeError:
        return make
    ordinal = like.get_device()

    def make_quickly() -> Any:
        made = quick(shape, strides, dtype)
        return made if made.get_device() == ordinal else make()

    return make_quickly


def torch_record_stream(value: Any, stream: int) -> None:
    """Keep a tensor's memory from reuse until the work enqueued on a stream is done."""
    torch = sys.modules["torch"]
    value.record_stream(torch.cuda.ExternalStream(stream, value.device))


@functools.cache
def torch_dtype(name: str) -> Any:
    """Return the ``torch.dtype`` of a NumPy or ml_dtypes name."""
    return getattr(sys.modules["torch"], name)


@functools.cache
def _numpy_name(dtype: np.dtype[Any]) -> str:
    return str(dtype.name)  # NumPy builds the text in every call


@functools.cache
def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def torch_stream(ordinal: int) -> int:
    """Return the handle of PyTorch's current stream on this thread."""
    torch = sys.modules["torch"]
    # A tenth of the time of torch.cuda.current_stream; what PyTorch's own compiler calls.
    current = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if current is not None:
        return int(current(ordinal))
    return int(torch.cuda.current_stream(ordinal).cuda_stream)


@functools.lru_cache(4096)
def nbytes_of(shape: Shape, dtype: str) -> int:
    """Return the size of an array in bytes."""
    return math.prod(shape) * int(np.dtype(dtype).itemsize)


def _read_interface(value: Any, interface: dict[str, Any]) -> TensorView:
    dtype = np.dtype(interface["typestr"])
    shape = tuple(interface["shape"])
    strides = interface.get("strides")
    packed = np.empty(0, dtype).itemsize
    expected = []
    for extent in reversed(shape):
        expected.append(packed)
        packed *= extent
    own = getattr(value, "dtype", None)  # names what typestr cannot, such as bfloat16
    return TensorView(
        "foreign",
        value,
        shape,
        str(own) if dtype.kind == "V" and own is not None else dtype.name,
        pointer=int(interface["data"][0]),
        contiguous=strides is None or 0 in shape or tuple(strides) == tuple(reversed(expected)),
        producer=interface.get("stream"),
    )


def _read_dlpack(value: Any) -> TensorView:
    from cuda.core.utils import StridedMemoryView

    if value.__dlpack_device__()[0] == 1:  # kDLCPU
        array = np.from_dlpack(value)
        return TensorView("foreign", value, array.shape, array.dtype.name, array)
    try:
        # 1 is the legacy default stream: the producer makes the data ready in its order.
        view = StridedMemoryView.from_dlpack(value, stream_ptr=1)
    except Exception as error:
        raise SpecError(f"{type(value).__name__} cannot be read through DLPack: {error}") from None
    shape = tuple(view.shape)
    strides, packed = view.strides, 1
    contiguous = True
    for axis in reversed(range(len(shape))):
        contiguous &= strides is None or shape[axis] == 1 or strides[axis] == packed
        packed *= shape[axis]
    dtype = str(view.dtype) if view.dtype is not None else str(value.dtype)
    return TensorView(
        "foreign",
        value,
        shape,
        dtype,
        pointer=int(view.ptr),
        contiguous=contiguous or packed == 0,
        producer=1,
    )


def foreign_result(like: Any, result: DeviceArray) -> Any:
    """Return a result on the GPU as an array of an input's library, where that takes DLPack."""
    if isinstance(like, DeviceArray):
        return result
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return torch.as_tensor(result, device=like.device)
    take = _from_dlpack_of(like)
    return result if take is None else take(result)


def _from_dlpack_of(like: Any) -> Callable[[Any], Any] | None:
    namespace = getattr(like, "__array_namespace__", None)
    module = namespace() if namespace else sys.modules.get(type(like).__module__.split(".")[0])
    return getattr(module, "from_dlpack", None)
