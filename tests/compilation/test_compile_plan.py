"""Modules to plans of TensorRT-RTX, which need no GPU, and to be found again."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from helpers.torch_modules import CASES
from torch import nn

import trt_native
from trt_native import BuildConfig, EngineCache, ProfileSpec, compile_plan
from trt_native.compilation.compiled_plan import Recipe
from trt_native.errors import (
    CalibrationError,
    CudaError,
    ExportError,
    SpecError,
    UnsupportedError,
)
from trt_native.plans.plan import Plan

pytestmark = [pytest.mark.backend]
X = torch.linspace(-1, 1, 32).reshape(2, 16)


def mlp():
    return CASES["mlp"].module()


@pytest.fixture
def exports(monkeypatch):
    """The names of the modules that are exported."""
    found, export = [], Recipe.export
    monkeypatch.setattr(
        Recipe, "export", lambda r, *rest: found.append(type(r.module).__name__) or export(r, *rest)
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_module_is_built(name, tmp_path):
    case = CASES[name]
    module = case.module()
    plan = compile_plan(module, *case.call(), dynamic=case.dynamic, backend="rtx")
    manifest = plan.manifest
    assert manifest.precision["applied"] == "fp16"
    assert manifest.model["file"] == f"{type(module).__name__}.onnx"
    for tensor in manifest.inputs:
        dims = {axis: dim.partition("=")[0] for axis, dim in case.dynamic[tensor.name].items()}
        assert {axis: dim for axis, dim in enumerate(tensor.dims) if dim is not None} == dims
        (limits,) = tensor.profiles
        assert (limits.min[0], limits.opt[0], limits.max[0]) == (1, 2, 4)
    path = plan.save(tmp_path / "net.plan")
    assert Plan.load(path).data == plan.data


def test_plans_are_found_by_content_and_never_by_a_wrong_one(exports, monkeypatch):
    build = EngineCache.build_plan
    built = []

    def counted(*args, **options):
        built.append(build(*args, **options))
        return built[-1]

    monkeypatch.setattr(EngineCache, "build_plan", counted)
    first = compile_plan(mlp(), X, backend="rtx")
    again = compile_plan(mlp(), X, backend="rtx", cache=EngineCache())
    assert bytes(again.data) == bytes(first.data)
    assert again.path == first.path
    assert [one.cached for one in built] in ([False], [False, True])  # noted, if not newer than us
    with torch.no_grad():
        other = mlp()
        other.layers[0].bias += 1
    for module, options in ((other, {}), (mlp(), {"precision": "fp32"})):
        plan = compile_plan(module, X, backend="rtx", **options)
        assert not built[-1].cached
        assert plan.path != first.path
    before = len(exports)
    compile_plan(mlp(), X, backend="rtx", cache=False)
    assert len(exports) == before + 1
    assert compile_plan(mlp(), X, backend="rtx", cache=False).path is None


SCRIPT = """
    import sys
    import torch, net
    from trt_native import compile_plan
    from trt_native.builder.plan_cache import EngineCache
    from trt_native.compilation.compiled_plan import Recipe

    done, export, build = [], Recipe.export, EngineCache.build_plan

    def exported(*args):
        done.append("exported")
        return export(*args)

    def built(*args, **options):
        result = build(*args, **options)
        done.append("found" if result.cached else "built")
        return result

    Recipe.export, EngineCache.build_plan = exported, built
    torch.manual_seed(0)
    module = net.Net(scale=2)
    exec(sys.argv[1])
    plan = compile_plan(module, torch.ones(2, 4), backend="rtx")
    print(*done, plan.sha256)
"""

FILES = {
    "main.py": SCRIPT,
    "net.py": """
        import torch
        from parts import block

        class Net(torch.nn.Module):
            def __init__(self, scale):
                super().__init__()
                self.linear, self.scale = torch.nn.Linear(4, 4), scale

            def forward(self, x):
                return block(self.linear(x)) * self.scale
    """,
    "parts/__init__.py": "from .blocks import block",
    "parts/blocks.py": """
        import torch

        def block(x):
            return torch.relu(x)
    """,
}


@pytest.mark.slow
def test_later_processes_export_only_what_has_changed(tmp_path):
    """Its weights, settings and all files of its code, those of other modules included."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        an_hour_ago = time.time() - 3600
        os.utime(path, (an_hour_ago, an_hour_ago))

    def run(change="pass"):
        done = subprocess.run(
            [sys.executable, tmp_path / "main.py", change],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert done.returncode == 0, done.stderr
        *steps, sha256 = done.stdout.split()
        return steps, sha256

    for name, text in FILES.items():
        write(name, text)
    steps, first = run()
    assert steps == ["exported", "built"]
    assert run() == ([], first)
    steps, other = run("module.linear.bias.data += 1")
    assert steps == ["exported", "built"]
    assert other != first
    assert run("module.scale = 3")[0] == ["exported", "built"]
    write("parts/blocks.py", textwrap.dedent(FILES["parts/blocks.py"]) + "# a comment")
    assert run() == (["exported", "found"], first)
    write("parts/blocks.py", FILES["parts/blocks.py"].replace("relu", "tanh"))
    steps, third = run()
    assert steps == ["exported", "built"]
    assert third != first


def test_without_a_gpu_nothing_is_begun(exports):
    if trt_native.cuda.gpu_info() is not None:
        pytest.skip("there is a GPU")
    with pytest.raises(CudaError, match=r"cannot find a GPU.*trt_native\.compile_plan builds"):
        trt_native.compile(mlp(), X)
    assert exports == []


def test_magnitudes_from_batches_like_the_inputs(exports):
    """The plan is found again, though the batches are in temporary files."""
    case = CASES["dicts"]
    batches = [case.call(2)[0], case.call(3)[0]]
    options = {"dynamic": case.dynamic, "precision": "fp16", "backend": "rtx"}
    plan = compile_plan(case.module(), *case.call(), calibration=batches, **options)
    record = next(p for p in plan.manifest.passes if p["name"] == "autocast")
    assert "batches-given-to-compile" in str(plan.manifest.options["quantization"])
    assert record
    again = compile_plan(case.module(), *case.call(), calibration=iter(batches), **options)
    assert again.path == plan.path
    without = compile_plan(case.module(), *case.call(), **options)
    assert without.path != plan.path


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp17"}, SpecError, "'fp17' is none of: auto"),
        ({"config": {"workspce": 1}}, SpecError, "no option workspce; did you mean workspace"),
        ({"calibration": 3}, SpecError, "calibration: give an iterable of inputs.* a int"),
        ({"calibration": {"x": X}}, SpecError, "calibration: give an iterable of inputs.* a dict"),
        ({"calibration": [X, "x"]}, SpecError, "calibration: batch 1: inputs: give a tensor"),
        ({"calibration": []}, CalibrationError, "there are no batches"),
        ({"calibration": "nowhere"}, CalibrationError, "nowhere: no such calibration data"),
        ({"dynamic": {"x": {0: "n=4:8:16"}}}, SpecError, "n is 2 in the inputs, outside 4:8:16"),
        ({"dynamic": {"x": {0: "n=4:2:1"}}}, SpecError, "n: not ordered: 4:2:1"),
        (
            {"dynamic": {"x": {0: "a*b=1:2:4"}}},
            SpecError,
            r"a\*b has the range .* a product",
        ),
        ({"dynamic": {"y": {0: "n"}}}, SpecError, "'y' is not an input"),
        ({"dynamic": {"x": {2: "n"}}}, SpecError, "x has 2 axes, no axis 2"),
        ({"dynamic": {"x": 0}}, SpecError, "dynamic axes of 'x': write for example"),
        ({"dynamic": 3}, SpecError, "dynamic: write the axes of each input"),
        ({"dynamic": {"x": {1: "n"}}}, ExportError, r"n \(axis 1 of x\) is always 16"),
        ({"opset": 3}, SpecError, "opset 3: choose one"),
        ({"backend": "cpu"}, UnsupportedError, "no backend 'cpu'"),
    ],
)
def test_what_cannot_be_compiled(options, error, message):
    with pytest.raises(error, match=message):
        compile_plan(mlp(), X, **{"backend": "rtx", **options})


def test_options_of_the_backend_are_checked_before_the_export(exports):
    if trt_native.cuda.gpu_info() is not None:
        pytest.skip("there is a GPU")
    with pytest.raises(UnsupportedError, match=r"refittable .* only on a machine with a GPU"):
        compile_plan(mlp(), X, backend="rtx", refit=True)
    assert exports == []


def test_profiles_of_the_configuration():
    config = BuildConfig(profiles=[ProfileSpec({"n": "1:4:8"}), ProfileSpec({"n": "16"})])
    plan = compile_plan(mlp(), X, dynamic={"x": {0: "n"}}, config=config, backend="rtx")
    assert [r.opt for r in plan.manifest.inputs[0].profiles] == [(4, 16), (16, 16)]
    with pytest.raises(SpecError, match="n: has a range here and in the profiles"):
        compile_plan(mlp(), X, dynamic={"x": {0: "n=1:2:4"}}, config=config, backend="rtx")


def test_a_module_whose_content_cannot_be_told_is_exported_each_time(exports):
    module = nn.Sequential(nn.Linear(16, 4))
    module.generator = torch.Generator()
    plans = [compile_plan(module, X, backend="rtx") for _ in range(2)]
    assert exports == ["Sequential"] * 2
    assert plans[0].path == plans[1].path
