"""Caches that an engine updates in the memory of its inputs, against PyTorch's attention."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.cached_models import FEATURES, HEADS, LENGTH, attention_step
from onnx import numpy_helper

from trt_native import BuildConfig, Plan, Session, build_plan
from trt_native.errors import SpecError

pytestmark = [pytest.mark.gpu, pytest.mark.backend]
torch = pytest.importorskip("torch")

WIDTH, STEPS = HEADS * FEATURES, 9
SHAPE = (1, HEADS, LENGTH, FEATURES)


@pytest.fixture
def tokens(rng):
    return rng.standard_normal((STEPS, 1, 1, WIDTH), np.float32)


def expected(model, tokens):
    """Causal attention over the whole sequence at once, in FP64; and its keys and values."""
    weights = {
        w.name: torch.from_numpy(numpy_helper.to_array(w).copy()).double()
        for w in onnx.load(model).graph.initializer
        if w.name in "qkvo"
    }
    x = torch.from_numpy(tokens).double().reshape(1, STEPS, WIDTH)
    q, k, v = (
        (x @ weights[name]).reshape(1, STEPS, HEADS, FEATURES).transpose(1, 2) for name in "qkv"
    )
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    y = found.transpose(1, 2).reshape(STEPS, WIDTH) @ weights["o"]
    return y.numpy(), k.numpy(), v.numpy()


def plan_of(path, cache_type="float32", precision="fp32"):
    model = attention_step(path / "m.onnx", cache_type)
    return model, build_plan(model, BuildConfig(precision=precision, in_place_caches=True))


def generate(session, tokens, dtype, **options):
    caches = {name: torch.zeros(SHAPE, dtype=dtype, device="cuda") for name in ("keys", "values")}
    rows = []
    for index, token in enumerate(tokens):
        inputs = {
            "x": torch.from_numpy(token).cuda(),
            "index": torch.tensor([index], device="cuda"),
            **caches,
        }
        outputs = session.run(inputs, **options)
        assert all(outputs[f"new_{name}"] is cache for name, cache in caches.items())
        rows.append(outputs["y"].cpu().numpy().ravel())
    return np.stack(rows), {name: cache.float().cpu().numpy() for name, cache in caches.items()}


@pytest.mark.parametrize(
    ("cache_type", "precision", "tolerance"),
    [("float32", "fp32", 1e-4), ("float32", "fp16", 5e-3), ("float16", "fp16", 5e-3)],
)
def test_steps_equal_attention_over_the_whole(tmp_path, tokens, cache_type, precision, tolerance):
    model, plan = plan_of(tmp_path, cache_type, precision)
    y, keys, values = expected(model, tokens)
    saved = plan.save(tmp_path / "m.plan")
    with Session(Plan.open(saved, ignore_manifest=True)) as session:  # the engine says what it is
        assert {t.name: t.alias for t in session.outputs} == {
            t.name: t.alias for t in plan.manifest.outputs
        }
        rows, caches = generate(session, tokens, getattr(torch, cache_type))
    scale = np.abs(y).max()
    np.testing.assert_allclose(rows, y, atol=tolerance * scale)
    for name, whole in (("keys", keys), ("values", values)):
        np.testing.assert_allclose(
            caches[name][:, :, :STEPS], whole, atol=tolerance * np.abs(whole).max()
        )
        assert not caches[name][:, :, STEPS:].any()


def test_graphs_change_nothing(tmp_path, tokens):
    _, plan = plan_of(tmp_path)
    found = []
    for graphs in (0, 32):
        with Session(plan, cuda_graphs=graphs) as session:
            x = torch.zeros(1, 1, WIDTH, device="cuda")
            index = torch.zeros(1, dtype=torch.int64, device="cuda")
            caches = {name: torch.zeros(SHAPE, device="cuda") for name in ("keys", "values")}
            out, rows = {"y": torch.empty_like(x)}, []
            for number, token in enumerate(tokens):
                x.copy_(torch.from_numpy(token))
                index.fill_(number)
                session.run({"x": x, "index": index, **caches}, out=out)
                rows.append(out["y"].clone())
            assert session.graph_count == (graphs > 0)
            found.append(
                torch.stack([*rows, *(c.sum() * torch.ones_like(x) for c in caches.values())])
            )
    assert torch.equal(*found)


def test_the_callers_own_graph(tmp_path, tokens):
    _, plan = plan_of(tmp_path)
    with Session(plan) as session:
        rows, expected_caches = generate(session, tokens, torch.float32)
        x = torch.zeros(1, 1, WIDTH, device="cuda")
        index = torch.zeros(1, dtype=torch.int64, device="cuda")
        caches = {name: torch.zeros(SHAPE, device="cuda") for name in ("keys", "values")}
        inputs, out = {"x": x, "index": index, **caches}, {"y": torch.empty_like(x)}
        session.run(inputs, out=out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            session.run(inputs, out=out, stream=torch.cuda.current_stream())
        for number, token in enumerate(tokens):
            x.copy_(torch.from_numpy(token))
            index.fill_(number)
            graph.replay()
            np.testing.assert_array_equal(out["y"].cpu().numpy().ravel(), rows[number])
        for name, cache in caches.items():
            np.testing.assert_array_equal(cache.cpu().numpy(), expected_caches[name])


def test_arrays_on_the_host_stay_as_they_are(tmp_path, tokens):
    _, plan = plan_of(tmp_path)
    with Session(plan) as session:
        rows, _ = generate(session, tokens, torch.float32)
        caches = {name: np.zeros(SHAPE, np.float32) for name in ("keys", "values")}
        for index, token in enumerate(tokens):
            before = {name: cache.copy() for name, cache in caches.items()}
            outputs = session.run({"x": token, "index": np.array([index]), **caches})
            np.testing.assert_equal(caches, before)
            caches = {name: outputs[f"new_{name}"] for name in caches}
            np.testing.assert_array_equal(outputs["y"].ravel(), rows[index])


def test_one_array_for_two_caches_is_refused(tmp_path):
    _, plan = plan_of(tmp_path)
    with Session(plan) as session:
        cache = torch.zeros(SHAPE, device="cuda")
        x, index = torch.zeros(1, 1, WIDTH, device="cuda"), torch.zeros(1, dtype=torch.int64)
        with pytest.raises(SpecError, match="'keys' and 'values' share memory that is written"):
            session.run({"x": x, "index": index.cuda(), "keys": cache, "values": cache})
