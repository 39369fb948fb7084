#!/usr/bin/env python3
"""Measure one way to run a plan, alone in its process; peers.py starts one for each measurement.

A process imports what its way needs and nothing else. Its results are compared with the reference
and with those of bare TensorRT before anything is timed. It prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["FLOOR", "PASS", "WAYS", "Setup", "Unavailable", "Way", "WrongResultError", "measure"]

FLOOR = "bare TensorRT"  # whose ways are what any runtime adds to
PASS = 100  # calls in one pass of what overlaps them
AHEAD = 3  # that trtutils' queues hold
WARM_CALLS, WARM_SECONDS = 20, 0.5
LEAST_SAMPLES = 20
SAME = 1e-5  # against bare TensorRT, which runs the same kernels
BARE_RESULT = "bare.npy"

Array = np.ndarray[Any, np.dtype[np.float32]]


class Unavailable(Exception):  # noqa: N818  # not an error: the reason why a peer is left out
    """The way cannot be taken on this machine."""


class WrongResultError(Exception):
    """A way does not compute what it should."""


@dataclass(frozen=True)
class Setup:
    """What all ways share, in one folder.

    Attributes:
        folder: With "plan", "x.npy" (two inputs) and "y.npy" (what PyTorch computes of them).
        module: The TensorRT that the plan is for: "tensorrt" or "tensorrt_rtx".
        version: Its version.
        shape: Of the input "x" and the output "y", which are float32.
        tolerance: Relative L2 error against PyTorch that the plan's precision may cause.
    """

    folder: str
    module: str
    version: str
    shape: tuple[int, ...]
    tolerance: float

    @property
    def plan(self) -> str:
        """Path of the plan."""
        return str(Path(self.folder, "plan"))

    def load(self, name: str) -> Array:
        """One of the folder's arrays."""
        array: Array = np.load(Path(self.folder, name), allow_pickle=False)
        return array

    def save(self) -> None:
        """Write what :meth:`read` reads."""
        Path(self.folder, "setup.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: str) -> Setup:
        """The setup of a folder."""
        fields = json.loads(Path(folder, "setup.json").read_text())
        return cls(**{**fields, "folder": folder, "shape": tuple(fields["shape"])})


@dataclass(frozen=True)
class Runner:
    """A loaded plan.

    Attributes:
        fill: Put an input where each call reads it.
        call: One call, which returns when the result is there; this is timed.
        take: A copy of the output in what a call returned.
        calls: Inferences in one call.
    """

    fill: Callable[[Array], object]
    call: Callable[[], Any]
    take: Callable[[Any], Array]
    calls: int = 1


Load = Callable[[Setup], AbstractContextManager[Runner]]


@dataclass(frozen=True)
class Way:
    """A way to run the plan.

    Attributes:
        peer: Whose.
        memory: Where inputs and outputs are: "GPU" or "host".
        text: What is given and asked for.
        load: Loads the plan.
    """

    peer: str
    memory: str
    text: str
    load: Load


@contextlib.contextmanager
def _bare_gpu(setup: Setup, *, graph: bool) -> Iterator[Runner]:
    with _bare(setup) as bare:

        def fill(x: Array) -> None:
            np.copyto(bare.host["x"], x)
            bare.upload()
            bare.synchronize()

        def call() -> None:
            bare.replay() if graph else bare.enqueue()
            bare.synchronize()

        def take(_: object) -> Array:
            bare.download()
            bare.synchronize()
            return np.array(bare.host["y"])

        yield Runner(fill, call, take)


@contextlib.contextmanager
def _bare_host(setup: Setup) -> Iterator[Runner]:
    x: Array = np.empty(setup.shape, np.float32)
    with _bare(setup) as bare:

        def call() -> Array:
            np.copyto(bare.host["x"], x)
            bare.upload()
            bare.replay()
            bare.download()
            bare.synchronize()
            return np.array(bare.host["y"])

        yield Runner(functools.partial(np.copyto, x), call, np.array)


@contextlib.contextmanager
def _bare(setup: Setup) -> Iterator[Any]:
    module: Any = importlib.import_module("bare")
    trt: Any = importlib.import_module(setup.module)
    module.use_gpu()
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(Path(setup.plan).read_bytes())
    bare = module.Bare(engine.create_execution_context(), np.zeros(setup.shape, np.float32))
    try:
        yield bare
    finally:
        bare.close()


@contextlib.contextmanager
def _session_gpu(setup: Setup) -> Iterator[Runner]:
    torch, x = _torch_input(setup)
    with _session(setup) as session:
        inputs = {"x": x}
        yield Runner(
            functools.partial(_fill_tensor, torch, x),
            lambda: session.run(inputs)["y"],
            lambda y: y.cpu().numpy(),
        )


@contextlib.contextmanager
def _session_host(setup: Setup, *, overlapped: bool) -> Iterator[Runner]:
    importlib.import_module("torch")  # whose threads then copy
    x: Array = np.empty(setup.shape, np.float32)
    inputs = {"x": x}
    with _session(setup) as session:

        def run_all() -> Array:
            for result in session.map(itertools.repeat(inputs, PASS)):
                y: Array = result["y"]
            return y

        call = run_all if overlapped else lambda: session.run(inputs)["y"]
        fill = functools.partial(np.copyto, x)
        yield Runner(fill, call, np.array, PASS if overlapped else 1)


def _session(setup: Setup) -> Any:
    return importlib.import_module("trt_native").Session(setup.plan)


def _torch_input(setup: Setup) -> tuple[Any, Any]:
    torch: Any = importlib.import_module("torch")
    return torch, torch.empty(setup.shape, dtype=torch.float32, device="cuda")


def _fill_tensor(torch: Any, tensor: Any, x: Array) -> None:
    tensor.copy_(torch.from_numpy(x))
    torch.cuda.synchronize()


@contextlib.contextmanager
def _polygraphy_view(setup: Setup, *, graph: bool) -> Iterator[Runner]:
    with _polygraphy(setup, graph=graph) as infer:
        cuda: Any = importlib.import_module("polygraphy.cuda")
        with cuda.DeviceArray(setup.shape) as x:  # a DeviceView that owns its memory; float32
            yield Runner(
                x.copy_from, lambda: infer(x, copy_outputs_to_host=False), lambda y: y.numpy()
            )


@contextlib.contextmanager
def _polygraphy_torch(setup: Setup, *, after_numpy: bool) -> Iterator[Runner]:
    torch, x = _torch_input(setup)

    def take(y: Any) -> Array:
        array: Array = y.cpu().numpy() if isinstance(y, torch.Tensor) else y.numpy()
        return array

    with _polygraphy(setup) as infer:
        if after_numpy:  # it keeps the output buffers of its first call, and these cost it less
            infer(np.zeros(setup.shape, np.float32))
        yield Runner(
            functools.partial(_fill_tensor, torch, x),
            lambda: infer(x, copy_outputs_to_host=False),
            take,
        )


@contextlib.contextmanager
def _polygraphy_host(setup: Setup) -> Iterator[Runner]:
    x: Array = np.empty(setup.shape, np.float32)
    with _polygraphy(setup) as infer:
        yield Runner(functools.partial(np.copyto, x), lambda: infer(x), np.array)


@contextlib.contextmanager
def _polygraphy(setup: Setup, *, graph: bool = False) -> Iterator[Callable[..., Any]]:
    """A call of a ``TrtRunner``; with ``graph`` TensorRT-RTX captures a CUDA graph by itself."""
    if graph and setup.module != "tensorrt_rtx":
        raise Unavailable("only TensorRT-RTX captures CUDA graphs by itself")
    # Both variables are read when Polygraphy is first imported, or first uses CUDA.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if setup.module == "tensorrt_rtx" else "0"
    found = [str(p) for path in sys.path if path for p in Path(path).glob("nvidia/*/lib")]
    runtime = [folder for folder in found if list(Path(folder).glob("libcudart.so*"))]
    known = os.environ.get("LD_LIBRARY_PATH", "")
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (known, *runtime)))
    backend: Any = importlib.import_module("polygraphy.backend.trt")
    common: Any = importlib.import_module("polygraphy.backend.common")
    engine = backend.EngineFromBytes(common.BytesFromPath(setup.plan))()
    loaded = _capturing_context(setup, engine) if graph else engine
    with backend.TrtRunner(loaded) as runner:
        yield lambda x, **options: runner.infer({"x": x}, check_inputs=False, **options)["y"]


def _capturing_context(setup: Setup, engine: Any) -> Any:
    trt: Any = importlib.import_module(setup.module)
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config)


@contextlib.contextmanager
def _trtutils_gpu(setup: Setup) -> Iterator[Runner]:
    trtutils, bare = _trtutils(setup), importlib.import_module("bare")
    engine = trtutils.TRTEngine(setup.plan, warmup=True)
    with _device_memory(setup, bare) as x:

        def call() -> int:
            (y,) = engine.raw_exec([x], no_warn=True)
            trtutils.core.stream_synchronize(engine.stream)
            return int(y)

        yield Runner(
            functools.partial(_upload, bare, x), call, functools.partial(_download, setup, bare)
        )


@contextlib.contextmanager
def _trtutils_host(setup: Setup) -> Iterator[Runner]:
    engine = _trtutils(setup).TRTEngine(setup.plan, warmup=True)
    x: Array = np.empty(setup.shape, np.float32)
    yield Runner(
        functools.partial(np.copyto, x), lambda: engine.execute([x], no_copy=True)[0], np.array
    )


@contextlib.contextmanager
def _trtutils_parallel(setup: Setup) -> Iterator[Runner]:
    engines = _trtutils(setup).ParallelTRTEngines([setup.plan] * 2, warmup=True)
    x: Array = np.empty(setup.shape, np.float32)
    rounds = PASS // 2  # each of the two engines runs in its thread

    def call() -> Array:
        for _ in range(AHEAD):
            engines.submit([[x], [x]])
        for done in range(rounds):
            results = engines.retrieve()
            if done + AHEAD < rounds:
                engines.submit([[x], [x]])
        y: Array = results[-1][0]
        return y

    try:
        yield Runner(functools.partial(np.copyto, x), call, np.array, PASS)
    finally:
        engines.stop()


def _trtutils(setup: Setup) -> Any:
    """Import trtutils, which knows TensorRT-RTX only if that has TensorRT's name."""
    trt: Any = importlib.import_module(setup.module)
    if not hasattr(trt, "IInt8EntropyCalibrator2"):  # a base of its calibrator, unused here
        trt.IInt8EntropyCalibrator2 = object
    sys.modules["tensorrt"] = trt
    return importlib.import_module("trtutils")


@contextlib.contextmanager
def _onnxruntime_gpu(setup: Setup) -> Iterator[Runner]:
    session, bare = _onnxruntime(setup, graph=True), importlib.import_module("bare")
    with _device_memory(setup, bare) as x, _device_memory(setup, bare) as y:
        binding = session.io_binding()
        binding.bind_input("x", "cuda", 0, np.float32, setup.shape, x)
        binding.bind_output("y", "cuda", 0, np.float32, setup.shape, y)

        def call() -> int:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return y

        yield Runner(
            functools.partial(_upload, bare, x), call, functools.partial(_download, setup, bare)
        )


@contextlib.contextmanager
def _onnxruntime_host(setup: Setup) -> Iterator[Runner]:
    session = _onnxruntime(setup, graph=False)
    x: Array = np.empty(setup.shape, np.float32)
    yield Runner(functools.partial(np.copyto, x), lambda: session.run(["y"], {"x": x})[0], np.array)


def _onnxruntime(setup: Setup, *, graph: bool) -> Any:
    """A session of ONNX Runtime's plug-in for TensorRT-RTX, with the plan in an EPContext node.

    Raises:
        Unavailable: the plug-in is for another TensorRT, or finds no GPU.
    """
    if setup.module != "tensorrt_rtx":
        raise Unavailable("the plan is not one of TensorRT-RTX")
    ort: Any = importlib.import_module("onnxruntime")
    plugin: Any = importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")
    release = tuple(map(int, plugin.__version__.split(".")[:2]))
    folder = Path(plugin.get_library_path()).parent
    brought = sorted(p.name.split(".so.")[1] for p in folder.glob("libtensorrt_rtx.so.*.*"))
    if not any(setup.version.startswith(f"{version}.") for version in brought):
        raise Unavailable(
            f"plug-in {plugin.__version__} brings TensorRT-RTX {', '.join(brought) or 'none'},"
            f" the plan is of {setup.version}"
        )
    for library in folder.glob("libcudart.so.*"):  # which it brings, and does not find
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    others = {device.ep_name for device in ort.get_ep_devices()}
    ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name not in others]
    if not devices:
        raise Unavailable(f"plug-in {plugin.__version__} finds no GPU that it supports")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {"enable_cuda_graph": str(int(graph))}
    if release >= (0, 5):
        settings["nv_persistent_context_memory"] = "1"
    options.add_provider_for_devices(devices[:1], settings)
    model = _context_model(setup, devices[0].ep_name)
    return ort.InferenceSession(model, sess_options=options)


def _context_model(setup: Setup, provider: str) -> bytes:
    """An ONNX model that consists of the plan, for an execution provider."""
    from onnx import TensorProto, helper

    node = helper.make_node(
        "EPContext",
        ["x"],
        ["y"],
        "plan",
        domain="com.microsoft",
        main_context=0,
        embed_mode=1,
        ep_cache_context=Path(setup.plan).read_bytes(),
        source=provider,
        partition_name="plan",
    )
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, setup.shape) for name in ("x", "y")
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "plan", [x], [y]), opset_imports=opsets, ir_version=10
    )
    data: bytes = model.SerializeToString()
    return data


@contextlib.contextmanager
def _device_memory(setup: Setup, bare: Any) -> Iterator[int]:
    """Memory on the GPU for one array, by its address."""
    bare.use_gpu()
    address = int(bare.call(bare.driver.cuMemAlloc(4 * int(np.prod(setup.shape)))))
    try:
        yield address
    finally:
        bare.call(bare.driver.cuMemFree(address))


def _upload(bare: Any, address: int, x: Array) -> None:
    bare.call(bare.driver.cuMemcpyHtoD(address, x.ctypes.data, x.nbytes))


def _download(setup: Setup, bare: Any, address: int) -> Array:
    y: Array = np.empty(setup.shape, np.float32)
    bare.call(bare.driver.cuMemcpyDtoH(y.ctypes.data, address, y.nbytes))
    return y


def _way(peer: str, memory: str, text: str, load: Callable[..., Any], **options: bool) -> Way:
    return Way(peer, memory, text, functools.partial(load, **options))


_SESSION = "trt_native"
_PLUGIN = "ONNX Runtime's TensorRT-RTX plug-in"
# The first gives the result that the others are compared with.
WAYS = {
    "bare": _way(FLOOR, "GPU", "CUDA graph replay", _bare_gpu, graph=True),
    "bare-enqueue": _way(FLOOR, "GPU", "enqueue", _bare_gpu, graph=False),
    "bare-numpy": _way(FLOOR, "host", "NumPy through page-locked memory, CUDA graph", _bare_host),
    "session": _way(_SESSION, "GPU", "Session.run, torch tensors", _session_gpu),
    "session-numpy": _way(_SESSION, "host", "Session.run, NumPy", _session_host, overlapped=False),
    "session-map": _way(_SESSION, "host", "Session.map, NumPy", _session_host, overlapped=True),
    "polygraphy": _way("Polygraphy", "GPU", "DeviceView", _polygraphy_view, graph=False),
    "polygraphy-graph": _way(
        "Polygraphy", "GPU", "DeviceView, whole-graph capture", _polygraphy_view, graph=True
    ),
    "polygraphy-torch": _way(
        "Polygraphy", "GPU", "torch tensors", _polygraphy_torch, after_numpy=False
    ),
    "polygraphy-torch-warmed": _way(
        "Polygraphy", "GPU", "torch tensors, after NumPy", _polygraphy_torch, after_numpy=True
    ),
    "polygraphy-numpy": _way("Polygraphy", "host", "NumPy", _polygraphy_host),
    "trtutils": _way("trtutils", "GPU", "raw_exec", _trtutils_gpu),
    "trtutils-numpy": _way("trtutils", "host", "execute(no_copy), NumPy", _trtutils_host),
    "trtutils-parallel": _way(
        "trtutils", "host", "ParallelTRTEngines of two, NumPy", _trtutils_parallel
    ),
    "onnxruntime": _way(_PLUGIN, "GPU", "IO binding, CUDA graph", _onnxruntime_gpu),
    "onnxruntime-numpy": _way(_PLUGIN, "host", "run, NumPy", _onnxruntime_host),
}


def measure(setup: Setup, name: str, seconds: float) -> dict[str, Any]:
    """Check and time one way.

    Args:
        setup: The plan.
        name: Of :data:`WAYS`; the first writes the result that the others are compared with.
        seconds: How long to time calls.

    Returns:
        Nanoseconds of each call (of a pass of calls: by their number), how many inferences a call
        is, the relative L2 error of the result, and whether its bits are those of bare TensorRT.

    Raises:
        Unavailable, ImportError: the way cannot be taken here.
        WrongResultError: a result is not what it should be; nothing was timed.
    """
    with WAYS[name].load(setup) as runner:
        found = _checked(setup, name, runner)
        times = _times(runner, seconds)
    return {"ns": times, "calls": runner.calls, **found}


def _checked(setup: Setup, name: str, runner: Runner) -> dict[str, Any]:
    """Compare the results of both inputs, the second first: a stale one would be noticed."""
    inputs, expected = setup.load("x.npy"), setup.load("y.npy")
    found = np.empty_like(inputs)
    for index in (1, 0, 1, 0):
        runner.fill(inputs[index])
        found[index] = runner.take(runner.call())
        error = _relative_error(found[index], expected[index])
        if not error <= setup.tolerance:
            raise WrongResultError(f"relative L2 error {error:.2e} against PyTorch")
    if name == next(iter(WAYS)):
        np.save(Path(setup.folder, BARE_RESULT), found)
    bare = setup.load(BARE_RESULT)
    error = _relative_error(found, bare)
    if not error <= SAME:
        raise WrongResultError(f"relative L2 error {error:.2e} against bare TensorRT")
    return {
        "relative_l2": _relative_error(found, expected),
        "same_bits": bool(np.array_equal(found, bare)),
    }


def _relative_error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _times(runner: Runner, seconds: float) -> list[int]:
    """Nanoseconds of calls, after others that are not counted."""
    now, call = time.perf_counter_ns, runner.call
    until, done = now() + int(WARM_SECONDS * 1e9), 0
    while done < WARM_CALLS or now() < until:
        call()
        done += runner.calls
    gc.collect()
    times: list[int] = []
    until = now() + int(seconds * 1e9)
    while len(times) < LEAST_SAMPLES or now() < until:
        before = now()
        call()
        times.append((now() - before) // runner.calls)
    return times


def main(name: str, folder: str, seconds: str) -> None:
    """Print what :func:`measure` finds, or why there is nothing."""
    try:
        row = measure(Setup.read(folder), name, float(seconds))
    except (Unavailable, ImportError) as reason:
        row = {"unavailable": str(reason)}
    except Exception as error:  # whatever a peer raises belongs into the report
        row = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: peer_process.py WAY FOLDER SECONDS (peers.py makes the folder)")
    main(*sys.argv[1:])
    os._exit(0)  # what a peer does when the interpreter ends is no part of the comparison
