"""What a manifest says of plugins, and that none is loaded because of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
from helpers.header_plans import ADA, ENGINE, LIBRARY, section_plan

from trt_native import Engine
from trt_native.cuda import GpuInfo
from trt_native.errors import PlanError
from trt_native.plans.compatibility import compatibility
from trt_native.plans.host_code import PLUGINS, HostCode
from trt_native.plans.manifest import Manifest
from trt_native.plans.plan import Plan
from trt_native.plans.plugins import is_python_plugin, plugin_records


@pytest.mark.parametrize(
    ("source", "python"),
    [
        ("libx.so", False),
        ("folder/libx.so", False),
        ("C:\\folder\\x.dll", False),
        ("plugins.py:register", True),
        ("folder/plugins.py:register", True),
        ("package.module:register", True),
        (":register", False),
        ("plugins.py:", False),
    ],
)
def test_kinds(source, python):
    assert is_python_plugin(source) == python


def test_records_have_hashes_and_no_folders(tmp_path, monkeypatch):
    (tmp_path / "libx.so").write_bytes(b"library")
    (tmp_path / "own_plugins.py").write_text("def register(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    digests = [hashlib.sha256(text).hexdigest() for text in (b"library", b"def register(): ...")]
    assert plugin_records(
        [
            f"{tmp_path}/libx.so",
            f"{tmp_path}/own_plugins.py:register",
            "own_plugins:register",
        ]
    ) == [
        {"file": "libx.so", "sha256": digests[0]},
        {"file": "own_plugins.py:register", "sha256": digests[1]},
        {"file": "own_plugins:register", "sha256": digests[1]},
    ]
    for source in ("none.so", "none.py:f", "no_such_module:f", "no_such.module:f"):
        with pytest.raises(PlanError, match="plugin no") as caught:
            plugin_records([source])
        assert caught.value.options == ("plugins",)


def with_plugins(plan, *files):
    records = tuple({"file": file, "sha256": "0" * 64} for file in files)
    return dataclasses.replace(plan.manifest, plugins=records)


def test_the_manifest_keeps_them(plan, validator):
    manifest = with_plugins(plan, "libx.so", "plugins.py:register")
    document = manifest.to_json()
    validator.validate(document)
    assert document["schema"] == 2
    assert Manifest.from_json(json.loads(json.dumps(document))) == manifest
    assert "plugins" not in plan.manifest.to_json()
    document["plugins"][0].pop("sha256")
    with pytest.raises(PlanError, match="sha256"):
        Manifest.from_json(document)


def test_a_plan_needs_the_libraries_that_it_was_built_with(plan):
    manifest = with_plugins(plan, "libx.so", "plugins.py:register")
    report = compatibility(plan.header, manifest, ADA)
    assert report.errors == (
        "it needs the plugins of libx.so (SHA-256 0000000000000000...), which are loaded only where"
        " they are named",
    )
    assert report.options == ("plugins",)
    assert compatibility(plan.header, manifest, ADA, None, ("elsewhere/libx.so",)).loads
    inside = HostCode(carried=(PLUGINS,), allowed=True)
    assert compatibility(plan.header, manifest, ADA, inside).loads


def test_libraries_in_a_plan_never_reach_tensorrt_unasked(monkeypatch):
    """TensorRT-RTX loads them regardless of the runtime's permission."""
    pytest.importorskip("tensorrt_rtx")
    from trt_native.backends.registry import load_backend

    backend = load_backend("rtx")
    gpu = GpuInfo("NVIDIA L4", "8.9", "13.0", 24 << 30, 20 << 30)
    monkeypatch.setattr("trt_native.runtime.engine.require_gpu", lambda ordinal: gpu)
    reached = []
    monkeypatch.setattr(backend, "deserialize", lambda *_, **__: reached.append(1) or 1 / 0)
    version = tuple(int(part) % 256 for part in backend.version.split("."))
    data = section_plan(LIBRARY, ENGINE, tag=b"vtrt", version=version)
    with pytest.raises(PlanError, match="it carries a library of plugins, code that") as caught:
        Engine(Plan(data), backend=backend)
    assert caught.value.options == ("allow_host_code",)
    assert not reached
    with pytest.raises(ZeroDivisionError):
        Engine(Plan(data, allow_host_code=True), backend=backend)
