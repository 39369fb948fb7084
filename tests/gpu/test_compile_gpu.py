"""Compiled modules against PyTorch, on ten kinds of modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

import trt_native
from trt_native import EngineCache
from trt_native.errors import BuildError, PlanError, SpecError, UnsupportedError

torch = pytest.importorskip("torch")

from helpers.torch_modules import CASES, same_structure, tensors_in  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.backend]
LIMITS = {"fp32": 1e-4, "fp16": 1e-2}


@pytest.fixture(autouse=True, scope="module")
def plans(tmp_path_factory):
    """One cache for the tests of this file, which a later process reads, too."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineCache, "__init__", _with_default(EngineCache.__init__, folder))
        yield folder


def _with_default(init, folder):
    return lambda self, given=None, max_bytes=None: init(self, given or folder, max_bytes)


def compiled(name, seed=0, **options):
    case = CASES[name]
    args, kwargs = case.call(device="cuda")
    return trt_native.compile(
        case.module(seed).cuda(), args, kwargs, dynamic=case.dynamic, **options
    )


def error_of(found, expected):
    """The largest relative L2 error of the tensors in two values of one structure."""
    assert same_structure(found, expected)
    pairs = list(zip(tensors_in(found), tensors_in(expected), strict=True))
    assert pairs
    for one, other in pairs:
        assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


@torch.no_grad()
def check(found, name, limit, seed=0, device="cuda"):
    case = CASES[name]
    module = case.module(seed).to(device)
    for extent in case.extents:
        args, kwargs = case.call(extent, device)
        assert error_of(found(*args, **kwargs), module(*args, **kwargs)) <= limit


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_the_module(name, precision, exact_fp32):
    found = compiled(name, precision=precision)
    assert found.plan.manifest.precision["applied"] == precision
    assert len(found.comparison) == len(found.session.outputs)
    assert max(one.relative_l2 for one in found.comparison) <= LIMITS[precision]
    check(found, name, LIMITS[precision])
    found.close()


@pytest.mark.parametrize("name", ["mlp", "dicts"])
def test_tensors_on_the_host(name, exact_fp32):
    """The results are complete when the call returns."""
    case = CASES[name]
    found = trt_native.compile(case.module(), *case.call(), dynamic=case.dynamic, precision="fp32")
    check(found, name, LIMITS["fp32"], device="cpu")
    found.close()


@pytest.mark.parametrize("name", CASES)
def test_new_weights(name, exact_fp32):
    """In place, or by a file where weights are computed from those of the module."""
    if name == "lstm" and torch.__version__ < "2.12":
        pytest.skip("PyTorch 2.11 gives the states of a refitted export another rank")
    found = compiled(name, precision="fp32", refit=True)
    new = CASES[name].module(seed=1)
    if name == "cnn":
        with pytest.raises(PlanError, match=r"has made these a fixed part of it"):
            found.refit(new.state_dict())  # TensorRT merges batch norms with convolutions
        found.close()
        return
    engine = found.session.engine
    found.refit(new.state_dict())
    assert (found.session.engine is engine) == (name not in ("lstm", "unet"))
    check(found, name, LIMITS["fp32"], seed=1)
    found.refit(CASES[name].module(seed=2).cuda().half().state_dict())
    found.refit(new.cuda().state_dict())
    check(found, name, LIMITS["fp32"], seed=1)
    found.refit(CASES[name].module(seed=0).state_dict())
    check(found, name, LIMITS["fp32"], seed=0)
    found.close()


def test_new_weights_in_fp16():
    found = compiled("vit", refit=True)
    found.refit(CASES["vit"].module(seed=1).state_dict())
    check(found, "vit", LIMITS["fp16"], seed=1)
    with pytest.raises(SpecError, match=r"'head.bias' is missing"):
        found.refit({"head.weight": torch.zeros(10, 48)})
    check(found, "vit", LIMITS["fp16"], seed=1)
    found.close()
    plain = compiled("vit")
    with pytest.raises(PlanError, match="compile it with refit=True"):
        plain.refit(CASES["vit"].module(seed=1).state_dict())
    plain.close()


SECOND = """
    import json, sys, time
    import torch
    from helpers.torch_modules import CASES
    from trt_native.compilation.compiled_plan import Recipe

    exported = []
    export = Recipe.export
    Recipe.export = lambda *args: exported.append(1) or export(*args)

    import trt_native

    torch.zeros(1, device="cuda")
    results = {}
    for name in sys.argv[1:]:
        case, before = CASES[name], len(exported)
        module, (args, kwargs) = case.module().cuda(), case.call(device="cuda")
        started = time.perf_counter()
        found = trt_native.compile(module, args, kwargs, dynamic=case.dynamic)
        seconds = time.perf_counter() - started
        error = max(one.relative_l2 for one in found.comparison)
        results[name] = [len(exported) - before, found.cached, error, round(seconds, 2)]
    print(json.dumps(results))
"""


def test_later_processes_find_the_plans(plans, tmp_path):
    """Without an export or a build; prints how long that takes."""
    script = tmp_path / "second.py"
    script.write_text(textwrap.dedent(SECOND))
    os.utime(script, (1e9, 1e9))
    helpers = [os.path.dirname(os.path.dirname(sys.modules["helpers.torch_modules"].__file__))]
    path = os.pathsep.join([*helpers, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "TRT_NATIVE_CACHE": plans, "PYTHONPATH": path}
    outcomes = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, script, *CASES],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        outcomes.append(json.loads(done.stdout.splitlines()[-1]))
        print(outcomes[-1])
    for exports, cached, error, _ in outcomes[1].values():
        assert (exports, cached) == (0, True)
        assert error <= LIMITS["fp16"]


def test_shapes_and_constants_that_the_engine_lacks():
    found, case = compiled("keywords"), CASES["keywords"]
    args, kwargs = case.call(2, "cuda")
    with pytest.raises(SpecError, match="mode is 'add', and 'multiply' is a constant"):
        found(*args, **{**kwargs, "mode": "add"})
    args, kwargs = case.call(5, "cuda")
    with pytest.raises(SpecError, match=r"5x8"):
        found(*args, **kwargs)
    args, kwargs = case.call(2, "cuda")
    with pytest.raises(SpecError, match="float16"):
        found(args[0].half(), *args[1:], **kwargs)
    with pytest.raises(UnsupportedError, match="has no backward"):
        found(args[0].requires_grad_(), *args[1:], **kwargs)
    found.close()


def test_an_engine_that_differs_is_refused():
    with pytest.raises(BuildError, match="the engine differs from ViT on the inputs given"):
        compiled("vit", max_error=1e-9)
    found = compiled("vit", max_error=1e-9, verify=False)
    assert found.comparison == ()
    found.close()


@torch.no_grad()
def test_on_streams_and_in_a_captured_graph():
    found, case = compiled("dicts"), CASES["dicts"]
    module = case.module().cuda()
    (batch,), _ = case.call(2, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            found(batch)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = found(batch)
    (other,), _ = case.call(7, "cuda")
    for key, tensor in batch["features"].items():
        tensor.copy_(other["features"][key][:2])
    graph.replay()
    torch.cuda.synchronize()
    assert error_of(results, module(batch)) <= LIMITS["fp16"]
    found.close()


def test_int8_from_batches_like_the_inputs():
    case = CASES["vit"]
    batches = [case.call(4, "cuda")[0] for _ in range(4)]
    found = compiled("vit", precision="int8", calibration=batches, max_error=0.2)
    assert found.plan.manifest.precision["applied"] == "int8"
    check(found, "vit", 0.2)
    found.close()


def test_modules_in_reduced_types():
    for dtype, limit in ((torch.float16, 1e-2), (torch.bfloat16, 5e-2)):
        case = CASES["mlp"]
        module = case.module().cuda().to(dtype)
        x = case.call(2, "cuda")[0][0].to(dtype)
        found = trt_native.compile(module, x)
        with torch.no_grad():
            expected = module(x)
            result = found(x)
        assert result.dtype == expected.dtype
        assert float((result.float() - expected.float()).norm() / expected.float().norm()) <= limit
        found.close()
