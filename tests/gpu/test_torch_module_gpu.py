"""A plan in the place of a PyTorch module."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny_models
from onnx import TensorProto, helper

from trt_native import BuildConfig, Precision, ProfileSpec, Session, build_plan
from trt_native.errors import CudaError, SpecError, UnsupportedError

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.backend]


@pytest.fixture
def module(tmp_path):
    from trt_native import TensorRTModule

    t = tiny_models.tensor
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Mul", ["a", "b"], ["p"]), helper.make_node("Relu", ["p"], ["y"])],
        [t("a", TensorProto.FLOAT, ["n", 64]), t("b", TensorProto.FLOAT, ["n", 64])],
        [t("y", TensorProto.FLOAT, ["n", 64])],
    )
    spec = ProfileSpec.parse(["n=1:4:16"])
    plan = build_plan(path, BuildConfig(profiles=(spec,), precision=Precision.FP32))
    module = TensorRTModule(plan)
    yield module
    module.close()


def tensors(n=4, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return [torch.randn(n, 64, device="cuda", generator=generator) for _ in range(2)]


def reference(a, b):
    return torch.relu(a * b)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_calls(module, mode):
    with mode():
        for seed, n in enumerate((4, 4, 4, 7, 1)):
            a, b = tensors(n, seed)
            assert torch.equal(module(a, b), reference(a, b))
            assert torch.equal(module(b=b, a=a), reference(a, b))
            assert torch.equal(module(a, b=b), reference(a, b))


def test_the_output_follows_on_the_current_stream(module):
    a, b = tensors()
    module(a, b)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        c = a * 2
        y = module(c, b)
        assert not stream.query()
        z = y + 1
    stream.synchronize()
    assert torch.equal(z, reference(a * 2, b) + 1)


def test_inside_a_captured_graph(module):
    a, b = tensors()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            module(a * 1, b)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(a * 1, b) + 1
    for seed in range(3):
        c, d = tensors(seed=seed)
        a.copy_(c)
        b.copy_(d)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, reference(c, d) + 1)


def test_capture_before_the_first_run_is_refused(module):
    a, b = tensors()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(CudaError, match="run it once before"), torch.cuda.graph(graph):
        module(a, b)
    torch.cuda.synchronize()
    assert torch.equal(module(a, b), reference(a, b))


def test_with_torch_compile_around_it(module):
    @torch.compile(backend="eager", fullgraph=False)
    def around(a, b):
        return module(torch.sin(a), b) * 2

    a, b = tensors()
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(around(a, b), reference(torch.sin(a), b) * 2)


def test_autograd_is_refused(module):
    a, b = tensors()
    a.requires_grad_()
    with pytest.raises(UnsupportedError, match="has no backward"):
        module(a, b)
    with torch.no_grad():
        assert torch.equal(module(a, b), reference(a, b))


def test_wrong_calls(module):
    a, b = tensors()
    with pytest.raises(SpecError, match="3 inputs for an engine with 2: a, b"):
        module(a, b, a)
    with pytest.raises(SpecError, match="given twice, by position and by name: a"):
        module(a, a=b)
    with pytest.raises(SpecError, match="'b' is missing"):
        module(a)


def test_a_session_that_is_given_stays_open(module):
    from trt_native import TensorRTModule

    with Session(module.session.engine) as session:
        other = TensorRTModule(session)
        a, b = tensors()
        assert torch.equal(other(a, b), reference(a, b))
        other.close()
        assert np.array_equal(session.run({"a": a, "b": b})["y"].cpu(), reference(a, b).cpu())
    assert "a: float32 n x 64" in repr(module)
