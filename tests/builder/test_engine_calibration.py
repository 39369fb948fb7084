"""Engine-based calibration without a GPU: groups really built by TensorRT-RTX, then run elsewhere.

What the GPU does, tests/gpu/test_quantized_gpu.py tests.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from onnx.reference import ReferenceEvaluator

from trt_native.backends.registry import load_backend
from trt_native.builder import engine_calibration as activations
from trt_native.builder.engine_calibration import EngineActivations, activation_source
from trt_native.calibration.collect import ReferenceActivations, calibrate
from trt_native.calibration.ranges import Histogram, magnitude
from trt_native.calibration.rows import RowReader
from trt_native.config import CalibrationMethod, CalibrationRunner, CpuRuntime
from trt_native.cuda import GpuInfo
from trt_native.errors import CalibrationError, CudaError, UnsupportedError
from trt_native.graph.onnx_file import read_model
from trt_native.graph.quantizable import quantizable_tensors
from trt_native.passes.autocast import autocast
from trt_native.passes.quantize_rules import attention_operands

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend


class Statistics:
    """What DeviceStatistics does, on the CPU."""

    def __init__(self, names):
        self.found = dict.fromkeys(names, 0.0)
        self.filled = {}

    def measure(self, name, tensor, dtype):
        assert tensor.dtype == np.dtype(dtype)
        self.found[name] = max(self.found[name], magnitude(tensor))

    def peaks(self):
        return dict(self.found)

    def start_histograms(self, limits):
        self.filled = {name: Histogram(limit) for name, limit in limits.items()}

    def count(self, name, tensor, dtype):
        if name in self.filled:
            self.filled[name].add(tensor)

    def wait(self):
        pass

    def histograms(self):
        return self.filled


class Backend:
    """The real one, which remembers what it built."""

    def __init__(self):
        self.real = load_backend("rtx")
        self.name, self.product, self.version = self.real.name, self.real.product, self.real.version
        self.parser_refusals = self.real.parser_refusals
        self.capabilities = self.real.capabilities
        self.requests, self.results = [], []

    def build(self, request, progress, cancelled):
        self.requests.append((request, onnx.load(request.onnx, load_external_data=False)))
        self.results.append(self.real.build(request, progress, cancelled))
        return self.results[-1]


class OnReference(EngineActivations):
    """Builds engines, but takes the tensors that they hand out from ``onnx.reference``."""

    def __init__(self, path, free=2**40, **options):
        self.backend = Backend()
        super().__init__(self.backend, **options)
        self.evaluator = ReferenceEvaluator(str(path))
        self.gpu = GpuInfo("made up", "9.0", "13.0", free, free)
        self.runs, self.devices = [], []

    def _gpu(self):
        return self.gpu

    def _open(self, plan, group, resources, device="cuda"):
        self.devices.append(device)
        types = {t.name: t.dtype for t in self.backend.results[-1].tensors if t.mode == "output"}
        assert tuple(types) == group.tensors
        assert plan.header.product == "TensorRT-RTX"

        def run(batch):
            self.runs.append(group.number)
            values = self.evaluator.run(None, dict(batch), intermediate=True)
            return {name: (values[name].astype(types[name]), types[name]) for name in types}

        return run

    def _statistics(self, tensors, resources):
        return Statistics(tensors)


@pytest.fixture
def dense(tmp_path):
    return tiny_models.dense(tmp_path / "m.onnx", layers=6)


@pytest.fixture
def batches(rng):
    return [{"h0": rng.standard_normal((n, 64), np.float32)} for n in (4, 2, 4)]


@pytest.mark.parametrize("method", list(CalibrationMethod), ids=str)
def test_the_same_cache_as_by_reference(dense, batches, method):
    source = OnReference(dense)
    found = calibrate(dense, batches, method=method, source=source)
    expected = calibrate(dense, batches, method=method)
    assert found.scales == expected.scales
    assert list(found.scales) == [f"h{i}" for i in range(6)]
    assert found.provenance.shapes == expected.provenance.shapes == {"h0": ("4x64", "2x64")}
    assert (
        found.provenance.runner
        == f"{source.backend.product} {source.backend.version}, engine in FP32"
    )
    assert source.runs == [1] * (3 if method is CalibrationMethod.MINMAX else 6)


def test_the_same_rows_as_by_reference(dense, batches):
    readers = [RowReader("h0"), RowReader("h3"), RowReader("h4")]
    source = OnReference(dense, memory_bytes=4 * 64 * 4)
    found = source.rows(read_model(dense), readers, batches, None)
    expected = ReferenceActivations(CpuRuntime.ONNX).rows(read_model(dense), readers, batches, None)
    assert found.keys() == expected.keys() == set(readers)
    for reader, rows in expected.items():
        assert rows.shape == (10, 64)
        np.testing.assert_array_equal(found[reader], rows)
    np.testing.assert_array_equal(found[readers[0]], np.concatenate([b["h0"] for b in batches]))
    assert source.groups == 2
    assert source.devices == ["cpu", "cpu"]


def test_groups_stay_under_the_memory(dense, batches):
    one = 4 * 64 * 4  # bytes of a tensor for the largest batch
    source = OnReference(dense, memory_bytes=2 * one + 1)
    found = calibrate(dense, batches, source=source)
    assert found.scales == calibrate(dense, batches).scales
    assert source.groups == 3
    assert source.runs == [1] * 6 + [2] * 6 + [3] * 6
    names = [[o.name for o in model.graph.output] for _, model in source.backend.requests]
    assert names == [["h1", "h2"], ["h3", "h4"], ["h5"]]
    # Each engine has only the layers that its tensors need, and weights are written once.
    assert [len(model.graph.node) for _, model in source.backend.requests] == [4, 8, 10]
    locations = {
        entry.value
        for _, model in source.backend.requests
        for weight in model.graph.initializer
        for entry in weight.external_data
        if entry.key == "location"
    }
    assert locations == {"model.data"}
    (profile,) = source.backend.requests[0][0].profiles
    assert str(profile.shapes["h0"]) == "2x64:4x64:4x64"


def test_what_is_too_large_is_left_out_with_the_reason(dense, batches):
    found = calibrate(dense, batches, source=OnReference(dense, memory_bytes=1000))
    assert list(found.scales) == ["h0"], "an input needs no engine"
    reason = "takes 1.0 KiB of GPU memory, more than the 1000 B given to it"
    assert found.provenance.skipped == {f"h{i}": reason for i in range(1, 6)}


def test_half_of_the_free_memory_is_the_most_by_default(dense, batches, monkeypatch):
    monkeypatch.setattr(activations, "default_workspace", lambda gpu: 2**30)
    source = OnReference(dense, free=4 * 64 * 4 * 6)
    calibrate(dense, batches, source=source)
    assert source.groups == 2


def test_in_fp16(dense, batches, monkeypatch):
    source = OnReference(dense, by=CalibrationRunner.ENGINE_FP16)
    found = calibrate(dense, batches, method=CalibrationMethod.MINMAX, source=source)
    expected = calibrate(dense, batches, method=CalibrationMethod.MINMAX)
    assert {t.dtype for t in source.backend.results[0].tensors if t.mode == "output"} == {"float16"}
    assert found.provenance.runner.endswith("engine in FP16")
    for name in expected.scales:
        assert found.scales[name] == pytest.approx(expected.scales[name], rel=2**-10)
    large = OnReference(dense)
    monkeypatch.setattr(activations, "_LARGE", 1000)
    calibrate(dense, batches, source=large)
    assert large.name.endswith("engine in FP16")


def attention(path, rng):
    """Linear layers to query, key, value and output around softmax(q k^T) v."""
    text = """
    <ir_version: 10, opset_import: ["": 18]>
    attention (float[batch, 8, 32] x) => (float[batch, 8, 32] y)
    <float[32, 32] wq, float[32, 32] wk, float[32, 32] wv, float[32, 32] wo>
    {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        kt = Transpose<perm = [0, 2, 1]>(k)
        scores = MatMul(q, kt)
        p = Softmax(scores)
        o = MatMul(p, v)
        y = MatMul(o, wo)
    }
    """
    model = onnx.parser.parse_model(text)
    for name in ("wq", "wk", "wv", "wo"):
        weight = rng.standard_normal((32, 32), np.float32) / 6
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, path)
    return path


def test_attention_stays_whole(tmp_path, rng):
    path = attention(tmp_path / "m.onnx", rng)
    graph = read_model(path)
    assert quantizable_tensors(graph) == ["x", "q", "kt", "p", "v", "o"]
    assert attention_operands(graph.graph) == {"q", "kt", "p", "v"}
    source = OnReference(path)
    batches = [{"x": rng.standard_normal((2, 8, 32), np.float32)} for _ in range(2)]
    found = calibrate(path, batches, source=source)
    expected = calibrate(path, batches, source=ReferenceActivations(CpuRuntime.ONNX))
    assert found.scales == {name: expected.scales[name] for name in ("x", "o")}
    assert set(found.provenance.skipped) == {"q", "kt", "p", "v"}
    assert "attention" in found.provenance.skipped["p"]


@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_not_finite_names_batch_and_tensor(dense, batches, rng):
    batches[1]["h0"][0, 0] = np.nan
    with pytest.raises(CalibrationError, match=r"^batch 1: tensor 'h0' has NaN or infinite values"):
        calibrate(dense, batches, source=OnReference(dense))
    batches[1]["h0"] = rng.standard_normal((2, 64), np.float32) * 1e5
    half = OnReference(dense, by=CalibrationRunner.ENGINE_FP16)
    with pytest.raises(CalibrationError, match=r"^batch 1: tensor 'h[1-5]' has NaN or infinite"):
        calibrate(dense, batches, source=half)


def test_an_iterator_is_kept(dense, batches):
    found = calibrate(dense, iter(batches), source=OnReference(dense, memory_bytes=2000))
    assert found.scales == calibrate(dense, batches).scales


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], "there are no batches"),
        ([{"other": np.zeros(3)}], "tensor 'h0'"),
        ([{"h0": np.zeros((1, 64), np.float32)}, {"h0": np.zeros(64, np.float32)}], "rank"),
    ],
)
def test_data_that_does_not_fit(dense, broken, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate(dense, broken, source=OnReference(dense))


def test_changing_data_is_noticed(dense, batches):
    class Shrinking:
        def __init__(self):
            self.left = [3, 3, 3, 3, 2]

        def __iter__(self):
            return iter(batches[: self.left.pop(0)])

    with pytest.raises(CalibrationError, match="had 3 batches at first and 2 the second time"):
        calibrate(dense, Shrinking(), source=OnReference(dense))


@pytest.mark.slow
def test_every_tensor_of_the_golden_unet_survives_fp16(golden_onnx):
    model = read_model(golden_onnx)
    tensors = set(quantizable_tensors(model)) - attention_operands(model.graph)
    given = {value.name for value in model.graph.inputs}
    autocast(model, ir.DataType.FLOAT16)
    values = {value.name: value for node in model.graph for value in node.outputs}
    types = {str(values[name].dtype) for name in tensors - given}
    assert types <= {"FLOAT16", "FLOAT"}


def test_the_source_follows_the_machine(monkeypatch):
    no_gpu = CudaError("cannot find a GPU: this machine has no NVIDIA driver (libcuda)")

    def refuse(ordinal=0):
        raise no_gpu

    monkeypatch.setattr(activations, "require_gpu", refuse)
    monkeypatch.setattr(activations, "gpu_info", lambda ordinal=0: None)
    for by in (CalibrationRunner.AUTO, CalibrationRunner.REFERENCE):
        assert isinstance(activation_source(by), ReferenceActivations)
    for by in (CalibrationRunner.ENGINE, CalibrationRunner.ENGINE_FP16):
        with pytest.raises(CudaError, match=r"need a GPU: cannot find a GPU: .*take them by ref"):
            activation_source(by)
    monkeypatch.setattr(activations, "require_gpu", lambda ordinal=0: "a GPU")
    monkeypatch.setattr(activations, "gpu_info", lambda ordinal=0: "a GPU")
    assert isinstance(activation_source(CalibrationRunner.AUTO, backend="rtx"), EngineActivations)
    assert isinstance(activation_source(CalibrationRunner.REFERENCE), ReferenceActivations)

    def lacking(name):
        raise UnsupportedError("no TensorRT is installed")

    monkeypatch.setattr(activations, "load_backend", lacking)
    assert isinstance(activation_source(CalibrationRunner.AUTO), ReferenceActivations)
    with pytest.raises(UnsupportedError, match="no TensorRT"):
        activation_source(CalibrationRunner.ENGINE)
