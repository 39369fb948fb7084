"""Stand-ins for the driver's events and page-locked memory, for what needs no GPU."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from trt_native.cuda import PinnedPool, memory, streams


@pytest.fixture
def driver(monkeypatch):
    """Logs what is asked of it; events are reached when the test says so."""
    log = []

    def logged(what, answer):
        return lambda *arguments: log.append(what) or (answer(),)

    made = SimpleNamespace(
        log=log,
        reached=False,
        CUresult=SimpleNamespace(CUDA_ERROR_NOT_READY=600),
        cuEventCreate=lambda flags: (0, 1),
        cuEventDestroy=lambda handle: (0,),
        cuEventRecord=logged("record", int),
        cuStreamWaitEvent=logged("hold", int),
        cuEventQuery=logged("query", lambda: 0 if made.reached else 600),
        cuEventSynchronize=logged("wait", int),
    )
    for module in (memory, streams):
        monkeypatch.setattr(module, "bindings", lambda: made)
    monkeypatch.setattr(streams, "make_current", lambda ordinal: None)
    return made


@pytest.fixture
def blocks(monkeypatch):
    """Ordinary memory in the place of page-locked memory, which takes a driver."""
    made = {}
    freed = []

    def allocate(size):
        buffer = ctypes.create_string_buffer(size)
        made[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    monkeypatch.setattr(PinnedPool, "_allocate", staticmethod(allocate))
    monkeypatch.setattr(memory, "_free_pinned", freed.append)
    return made, freed
