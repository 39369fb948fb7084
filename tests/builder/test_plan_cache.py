"""The engine cache: hits, misses, and handling of damage."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import onnx
import pytest
from helpers import tiny_models
from onnx import numpy_helper

import trt_native.builder.plan_cache as cache_module
import trt_native.cuda
from trt_native import BuildConfig, EngineCache, Plan, Precision, ProfileSpec
from trt_native.backends.registry import load_backend
from trt_native.builder import build as build_module
from trt_native.cuda import GpuInfo
from trt_native.errors import ModelError, SpecError

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend

DIMS = ("batch=1:2:4", "height=8", "width=8")


def config(*dims, **options):
    return BuildConfig(profiles=(ProfileSpec.parse(dims or DIMS),), **options)


@pytest.fixture(scope="module")
def rtx():
    return load_backend("rtx")


@pytest.fixture
def model(tmp_path):
    return tiny_models.conv(tmp_path / "m.onnx")


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "cache")


@pytest.fixture
def build(cache, model, rtx):
    """Build ``model`` through a cache of its own process, so to say."""

    def run(path=model, options=None, backend=rtx, size=None):
        fresh = EngineCache(cache.folder, size)
        return fresh.build_plan(path, options or config(), backend=backend)

    return run


def use_gpu(monkeypatch, gpu):
    for module in (build_module, trt_native.cuda):
        monkeypatch.setattr(module, "gpu_info", lambda: gpu)


def age(path, seconds=10):
    """Make a file look as if it had been written long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def files(cache):
    return sorted(str(p.relative_to(cache.folder)) for p in cache.folder.rglob("*") if p.is_file())


class TestHits:
    def test_an_unchanged_build_returns_the_same_plan(self, build, tmp_path):
        first, second = build(), build()
        assert (first.cached, second.cached) == (False, True)
        assert bytes(second.plan.data) == bytes(first.plan.data)
        assert second.plan.manifest == first.plan.manifest
        loaded = Plan.load(second.plan.save(tmp_path / "m.plan"))
        assert loaded.manifest == first.plan.manifest

    def test_the_name_of_the_file_does_not_count(self, build, model, tmp_path):
        first = build()
        moved = tmp_path / "elsewhere" / "other.onnx"
        moved.parent.mkdir()
        model.rename(moved)
        second = build(moved)
        assert second.cached
        assert second.manifest.model == {**first.manifest.model, "file": "other.onnx"}

    def test_the_same_request_reads_no_model(self, build, model, cache):
        first = build()
        code = """
            import sys
            from trt_native import BuildConfig, EngineCache, ProfileSpec
            config = BuildConfig(profiles=(ProfileSpec.parse(sys.argv[3:]),))
            built = EngineCache(sys.argv[1]).build_plan(sys.argv[2], config, backend="rtx")
            assert built.cached and not {"onnx", "onnx_ir"} & set(sys.modules)
            print(built.manifest.plan_sha256)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), cache.folder, model, *DIMS],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == first.manifest.plan_sha256
        # The model is read where the note of the request is damaged, or tells of other files.
        (note,) = (cache.folder / "notes").iterdir()
        content = note.read_text()
        for text in (content[:-9], "", content.replace(first.manifest.model["sha256"], "0" * 64)):
            note.write_text(text)
            assert build().cached
            assert note.read_text() == content

    def test_a_link_that_leads_to_other_weights_is_noticed(self, build, tmp_path):
        """A cache of downloads, where weights of one size go with one ONNX file."""
        blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
        snapshot.mkdir()
        blobs.mkdir()
        proto = onnx.load(tiny_models.conv(tmp_path / "inline.onnx"))
        for number in (1, 2):
            for weight in proto.graph.initializer:
                scaled = number * numpy_helper.to_array(weight)
                weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))
            options = {"save_as_external_data": True, "size_threshold": 0}
            onnx.save(proto, blobs / f"m{number}", location="m_data", **options)
            (blobs / "m_data").rename(blobs / f"w{number}")
            proto = onnx.load(tmp_path / "inline.onnx")
        assert (blobs / "m1").read_bytes() == (blobs / "m2").read_bytes()
        (snapshot / "m.onnx").symlink_to(blobs / "m1")
        data = snapshot / "m_data"
        data.symlink_to(blobs / "w1")
        first = build(snapshot / "m.onnx")
        assert build(snapshot / "m.onnx").cached
        data.unlink()
        data.symlink_to(blobs / "w2")
        second = build(snapshot / "m.onnx")
        assert not second.cached
        assert bytes(second.plan.data) != bytes(first.plan.data)

    @pytest.mark.parametrize("key", [None, "../../x", "a\0b", "\ud800", "x" * 300])
    def test_a_note_of_no_plan_is_not_followed(self, build, cache, key):
        build()
        (note,) = (cache.folder / "notes").iterdir()
        content = {**cache_module._read_checksummed(note), "key": key}
        if key is None:
            del content["key"]
        cache_module._write_checksummed(note, content)
        assert build().cached

    def test_a_model_in_a_folder_that_is_gone_is_an_error(self, build, tmp_path, monkeypatch):
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        with pytest.raises(ModelError, match="cannot be read"):
            build("m.onnx")
        monkeypatch.chdir(tmp_path)

    def test_another_way_to_say_the_same_shapes(self, build):
        build(options=config())
        same = BuildConfig(
            profiles=(ProfileSpec.parse(shapes=["x=1x3x8x8:2x3x8x8:4x3x8x8"]),),
            workspace_bytes=8 * 2**30,
        )
        second = build(options=same)
        assert second.cached
        assert second.manifest.options == same.options()

    @pytest.mark.parametrize(
        "options",
        [
            config("batch=1:2:8", *DIMS[1:]),
            config(precision=Precision.FP32),
            config(keep_fp32=("conv",)),
            config(workspace_bytes=2**30),
            config(max_aux_streams=0),
            config(compute_capabilities=("8.9",)),
        ],
        ids=lambda c: ",".join(c.options()),
    )
    def test_every_option_counts(self, build, options):
        build()
        assert not build(options=options).cached
        assert build(options=options).cached

    def test_weights_count(self, build, model):
        build()
        graph = onnx.load(model)
        kernel = numpy_helper.to_array(graph.graph.initializer[0]).copy()
        kernel[0, 0, 0, 0] += 1
        graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel, "kernel"))
        onnx.save(graph, model)
        assert not build().cached

    def test_external_weights_count(self, build, tmp_path):
        path = tiny_models.external_weights(tmp_path / "e.onnx")
        build(path, BuildConfig())
        assert build(path, BuildConfig()).cached
        weights = tmp_path / "weights.bin"
        data = bytearray(weights.read_bytes())
        data[100] ^= 1
        weights.write_bytes(data)
        rebuilt = build(path, BuildConfig())
        assert not rebuilt.cached
        (external,) = rebuilt.manifest.model["external"]
        assert external["sha256"] == hashlib.sha256(data).hexdigest()

    def test_the_version_of_tensorrt_counts(self, build, rtx, monkeypatch):
        build()
        monkeypatch.setattr(rtx, "version", "1.6.1.121")
        assert not build().cached

    def test_the_gpu_counts(self, build, monkeypatch):
        build()
        gpu = GpuInfo("NVIDIA A", "8.9", "13.0", 24 * 2**30, 20 * 2**30)
        use_gpu(monkeypatch, gpu)
        assert not build().cached
        # What is free on it varies all the time, and does not count.
        less = dataclasses.replace(gpu, free_bytes=19 * 2**30)
        use_gpu(monkeypatch, less)
        assert build().cached
        other = dataclasses.replace(gpu, name="NVIDIA B")
        use_gpu(monkeypatch, other)
        assert not build().cached

    def test_this_package_counts(self, build, monkeypatch):
        build()
        monkeypatch.setattr(cache_module, "code_hash", lambda: "changed")
        assert not build().cached

    def test_a_model_that_changes_during_the_build_is_not_kept(
        self, build, model, cache, rtx, monkeypatch
    ):
        real = rtx.build

        def meddle(*arguments):
            result = real(*arguments)
            model.write_bytes(model.read_bytes() + b"\0")
            return result

        monkeypatch.setattr(rtx, "build", meddle)
        with pytest.raises(ModelError, match="changed while the plan was built"):
            build()
        assert cache.entries() == []


@dataclasses.dataclass(frozen=True, slots=True)
class Files:
    calibration: Path | None = None
    patterns: tuple[str, ...] = ()
    source: object = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WiderConfig(BuildConfig):
    """A build configuration as it may come to look: with options inside of options."""

    files: Files = Files()

    def options(self):
        return {}


class TestOptionsThatNameFiles:
    @pytest.fixture
    def wider(self):
        def make(**fields):
            profiles = (ProfileSpec.parse(DIMS),)
            return WiderConfig(profiles=profiles, files=Files(**fields))

        return make

    def test_they_count_by_their_content(self, build, wider, tmp_path):
        file = tmp_path / "calibration.cache"
        file.write_bytes(b"one")
        build(options=wider(calibration=file))
        assert not build(options=wider()).cached
        copy = tmp_path / "copy.cache"
        copy.write_bytes(b"one")
        assert build(options=wider(calibration=copy)).cached
        file.write_bytes(b"two")
        assert not build(options=wider(calibration=file)).cached

    def test_folders_count_by_what_is_in_them(self, build, wider, tmp_path):
        folder = tmp_path / "calib_data"
        (folder / "batch").mkdir(parents=True)
        (folder / "batch" / "0.npz").write_bytes(b"one")
        build(options=wider(calibration=folder))
        assert build(options=wider(calibration=folder)).cached
        (folder / "batch" / "1.npz").write_bytes(b"one")
        assert not build(options=wider(calibration=folder)).cached
        (folder / "batch" / "1.npz").rename(folder / "batch" / "2.npz")
        assert not build(options=wider(calibration=folder)).cached

    def test_a_file_that_the_build_writes_is_counted_as_it_is_afterwards(
        self, build, wider, tmp_path, rtx, monkeypatch
    ):
        file = tmp_path / "calibration.cache"
        real = rtx.build

        def calibrating(*arguments):
            file.write_bytes(b"ranges")
            return real(*arguments)

        monkeypatch.setattr(rtx, "build", calibrating)
        options = wider(calibration=file)
        assert [build(options=options).cached for _ in range(2)] == [False, True]
        file.unlink()  # whoever wants the file again gets it
        assert not build(options=options).cached
        assert file.exists()

    def test_a_plan_without_a_cache_key_is_not_kept(self, build, wider, cache, caplog):
        options = wider(source=iter([1]))
        assert not build(options=options).cached
        assert not build(options=options).cached
        assert cache.entries() == []
        assert "an option holds a list_iterator, which cannot be part of a cache key" in caplog.text
        assert not build(options=wider(calibration=Path(os.devnull))).cached
        assert "is neither a file nor a folder" in caplog.text


class TestDamage:
    @pytest.fixture
    def entry(self, build, cache):
        build()
        (plan,) = (cache.folder / "engines").glob("*.plan")
        return plan

    def assert_rebuilt(self, build, caplog):
        caplog.clear()
        again = build()
        assert not again.cached
        assert "is damaged" in caplog.text
        assert build().cached

    def test_every_flipped_bit_of_the_manifest_is_found(self, build, entry, rng, caplog):
        seal = entry.with_suffix(".json")
        good = seal.read_bytes()
        for position in rng.integers(0, len(good) * 8, 60):
            data = bytearray(good)
            data[position // 8] ^= 1 << (position % 8)
            seal.write_bytes(data)
            caplog.clear()
            result = build()
            # JSON has more than one way to write a thing; what counts is what it says.
            if result.cached:
                assert json.loads(data) == json.loads(good)
            else:
                assert "is damaged" in caplog.text
            seal.write_bytes(good)

    @pytest.mark.parametrize("position", [0, 20, 1000, -1])
    def test_a_flipped_bit_of_the_plan_is_found(self, build, entry, position, caplog):
        data = bytearray(entry.read_bytes())
        data[position] ^= 0x10
        entry.write_bytes(data)
        self.assert_rebuilt(build, caplog)

    @pytest.mark.parametrize("suffix", [".plan", ".json"])
    @pytest.mark.parametrize("length", [0, 10, 700])
    def test_truncation_is_found(self, build, entry, suffix, length, caplog):
        file = entry.with_suffix(suffix)
        os.truncate(file, length)
        self.assert_rebuilt(build, caplog)

    @pytest.mark.parametrize(
        "text", ["[]", "null", "{}", '{"content": 1, "sha256": 2}', "[" * 100_000], ids=len
    )
    def test_other_json_is_found(self, build, entry, text, caplog):
        entry.with_suffix(".json").write_text(text)
        self.assert_rebuilt(build, caplog)

    def test_an_entry_under_the_name_of_another_is_found(self, build, entry, cache, caplog):
        other = build(options=config(precision=Precision.FP32))
        (plan,) = set((cache.folder / "engines").glob("*.plan")) - {entry}
        for suffix in (".plan", ".json"):
            plan.with_suffix(suffix).replace(entry.with_suffix(suffix))
        again = build()
        assert not again.cached
        assert "belongs to another key" in caplog.text
        assert again.manifest.precision["applied"] != other.manifest.precision["applied"]

    def test_half_an_entry_is_none(self, build, entry):
        entry.with_suffix(".json").unlink()
        assert not build().cached
        entry.unlink()
        assert not build().cached
        assert build().cached

    def test_a_plan_that_the_user_changes_does_not_change_the_cache(self, build, tmp_path):
        path = build().plan.save(tmp_path / "m.plan")
        with path.open("r+b") as file:
            file.write(b"????")
        again = build()
        assert again.cached
        assert bytes(again.plan.data[:4]) == b"vtrt"


class TestUnusableFolders:
    @pytest.mark.parametrize("place", ["file/cache", "/proc/cache", "file"])
    def test_the_build_goes_on_with_one_warning(self, model, rtx, tmp_path, place, caplog):
        (tmp_path / "file").touch()
        cache = EngineCache(tmp_path / place)
        assert not cache.build_plan(model, config(), backend=rtx).cached
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "cannot be used here" in record.message
        assert "name another with TRT_NATIVE_CACHE" in record.message

    def test_plans_are_found_where_nothing_can_be_written(self, build, cache, monkeypatch, caplog):
        build()

        def refuse(*arguments, **options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(cache_module, "atomic_write", refuse)
        monkeypatch.setattr(EngineCache, "_make", refuse)
        monkeypatch.setattr(os, "utime", refuse)
        assert build().cached
        assert len(caplog.records) <= 1


class TestSize:
    def test_what_was_not_used_for_longest_goes_first(self, build, cache):
        levels = [config(max_aux_streams=level) for level in range(3)]
        for options in levels:
            build(options=options)
        entries = cache.entries()
        assert len(entries) == 3
        for position, entry in enumerate(reversed(entries)):
            age(cache.folder / "engines" / f"{entry.key}.plan", 100 - position)
        build(options=levels[0])  # used again: now the youngest
        removed = EngineCache(cache.folder, 2 * max(e.bytes for e in entries)).prune()
        assert removed.plans == 1
        assert removed.files == 2
        assert removed.bytes == entries[1].bytes
        assert [build(options=options).cached for options in levels] == [True, False, True]

    def test_the_limit_holds_after_every_build(self, build, cache):
        build()
        (entry,) = cache.entries()
        age(cache.folder / "engines" / f"{entry.key}.plan")
        build(options=config(max_aux_streams=0), size=entry.bytes + 100)
        (left,) = cache.entries()
        assert left.key != entry.key

    def test_a_plan_over_the_limit_is_not_kept(self, build, cache, caplog):
        assert not build(size=1000).cached
        assert cache.entries() == []
        assert "the limit is 1000 B; raise it with TRT_NATIVE_CACHE_SIZE" in caplog.text

    def test_the_environment_sets_folder_and_limit(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TRT_NATIVE_CACHE", str(tmp_path / "here"))
        monkeypatch.setenv("TRT_NATIVE_CACHE_SIZE", "3MiB")
        cache = EngineCache()
        assert (cache.folder, cache.max_bytes) == (tmp_path / "here", 3 * 2**20)
        assert EngineCache("there", 7).max_bytes == 7
        monkeypatch.setenv("TRT_NATIVE_CACHE_SIZE", "much")
        with pytest.raises(SpecError, match="not a size: 'much'"):
            EngineCache()

    def test_the_default_limit_depends_on_the_disk(self, cache, monkeypatch):
        usage = cache_module.shutil.disk_usage(cache.folder.parent)
        for total, limit in ((50 * 2**30, 5 * 2**30), (2**40, 20 * 2**30)):
            monkeypatch.setattr(
                cache_module.shutil, "disk_usage", lambda path, t=total: usage._replace(total=t)
            )
            assert cache.max_bytes == limit

    def test_old_entries_can_be_pruned(self, build, cache):
        build()
        (entry,) = cache.entries()
        age(cache.folder / "engines" / f"{entry.key}.plan", 3600)
        assert cache.prune(older_than_s=7200).plans == 0
        assert cache.prune(older_than_s=1800).plans == 1

    def test_prune_removes_what_is_unreadable_or_left_over(self, build, cache, tmp_path):
        build()
        engines = cache.folder / "engines"
        (engines / ("0" * 64 + ".plan")).write_bytes(b"no manifest")
        for name in (".x.plan.aaaaaaaa-bbbb", "1" * 64 + ".json", "3" * 64 + ".plan.cache"):
            (engines / name).write_bytes(b"half")
            age(engines / name, 90_000)
        (engines / ".y.plan.cccccccc-dddd").write_bytes(b"being written now")
        (cache.folder / "locks" / f"{'2' * 64}.lock").touch()
        removed = cache.prune()
        assert (removed.plans, removed.files) == (1, 5)
        assert [p.name for p in engines.glob(".*")] == [".y.plan.cccccccc-dddd"]
        assert build().cached

    def test_compiled_kernels_go_with_their_plan(self, build, cache):
        key = build().key
        before = cache.entries()[0].bytes
        path = cache.plan_path(key)
        path.with_name(f"{path.name}.cache").write_bytes(b"kernels")
        assert cache.entries()[0].bytes == before + len(b"kernels")
        assert cache.remove([key]).files == 3
        assert not list(path.parent.iterdir())

    def test_a_plan_is_found_by_its_key(self, build, cache):
        built = build()
        config = BuildConfig(optimization_level=3)
        found = cache.find_plan(built.key, config)
        assert bytes(found.data) == bytes(built.plan.data)
        assert found.manifest.options == {"optimization_level": 3}
        assert cache.find_plan("0" * 64, config) is None
        assert cache.find_plan("../" + built.key, config) is None

    def test_clear_leaves_what_is_not_its_own(self, build, cache):
        build()
        (cache.folder / "notes.txt").write_text("mine")
        (cache.folder / "engines" / "notes.txt").write_text("mine")
        assert cache.clear().plans == 1
        assert files(cache) == ["CACHEDIR.TAG", "engines/notes.txt", "notes.txt"]
        assert not build().cached

    def test_files_of_other_names_are_neither_listed_nor_removed(self, cache):
        cache._make(cache.folder / "engines")
        theirs = (
            "engines/resnet50.plan",
            "engines/resnet50.json",
            "engines/.hidden",
            f"engines/{'A' * 64}.plan",
            "timing/mine.cache",
            "timing/.hidden",
            "hashes/mine.json",
            "hashes/.gitignore",
            "locks/yarn.lock",
            "notes/monday.json",
        )
        for name in theirs:
            path = cache.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"precious")
            age(path, 10**7)
        (cache.folder / "engines" / f"{'3' * 64}.plan").mkdir()
        assert cache.entries() == cache.timing_caches() == []
        assert cache.prune(older_than_s=0) == cache.clear() == cache_module.PruneResult()
        assert files(cache) == sorted(["CACHEDIR.TAG", *theirs])

    @pytest.mark.parametrize("tag", [None, "Signature: 8a477f597d28d172789f06886806bc55\n# pip"])
    def test_a_folder_of_another_program_is_refused(self, tmp_path, tag, main_in_process, model):
        folder = tmp_path / "theirs"
        folder.mkdir()
        (folder / "engines").mkdir()
        if tag is not None:
            (folder / "CACHEDIR.TAG").write_text(tag)
        message = f"{folder}: is not a cache of trt-native, and not empty"
        with pytest.raises(SpecError, match=re.escape(message)):
            EngineCache(folder)
        for command in (
            ["cache", "list"],
            ["cache", "clear"],
            ["cache", "prune"],
            ["build", model],
        ):
            code, _, error = main_in_process(*command, "--cache", folder)
            assert code == 1
            assert message in error
            code, _, error = main_in_process(*command, "--cache", "")
            assert code == 1
            assert "the cache folder has an empty name" in error
        assert not (folder / "hashes").exists()

    def test_the_default_folder_may_hold_other_files(self, tmp_path, monkeypatch):
        monkeypatch.delenv("TRT_NATIVE_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        (tmp_path / "trt-native" / "lanes").mkdir(parents=True)
        cache = EngineCache()
        assert cache.folder == tmp_path / "trt-native"
        assert cache.clear() == cache_module.PruneResult()
        assert (cache.folder / "lanes").is_dir()
        EngineCache(cache.folder)  # as the building process opens it

    def test_an_empty_folder_becomes_a_cache(self, tmp_path):
        cache = EngineCache(tmp_path)
        cache._make(tmp_path / "engines")
        assert EngineCache(tmp_path).entries() == []
        assert files(cache) == ["CACHEDIR.TAG"]

    def test_nothing_is_listed_or_removed_where_nothing_is(self, tmp_path):
        cache = EngineCache(tmp_path / "none")
        assert cache.entries() == []
        assert cache.prune() == cache.clear() == cache_module.PruneResult()
        assert not cache.folder.exists()


class TestHashes:
    @pytest.fixture
    def read(self, monkeypatch):
        """The files whose content was read."""
        paths = []
        real = cache_module.sha256_of_file
        monkeypatch.setattr(
            cache_module, "sha256_of_file", lambda path: paths.append(path) or real(path)
        )
        return paths

    @pytest.fixture
    def big(self, tmp_path, monkeypatch):
        # Times of change cannot be set, so that a file counts as settled at once.
        monkeypatch.setattr(cache_module, "_SETTLED_NS", 0)
        path = tmp_path / "big.bin"
        path.write_bytes(b"content")
        return path

    def test_a_file_is_read_once(self, cache, big, read):
        expected = hashlib.sha256(b"content").hexdigest()
        assert cache.hash_file(big) == expected
        assert EngineCache(cache.folder).hash_file(big) == expected
        assert read == [big]

    def test_a_changed_file_is_read_again(self, cache, big, read):
        cache.hash_file(big)
        stat = big.stat()
        big.write_bytes(b"CONTENT")
        os.utime(big, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as cp --preserve does
        assert big.stat().st_size == stat.st_size
        for fresh in (cache, EngineCache(cache.folder)):
            assert fresh.hash_file(big) == hashlib.sha256(b"CONTENT").hexdigest()

    def test_a_replaced_file_is_read_again(self, cache, big, read, tmp_path):
        cache.hash_file(big)
        other = tmp_path / "other"
        other.write_bytes(b"CONTENT")
        other.replace(big)
        assert EngineCache(cache.folder).hash_file(big) == hashlib.sha256(b"CONTENT").hexdigest()

    def test_a_file_that_has_just_changed_is_not_trusted(self, cache, tmp_path, read):
        path = tmp_path / "new.bin"
        path.write_bytes(b"content")
        cache.hash_file(path)
        assert cache.hash_file(path)
        assert len(read) == 1
        EngineCache(cache.folder).hash_file(path)
        assert len(read) == 2

    def test_a_file_that_was_new_when_it_was_read_is_not_trusted(
        self, cache, tmp_path, monkeypatch
    ):
        path = tmp_path / "new.bin"
        path.write_bytes(b"content")
        now = path.stat().st_ctime_ns
        monkeypatch.setattr(cache_module.time, "time_ns", lambda: now)

        def read_slowly(file):
            monkeypatch.setattr(cache_module.time, "time_ns", lambda: now + 10**10)
            return hashlib.sha256(file.read_bytes()).hexdigest()

        monkeypatch.setattr(cache_module, "sha256_of_file", read_slowly)
        cache.hash_file(path)
        assert not (cache.folder / "hashes").exists()

    def test_a_damaged_record_of_hashes_is_not_used(self, cache, big, read):
        digest = cache.hash_file(big)
        (memo,) = (cache.folder / "hashes").iterdir()
        memo.write_bytes(memo.read_bytes().replace(digest[:8].encode(), b"00000000"))
        assert EngineCache(cache.folder).hash_file(big) == digest
        assert len(read) == 2

    def test_a_missing_file_is_an_error(self, cache, tmp_path):
        with pytest.raises(FileNotFoundError):
            cache.hash_file(tmp_path / "none")

    def test_the_memory_is_bounded(self, cache, tmp_path, monkeypatch):
        monkeypatch.setattr(cache_module, "_SETTLED_NS", 0)
        monkeypatch.setattr(cache_module, "_MOST_HASHES", 3)
        for number in range(5):
            path = tmp_path / f"{number}.bin"
            path.write_bytes(b"x")
            cache.hash_file(path)
        cache.prune()
        assert len(list((cache.folder / "hashes").iterdir())) == 3


class TestLocks:
    def test_two_builders_at_once_build_once(self, tmp_path):
        model = tiny_models.conv_chain(tmp_path / "m.onnx", length=60)
        script = (
            "import sys; from trt_native import *\n"
            "config = BuildConfig(profiles=(ProfileSpec.parse(['batch=1:2:4']),))\n"
            "built = EngineCache(sys.argv[2]).build_plan(sys.argv[1], config, backend='rtx')\n"
            "print(built.cached, built.manifest.plan_sha256)"
        )
        builders = [
            subprocess.Popen(
                [sys.executable, "-c", script, model, tmp_path / "cache"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        lines = [process.communicate(timeout=120)[0].split() for process in builders]
        assert sorted(cached for cached, _ in lines) == ["False", "True", "True"]
        assert len({digest for _, digest in lines}) == 1
        assert list((tmp_path / "cache" / "locks").iterdir()) == []

    def test_a_waiting_build_says_so(self, build, cache, rtx, model):
        from filelock import FileLock

        build()
        (entry,) = cache.entries()
        cache.clear()
        lock = FileLock(cache.folder / "locks" / f"{entry.key}.lock")
        lock.acquire()
        phases = []

        class Progress:
            def phase_start(self, phase, parent, steps):
                phases.append(phase)
                if "Waiting" in phase:
                    lock.release()

            def step_complete(self, phase, step):
                pass

            def phase_finish(self, phase):
                pass

        cache.build_plan(model, config(), backend=rtx, progress=Progress())
        assert phases[:2] == ["Reading the model", "Waiting for another build of this plan"]

    def test_a_failed_build_keeps_nothing(self, cache, rtx, tmp_path):
        path = tiny_models.conv(tmp_path / "bad.onnx", operator="Warp")
        with pytest.raises(Exception, match="Warp"):
            cache.build_plan(path, config(precision=Precision.FP32), backend=rtx)
        assert [name for name in files(cache) if not name.startswith("hashes")] == ["CACHEDIR.TAG"]


class TestCalibration:
    """Plans in FP8, whose ranges are in the JSON file next to the calibration cache."""

    @pytest.fixture
    def fp8(self, cache, tmp_path, rtx):
        model = tiny_models.dense(tmp_path / "d.onnx")
        ranges = tiny_models.calibration(model, tmp_path / "d.calib", 4.0)
        spec = {"calibration_cache": ranges}
        options = config("batch=2", precision="fp8", quantization=spec)

        def run():
            return EngineCache(cache.folder).build_plan(model, options, backend=rtx)

        return model, ranges, run

    def test_other_ranges_next_to_the_same_cache_make_another_plan(self, fp8):
        _, ranges, run = fp8
        first = run()
        assert run().cached
        Path(f"{ranges}.json").unlink()
        second = run()
        assert not second.cached
        assert bytes(second.plan.data) != bytes(first.plan.data)

    def test_ranges_that_change_during_a_build_are_not_taken_for_its_own(self, fp8, monkeypatch):
        model, ranges, run = fp8
        real = build_module.build_prepared

        def meddle(*args, **options):
            tiny_models.calibration(model, ranges, 1.0)
            return real(*args, **options)

        monkeypatch.setattr(build_module, "build_prepared", meddle)
        first = run()
        monkeypatch.undo()
        second = run()
        assert (first.cached, second.cached) == (False, False)
        assert bytes(second.plan.data) != bytes(first.plan.data)
