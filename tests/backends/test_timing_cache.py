"""Layer timings kept between builds. Runs on the bindings of TensorRT 10 and 11 (tests/lanes).

The library under these bindings measures nothing, so its timing caches are complete but empty, and
reading one back needs a GPU: what is looked at here is what the bindings are asked to do.
"""

from __future__ import annotations

import logging

import pytest
from helpers import tiny_models

from trt_native import BuildConfig, EngineCache, Precision, ProfileSpec
from trt_native.backends.registry import load_backend
from trt_native.builder.build import build_prepared, prepare
from trt_native.cuda import gpu_info
from trt_native.errors import SpecError, UnsupportedError

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def backend():
    try:
        found = load_backend()
    except UnsupportedError as error:
        pytest.skip(error.message)
    if not found.capabilities.timing_cache:
        pytest.skip(f"{found.name} measures no layers")
    return found


@pytest.fixture
def combined(backend, monkeypatch):
    """Records the merged caches, and whether TensorRT accepted them."""
    calls = []
    kind = backend._trt.ITimingCache
    real = kind.combine

    def combine(self, other, ignore_mismatch):
        done = real(self, other, ignore_mismatch)
        calls.append((bytes(other.serialize()), ignore_mismatch, done))
        return done

    monkeypatch.setattr(kind, "combine", combine)
    return calls


@pytest.fixture
def prepared(backend, tmp_path):
    model = tiny_models.conv(tmp_path / "m.onnx")

    def make(**options):
        spec = ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"])
        config = BuildConfig(profiles=(spec,), precision=Precision.FP32, **options)
        return prepare(model, config, backend=backend)

    return make


@pytest.fixture
def timings(backend):
    """A complete timing cache, as this TensorRT writes it."""
    config = backend._builder().create_builder_config()
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return bytes(config.get_timing_cache().serialize())


class Meanwhile:
    """Does something while TensorRT builds."""

    def __init__(self, do):
        self.do = do

    def phase_start(self, phase, parent, steps):
        if phase == "Building engine":
            self.do()

    def step_complete(self, phase, step):
        pass

    def phase_finish(self, phase):
        pass


def test_a_new_file_is_written(prepared, tmp_path, timings, combined):
    path = tmp_path / "timing.cache"
    build_prepared(prepared(timing_cache=path))
    assert path.read_bytes() == timings
    assert combined == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "timing.cache"]


def test_timings_of_a_concurrent_build_are_merged(prepared, tmp_path, timings, combined):
    path = tmp_path / "timing.cache"
    progress = Meanwhile(lambda: path.write_bytes(timings))
    build_prepared(prepared(timing_cache=path), progress=progress)
    assert combined == [(timings, False, True)]
    assert path.read_bytes() == timings


@pytest.mark.skipif(gpu_info() is not None, reason="for machines where reading one back fails")
def test_a_file_that_was_asked_for_must_be_usable(prepared, tmp_path, timings):
    path = tmp_path / "timing.cache"
    path.write_bytes(timings)
    with pytest.raises(SpecError, match="not one that TensorRT") as caught:
        build_prepared(prepared(timing_cache=path))
    assert "name another file, or delete it" in str(caught.value)
    assert path.read_bytes() == timings


@pytest.mark.skipif(gpu_info() is not None, reason="for machines where reading one back fails")
def test_one_of_our_own_that_is_unusable_is_replaced(prepared, tmp_path, timings, caplog):
    path = tmp_path / "timing.cache"
    path.write_bytes(timings[:-10])
    with caplog.at_level(logging.WARNING):
        build_prepared(prepared(), timing_cache=path)
    assert "starting a new one" in caplog.text
    assert path.read_bytes() == timings


def test_an_engine_cache_keeps_one_for_each_version_and_gpu(backend, tmp_path, timings):
    model = tiny_models.conv(tmp_path / "m.onnx")
    spec = ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"])
    config = BuildConfig(profiles=(spec,), precision=Precision.FP32)
    cache = EngineCache(tmp_path / "cache")
    assert not cache.build_plan(model, config, backend=backend).cached
    (file,) = cache.timing_caches()
    gpu = gpu_info()
    where = f"{gpu.name}-{gpu.compute_capability}".replace(" ", "_") if gpu else "no_GPU"
    assert file.name == f"{backend.name}-{backend.version}-{where}.cache"
    assert file.read_bytes()[:4] == timings[:4]
    assert cache.build_plan(model, config, backend=backend).cached
    # A cache that the user names is used instead, and counts by its content.
    own = BuildConfig(
        profiles=(spec,), precision=Precision.FP32, timing_cache=tmp_path / "own.cache"
    )
    stat = file.stat()
    assert not cache.build_plan(model, own, backend=backend).cached
    assert (tmp_path / "own.cache").read_bytes()[:4] == timings[:4]
    assert file.stat() == stat
    assert cache.build_plan(model, own, backend=backend).cached
