"""Weights of a loaded engine, replaced in place, against plans built from these weights."""

from __future__ import annotations

import resource

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.metrics import relative_error
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_native import (
    BuildConfig,
    Engine,
    Plan,
    ProfileSpec,
    Session,
    TensorRTModule,
    build_plan,
    refit_plan,
)
from trt_native.cuda import DeviceArray, DeviceBuffer, Stream, memory_info
from trt_native.errors import PlanError, SpecError, UnsupportedError
from trt_native.runtime import ActivationMemory

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.backend]

X = np.random.default_rng(1).standard_normal((4, 64), np.float32)


def config(precision="fp32", **options):
    profile = ProfileSpec.parse(["batch=1:4:8"])
    tf32 = False if precision == "fp32" else None
    return BuildConfig(profiles=(profile,), precision=precision, tf32=tf32, refit=True, **options)


def weights_of(path):
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def with_weights(path, source, weights):
    model = onnx.load(source)
    for one in model.graph.initializer:
        one.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights[one.name]), one.name))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Four linear layers, MatMul and Gemm in turn."""
    return tiny_models.dense(tmp_path_factory.mktemp("live") / "m.onnx", layers=4)


@pytest.fixture(scope="module")
def new(model):
    return {name: -0.5 * array[::-1].copy() for name, array in weights_of(model).items()}


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def case(request, model, new, tmp_path_factory):
    """A plan, and the results of plans that were built with the old and the new weights."""
    path = with_weights(tmp_path_factory.mktemp("new") / "n.onnx", model, new)
    plan = build_plan(model, config(request.param))
    return plan, results(plan), results(build_plan(path, config(request.param)))


@pytest.fixture(scope="module")
def plan(model):
    return build_plan(model, config("fp16"))


@pytest.fixture
def session(plan):
    with Session(plan) as session:
        yield session


def run(session, x=X):
    return session.run({"h0": x})["h4"]


def results(plan):
    with Session(plan) as session:
        return run(session)


def device_array(array):
    """An array on the GPU of neither NumPy nor PyTorch."""
    buffer = DeviceBuffer()
    with Stream() as stream:
        buffer.reserve(array.nbytes, stream)
        buffer.upload(array, stream)
        stream.synchronize()
    return DeviceArray(buffer.release(), array.shape, array.dtype)


def cuda(array):
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


SOURCES = {
    "numpy": lambda array: array,
    "torch": lambda array: torch.from_numpy(np.ascontiguousarray(array)),
    "cuda": cuda,
    "strided": lambda array: cuda(array.T).T,
    "unaligned": lambda array: cuda(np.concatenate([[0], array.reshape(-1)]).astype("f4"))[
        1:
    ].reshape(array.shape),
    "foreign": device_array,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_results_are_those_of_a_build(case, new, kind):
    plan, before, after = case
    assert not np.array_equal(before, after)
    with Session(plan) as session:
        np.testing.assert_array_equal(run(session), before)
        session.engine.refit({name: SOURCES[kind](array) for name, array in new.items()})
        for _ in range(4):  # with and without CUDA graphs
            np.testing.assert_array_equal(run(session), after)
        session.engine.restore()
        for _ in range(4):
            np.testing.assert_array_equal(run(session), before)


def test_tensors_that_outlive_the_engine(plan, new):
    """Torch's allocator comes back to the stream that has read them when they are freed."""
    tensors = {name: cuda(array) for name, array in new.items()}
    with Session(plan) as session:
        session.engine.refit(tensors)
    tensors.clear()
    torch.cuda.synchronize()
    assert float(torch.ones(4, device="cuda").sum()) == 4


def test_values_in_the_type_of_the_plan(plan, model, new, tmp_path):
    after = results(build_plan(with_weights(tmp_path / "n.onnx", model, new), config("fp16")))
    for convert in (
        lambda a: a.astype(np.float16),
        lambda a: cuda(a).half(),
        lambda a: a.astype(np.float64),
    ):
        with Session(plan) as session:
            session.engine.refit({name: convert(array) for name, array in new.items()})
            np.testing.assert_array_equal(run(session), after)


def test_some_weights(plan, model, new, tmp_path):
    """The others stay, also where an earlier call has replaced them."""
    old = weights_of(model)
    with Session(plan) as session:
        mixed = dict(old)
        for name in ("w2", "w0"):
            session.engine.refit({name: cuda(new[name])})
            mixed[name] = new[name]
            path = with_weights(tmp_path / f"{name}.onnx", model, mixed)
            np.testing.assert_array_equal(run(session), results(build_plan(path, config("fp16"))))


def test_convolutions_in_groups(tmp_path):
    """In exact FP32, for which the parts of the weights are joined by groups."""
    random = np.random.default_rng(0)
    weights = {n: random.standard_normal((8, 4, 3, 3), np.float32) for n in ("w", "t")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="c", group=2, pads=[1] * 4),
        helper.make_node("ConvTranspose", ["a", "t"], ["y"], name="t", group=2, pads=[1] * 4),
    ]
    io = [[tiny_models.tensor(name, TensorProto.FLOAT, (2, 8, 8, 8))] for name in "xy"]
    path = tiny_models.save(tmp_path / "m.onnx", nodes, *io, weights)
    new = {name: array * np.float32(1.25) for name, array in weights.items()}
    options = BuildConfig(precision="fp32", refit=True)
    x = {"x": random.standard_normal((2, 8, 8, 8), np.float32)}
    with Session(build_plan(with_weights(tmp_path / "n.onnx", path, new), options)) as session:
        expected = session.run(x)["y"]
    for convert in (cuda, np.asarray):
        with Session(build_plan(path, options)) as session:
            session.engine.refit({name: convert(array) for name, array in new.items()})
            np.testing.assert_array_equal(session.run(x)["y"], expected)


def test_weights_that_a_stream_produces(case, new):
    """They may be changed and freed behind the call; a run on another stream waits for them."""
    plan, _, after = case
    stream, other = torch.cuda.Stream(), torch.cuda.Stream()
    x = cuda(X)
    torch.cuda.synchronize()
    with Session(plan) as session:
        run(session)
        with torch.cuda.stream(stream):
            made = {name: torch.zeros(a.shape, device="cuda") for name, a in new.items()}
            sources = {name: cuda(array) for name, array in new.items()}
            torch.cuda._sleep(200_000_000)
            for name, tensor in made.items():
                tensor.copy_(sources[name])
            session.engine.refit(made, stream=stream)
            for tensor in made.values():
                tensor.fill_(7)  # behind the refit
            del made, tensor
        with torch.cuda.stream(other):
            found = session.run({"h0": x}, stream=other)["h4"]
        other.synchronize()
        np.testing.assert_array_equal(found.cpu().numpy(), after)


def test_runs_in_flight_have_the_old_weights(case, new):
    plan, before, after = case
    with Session(plan) as session, Session(session.engine) as second:
        run(session)
        early = [one.submit({"h0": X}) for one in (session, second) for _ in range(20)]
        session.engine.refit({name: cuda(array) for name, array in new.items()})
        late = [one.submit({"h0": X}) for one in (session, second) for _ in range(20)]
        with Session(session.engine) as third:
            np.testing.assert_array_equal(run(third), after)
        for futures, expected in ((early, before), (late, after)):
            for future in futures:
                np.testing.assert_array_equal(future.result()["h4"], expected)


def test_sessions_that_share_memory_keep_it(plan, new):
    with Engine(plan) as engine, ActivationMemory(engine) as memory:
        sessions = [Session(engine, activation_memory=memory) for _ in range(2)]
        before = [run(session) for session in sessions]
        engine.refit(new)
        for session, old in zip(sessions, before, strict=True):
            assert not np.array_equal(run(session), old)
        engine.restore()
        for session, old in zip(sessions, before, strict=True):
            np.testing.assert_array_equal(run(session), old)
            session.close()


def test_a_module(plan, new):
    module = TensorRTModule(plan)
    x = cuda(X)
    with torch.inference_mode():
        before = [module(x) for _ in range(3)][-1].clone()
        module.session.engine.refit({name: cuda(array) for name, array in new.items()})
        after = [module(x) for _ in range(3)][-1].clone()
        module.session.engine.restore()
        assert torch.equal(module(x), before)
    assert not torch.equal(before, after)
    module.close()


def test_what_does_not_fit_changes_nothing(session, new):
    before = run(session)
    for weights in (
        {**new, "w9": new["w0"]},
        {**new, "w0": new["w0"][:3]},
        {**new, "w0": cuda(new["w0"]).int()},
        {**new, "w0": cuda(new["w0"]) + 65520 * 2},
        {**new, "w0": new["w0"] + np.float32(65520 * 2)},
    ):
        with pytest.raises(SpecError, match="do not fit the plan") as caught:
            session.engine.refit(weights)
        assert len(caught.value.problems) == 1
        np.testing.assert_array_equal(run(session), before)


def test_single_weights(model, new, tmp_path):
    plan = build_plan(model, config("fp16", refit_weights=("w1", "w[3]")))
    plan = Plan.open(plan.save(tmp_path / "m.plan"))
    old = weights_of(model)
    mixed = {name: (new if name in ("w1", "w3") else old)[name] for name in old}
    path = with_weights(tmp_path / "n.onnx", model, mixed)
    expected = results(build_plan(path, config("fp16", refit_weights=("w1", "w3"))))
    with Session(plan) as session:
        assert [one.name for one in session.engine.replaceable_weights] == ["w1", "w3"]
        before = run(session)
        with pytest.raises(SpecError, match="'w0' was not made replaceable"):
            session.engine.refit(new)
        np.testing.assert_array_equal(run(session), before)
        session.engine.refit({name: cuda(new[name]) for name in ("w1", "w3")})
        np.testing.assert_array_equal(run(session), expected)
    refitted = refit_plan(plan, path)
    np.testing.assert_array_equal(results(refitted), expected)
    assert refitted.manifest.refit["marked"] == ["w1", "w3"]
    other = with_weights(tmp_path / "o.onnx", model, new)
    with pytest.raises(SpecError, match="that the plan was built to keep") as caught:
        refit_plan(plan, other)
    assert caught.value.problems == ("'w0'", "'w2'")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_single_weights_of_a_norm_between_products(tmp_path, precision):
    """A model that TensorRT-RTX 1.6.1 does not build with the scale of the norm fixed."""
    path = tiny_models.group_norm_between_products(tmp_path / "m.onnx")
    options = BuildConfig(precision=precision, refit_weights="*.weight")
    x = {"x": np.random.default_rng(2).standard_normal((4, 16, 8, 8), np.float32)}
    old = weights_of(path)
    new = {name: -0.5 * old[name] for name in old if name.endswith(".weight")}
    fresh = with_weights(tmp_path / "n.onnx", path, {**old, **new})
    with (
        Session(build_plan(path, options)) as session,
        Session(build_plan(fresh, options)) as other,
    ):
        before, expected = session.run(x)["y"], other.run(x)["y"]
        session.engine.refit({**new, "ones": old["ones"]})
        np.testing.assert_array_equal(session.run(x)["y"], expected)
        session.engine.restore()
        np.testing.assert_array_equal(session.run(x)["y"], before)
    (reference,) = ReferenceEvaluator(onnx.load(path)).run(None, x)
    assert relative_error(before, reference) < (1e-4 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("names", [("w",), ("s",), ("s", "w")], ids="+".join)
def test_weights_that_tensorrt_combines(tmp_path, names):
    """One factor of a constant: the other stays as it was, or TensorRT asks for both."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((64, 64), np.float32), "s": np.full(64, 3, np.float32)}
    nodes = [
        helper.make_node("Mul", ["w", "s"], ["v"], name="scale"),
        helper.make_node("MatMul", ["h0", "v"], ["h4"], name="product"),
    ]
    io = [[tiny_models.tensor(name, TensorProto.FLOAT, ("batch", 64))] for name in ("h0", "h4")]
    path = tiny_models.save(tmp_path / "m.onnx", nodes, *io, weights)
    new = {name: weights[name] * np.float32(-0.5) for name in names}
    with Session(build_plan(path, config("fp16"))) as session:
        before = run(session)
        try:
            session.engine.refit(new)
            expected = results(
                build_plan(with_weights(tmp_path / "n.onnx", path, weights | new), config("fp16"))
            )
        except (SpecError, PlanError) as error:
            assert error.problems or error.details  # noqa: PT017
            expected = before
        np.testing.assert_array_equal(run(session), expected)


def test_weights_that_the_parser_merges(tmp_path):
    """They cannot be replaced in place, and not be marked one by one; the error says so."""
    names = ("scale", "bias", "mean", "variance")
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"], name="norm")
    io = [[tiny_models.tensor(name, TensorProto.FLOAT, (1, 4, 8, 8))] for name in "xy"]
    weights = {name: np.ones(4, np.float32) for name in names}
    path = tiny_models.save(tmp_path / "m.onnx", [node], *io, weights)
    options = BuildConfig(precision="fp32", refit=True)
    with Session(build_plan(path, options)) as session:
        x = {"x": np.ones((1, 4, 8, 8), np.float32)}
        before = session.run(x)["y"]
        with pytest.raises((PlanError, SpecError)):
            session.engine.refit({"scale": 2 * weights["scale"]})
        np.testing.assert_array_equal(session.run(x)["y"], before)
    with pytest.raises(UnsupportedError, match="merges with others"):
        build_plan(path, BuildConfig(precision="fp32", refit_weights="scale"))


@pytest.mark.parametrize("place", [cuda, np.asarray], ids=["gpu", "host"])
def test_ten_thousand_refits_take_no_more_memory(session, new, place):
    turns = [
        {name: place(np.float32(sign) * array) for name, array in new.items()} for sign in (1, -1)
    ]

    def refit(count):
        for index in range(count):
            session.engine.refit(turns[index % 2])
            if index % 10 == 0:
                run(session)

    refit(20)
    torch.cuda.synchronize()
    free, host = memory_info()[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refit(10_000)
    torch.cuda.synchronize()
    assert memory_info()[0] >= free - (2 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host < 8 << 10  # KiB
