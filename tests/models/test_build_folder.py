"""A folder of plans with one call: TensorRT builds them, of models of a few nodes."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import onnx
import pytest
from helpers import DATA
from helpers.tiny_models import FLOAT, save, tensor
from onnx import helper

from trt_native.errors import ExportError, ModelError, SpecError, UnsupportedError
from trt_native.export import ExportReport
from trt_native.models.latentsync import build_folder
from trt_native.models.latentsync.build_folder import FolderOptions, ModelSources, build_latentsync
from trt_native.plans.plan import Plan
from trt_native.shapes import DimRange

pytest.importorskip("onnxscript")  # LatentSync's own environment has none

RANDOM = ModelSources(random_seed=0, config="small", vae_config="small")
NAMES = ["unet.plan", "unet.shallow.plan", "vae.decoder.plan", "vae.encoder.plan"]


def written(path, shape, operator="Relu"):
    nodes = [helper.make_node(operator, ["x"], ["y"])]
    save(path, nodes, [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)])
    return ExportReport(path, None, 18, (), (), 5, path.stat().st_size, 1.25)


@pytest.fixture
def exports(monkeypatch):
    """Exports of one node with the dimensions of the real ones; what they were called with."""
    calls = []
    latents = ["batch", 13, "frames", "height", "width"]

    def export_deepcache(path, **options):
        calls.append(("deepcache", options))
        return written(path, latents), written(path.with_stem("unet.shallow"), latents, "Sigmoid")

    def export_latentsync(path, **options):
        calls.append(("latentsync", options))
        return written(path, latents)

    def export_vae(path, **options):
        calls.append(("vae", options))
        pairs = (("vae.encoder", 3), ("vae.decoder", 4))
        shapes = ((path.with_stem(name), ["frames", n, "height", "width"]) for name, n in pairs)
        return tuple(written(*shape) for shape in shapes)

    def export_whisper(path, **options):
        calls.append(("whisper", options))
        return written(path, [1, 8, 24])

    for function in (export_deepcache, export_latentsync, export_vae, export_whisper):
        monkeypatch.setattr(build_folder, function.__name__, function)
    return calls


def plans(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".plan"))


def profiles(path):
    (given, *_) = Plan.load(path).manifest.tensors
    return [str(profile) for profile in given.profiles] or list(given.shape)


@pytest.mark.slow
@pytest.mark.backend
class TestBuilds:
    def test_all_plans(self, exports, tmp_path):
        reports = build_latentsync(tmp_path / "plans", RANDOM, FolderOptions(vae_frames=2))
        assert plans(tmp_path / "plans") == NAMES
        assert [report.plan.name for report in reports] == [*NAMES[:2], NAMES[3], NAMES[2]]
        assert not any(report.cached for report in reports)
        assert json.loads(json.dumps([r.to_dict() for r in reports]))[0]["export_s"] == 1.2
        sizes = [report.plan.stat().st_size for report in reports]
        assert sizes == [report.plan_bytes for report in reports]

        # The small U-Net is for 128 pixels.
        assert profiles(tmp_path / "plans" / "unet.plan") == [
            "1x13x1x16x16:2x13x16x16x16:2x13x16x16x16",
            "2x13x16x16x16",
        ]
        assert profiles(tmp_path / "plans" / "vae.encoder.plan") == ["2x3x128x128"]
        assert profiles(tmp_path / "plans" / "vae.decoder.plan") == ["2x4x16x16"]

        others = {name for name in os.listdir(tmp_path / "plans") if ".plan" not in name}
        assert others == {".build-latentsync.lock"}

    def test_the_unet_and_whisper(self, exports, tmp_path):
        weights = ModelSources(
            checkpoint=DATA / "unet_small.pt", config="small", whisper=tmp_path / "tiny.pt"
        )
        options = FolderOptions(
            vae=False, deepcache=False, guidance=False, resolution=64, float_timestep=True
        )
        build_latentsync(tmp_path, weights, options)
        assert plans(tmp_path) == ["unet.plan", "whisper.encoder.plan"]
        assert profiles(tmp_path / "unet.plan")[0] == "1x13x1x8x8:1x13x16x8x8:1x13x16x8x8"
        (_, whisper), (kind, given) = exports
        assert whisper["checkpoint"] == tmp_path / "tiny.pt"
        assert kind == "latentsync"
        assert given["checkpoint"].sha256
        assert (given["precision"], given["timestep_dtype"]) == ("fp16", "float32")


@pytest.mark.parametrize(("positions", "frames"), [(8, 8), (24, 16), (None, 16)])
def test_no_more_frames_than_positions(exports, tmp_path, monkeypatch, positions, frames):
    export, jobs = build_folder.export_latentsync, []

    def export_with_limit(path, **options):
        report = export(path, **options)
        model = onnx.load(report.path)
        if positions is not None:
            helper.set_model_props(model, {"trt_native.max.frames": str(positions)})
        onnx.save(model, report.path)
        return report

    def build(first, export, jobs_of, progress):
        reports = export(lambda: None)
        jobs.extend(jobs_of(reports))
        manifest = SimpleNamespace(plan_bytes=1, seconds={"total": 1.0})
        return reports, [SimpleNamespace(manifest=manifest, cached=False)]

    monkeypatch.setattr(build_folder, "export_latentsync", export_with_limit)
    monkeypatch.setattr(build_folder, "build_exported", build)
    weights = ModelSources(random_seed=0, config="small")
    options = FolderOptions(deepcache=False, vae=False)
    build_latentsync(tmp_path, weights, options)
    ((profile,),) = [job.config.profiles for job in jobs]
    assert profile.dims["frames"] == DimRange(1, frames, frames)


def test_an_export_that_fails_leaves_nothing(exports, tmp_path, monkeypatch):
    def fail(path, **options):
        written(path, ["n"])
        raise ExportError("no")

    (tmp_path / ".onnx-files").mkdir()  # of a process that was killed
    (tmp_path / ".onnx-files" / "unet.onnx").write_text("")
    monkeypatch.setattr(build_folder, "export_vae", fail)
    with pytest.raises(ExportError):
        build_latentsync(tmp_path, RANDOM)
    assert os.listdir(tmp_path) == [".build-latentsync.lock"]


class TestRefusals:
    def test_weights(self, tmp_path):
        with pytest.raises(SpecError, match="either a checkpoint or a random_seed"):
            build_latentsync(tmp_path, ModelSources())
        with pytest.raises(SpecError, match="exactly where it is built and not random"):
            build_latentsync(tmp_path, ModelSources(random_seed=0, vae=tmp_path))
        with pytest.raises(SpecError, match="exactly where it is built and not random"):
            build_latentsync(tmp_path, ModelSources(checkpoint=tmp_path / "unet.pt"))
        with pytest.raises(ModelError, match=r"unet\.pt: cannot be read"):
            build_latentsync(
                tmp_path / "new",
                ModelSources(checkpoint=tmp_path / "unet.pt"),
                FolderOptions(vae=False),
            )
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("name", ["stabilityai/sd-vae-ft-mse", "sd"])
    def test_a_vae_that_is_no_folder(self, tmp_path, name):
        weights = ModelSources(checkpoint=tmp_path / "unet.pt", vae=name)
        with pytest.raises(ModelError, match=f"{name}: not a folder of diffusers' AutoencoderKL"):
            build_latentsync(tmp_path / "new", weights)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"precision": "int8"}, "use fp16, bf16 or fp32"),
            ({"vae_frames": 0}, "must be 1 or more"),
            ({"resolution": 100}, "multiple of 8 pixels"),
            ({"resolution": 0}, "multiple of 8 pixels"),
        ],
    )
    def test_options(self, tmp_path, options, message):
        with pytest.raises(SpecError, match=message):
            build_latentsync(tmp_path / "new", RANDOM, FolderOptions(**options))
        assert os.listdir(tmp_path) == []

    def test_an_unknown_backend(self, tmp_path):
        with pytest.raises(UnsupportedError, match="no backend 'nope'"):
            build_latentsync(tmp_path / "new", RANDOM, FolderOptions(backend="nope"))
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("name", ["file", "file/plans"])
    def test_a_folder_that_is_a_file(self, tmp_path, name):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(SpecError, match=r"cannot write to .*: .*/file is not a folder"):
            build_latentsync(tmp_path / name, RANDOM)
        assert (tmp_path / "file").read_text() == "mine"

    def test_sources_that_the_build_would_replace(self, exports, tmp_path):
        (tmp_path / ".onnx-files").mkdir()
        for name in ("unet.plan", "whisper.encoder.plan.json", ".onnx-files/tiny.pt"):
            source = tmp_path / name
            source.write_bytes(b"weights")
            for sources in (
                ModelSources(checkpoint=source),
                ModelSources(random_seed=0, whisper=str(source), config="small"),
            ):
                with pytest.raises(SpecError, match=r"files to read|is emptied by this build"):
                    build_latentsync(tmp_path, sources, FolderOptions(vae=False))
            assert source.read_bytes() == b"weights"
            source.unlink()
        assert exports == []

    def test_a_shallow_plan_that_would_not_fit(self, tmp_path):
        (tmp_path / "unet.shallow.plan").write_text("")
        with pytest.raises(SpecError, match="from an earlier build with DeepCache"):
            build_latentsync(tmp_path, RANDOM, FolderOptions(deepcache=False))

    def test_two_at_a_time(self, tmp_path):
        with (
            build_folder.FileLock(tmp_path / ".build-latentsync.lock"),
            pytest.raises(SpecError, match="another process builds there"),
        ):
            build_latentsync(tmp_path, RANDOM)


def test_the_command_says_what_is_missing(main_in_process, tmp_path):
    folder = tmp_path / "plans"
    code, _, err = main_in_process("build-latentsync", "-o", folder)
    assert (code, err) == (1, "error: give either CHECKPOINT or --random-weights SEED\n")
    code, _, err = main_in_process("build-latentsync", "unet.pt", "-o", folder)
    assert (code, err) == (1, "error: give either --vae FOLDER or --no-vae\n")
    code, _, err = main_in_process(
        "build-latentsync", "--random-weights", 0, "--resolution", 100, "-o", folder
    )
    assert code == 1
    assert err == (
        "error: resolution 100: must be a multiple of 8 pixels, one latent's size (--resolution)\n"
    )
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.backend
def test_the_command_reports(main_in_process, exports, tmp_path):
    words = ("build-latentsync", "--random-weights", 0, "--config", "small", "--no-vae", "-o")
    code, out, _ = main_in_process(*words, tmp_path, "--no-deepcache", "--json")
    report = json.loads(out)
    assert code == 0
    (plan,) = report["plans"]
    assert plan["plan"] == str(tmp_path / "unet.plan")
    assert not plan["cached"]
    code, out, _ = main_in_process(*words, tmp_path, "--no-deepcache")
    assert code == 0
    assert "unet.plan" in out
    assert "from the cache" in out
