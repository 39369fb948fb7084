"""The module around a session; tests/gpu/test_torch_module_gpu.py runs it on engines."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trt_native.errors import SpecError, UnsupportedError
from trt_native.runtime import Session

torch = pytest.importorskip("torch")

from trt_native.runtime import torch_module  # noqa: E402
from trt_native.runtime.torch_module import TensorRTModule  # noqa: E402


class SubtractingSession(Session):
    """``y = a - b``, and ``z = a`` where two outputs are wanted."""

    def __init__(self, outputs=1):
        self._outputs = outputs
        self.closed = 0
        self._tensors = [SimpleNamespace(name=name) for name in "ab"]

    @property
    def engine(self):
        return SimpleNamespace(ordinal=0, inputs=self._tensors)

    def run(self, inputs, *, stream=None):
        assert stream is None  # tensors on the host are waited for
        found = {"y": inputs["a"] - inputs["b"], "z": inputs["a"]}
        return dict(list(found.items())[: self._outputs])

    def close(self):
        self.closed += 1


A, B = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 1.0])


def test_inputs_by_position_and_by_name():
    module = TensorRTModule(SubtractingSession())
    for found in (module(A, B), module(A, b=B), module(b=B, a=A)):
        assert torch.equal(found, A - B)


def test_several_outputs_are_a_dict():
    found = TensorRTModule(SubtractingSession(outputs=2))(A, B)
    assert list(found) == ["y", "z"]
    assert torch.equal(found["z"], A)


def test_inputs_that_do_not_fit():
    module = TensorRTModule(SubtractingSession())
    with pytest.raises(SpecError, match="3 inputs for an engine with 2: a, b"):
        module(A, B, A)
    with pytest.raises(SpecError, match="given twice, by position and by name: a"):
        module(A, a=A)


def test_gradients_are_refused_where_they_would_be_lost():
    module = TensorRTModule(SubtractingSession())
    wanted = A.clone().requires_grad_()
    with pytest.raises(UnsupportedError, match="has no backward"):
        module(wanted, B)
    with torch.no_grad():
        assert torch.equal(module(wanted, B), A - B)


def test_a_callers_session_stays_open():
    session = SubtractingSession()
    TensorRTModule(session).close()
    assert session.closed == 0


def test_an_own_session_is_closed(monkeypatch):
    opened = []

    class Opened(SubtractingSession):
        def __init__(self, engine, **options):
            super().__init__()
            opened.append((engine, options))

    monkeypatch.setattr(torch_module, "Session", Opened)
    module = TensorRTModule("net.plan", weight_budget=7)
    assert opened == [("net.plan", {"weight_budget": 7})]
    module.close()
    assert module.session.closed == 1
