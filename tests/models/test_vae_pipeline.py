"""The drop-in for the VAE, with PyTorch in the plans' place, against diffusers' module."""

from __future__ import annotations

import pytest
import torch

from trt_native import LatentSyncVAE
from trt_native.errors import ClosedError, SpecError, UnsupportedError

pytest.importorskip("diffusers")
from helpers.autoencoders import diffusers_vae, runners
from helpers.made_plans import tensor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def theirs(vae):
    module = diffusers_vae()
    module.load_state_dict(vae.state_dict())
    return module


def drop_in(vae, **options):
    made = runners(vae, **{"size": (4, 6), **options})
    return LatentSyncVAE(*made, config=vae.config), *made


def images(frames, height=32, width=48, dtype=torch.float32):
    random = torch.Generator().manual_seed(frames)
    return torch.randn(frames, 3, height, width, generator=random).to(dtype)


def latents(frames, height=4, width=6):
    return torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("frames", ["4", "1:2:4", "2:4:4"])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_any_number_of_frames(vae, theirs, frames, count):
    ours, encoder, decoder = drop_in(vae, frames=frames)
    draws = [torch.Generator().manual_seed(7) for _ in range(2)]
    found = ours.encode(images(count)).latent_dist.sample(generator=draws[0])
    expected = theirs.encode(images(count)).latent_dist.sample(generator=draws[1])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found, expected = (module.decode(latents(count)).sample for module in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    low, _, high = (int(n) for n in f"{frames}:{frames}:{frames}".split(":")[:3])
    for runner, name in ((encoder, "image"), (decoder, "latents")):
        sizes = [len(inputs[name]) for inputs, _ in runner.runs]
        assert len(sizes) == -(-count // high)
        assert all(low <= size <= high for size in sizes)


def test_the_interface_that_pipelines_use(vae, theirs):
    ours, *_ = drop_in(vae)
    assert ours.config.block_out_channels == list(theirs.config.block_out_channels)
    assert ours.config.latent_channels == theirs.config.latent_channels
    assert ours.config.scaling_factor == theirs.config.scaling_factor
    assert ours.config.shift_factor == 0
    ours.config.scaling_factor = 0.5
    assert ours.config.scaling_factor == 0.5
    assert (ours.dtype, ours.device) == (torch.float32, torch.device("cpu"))
    assert ours.to("cpu", dtype=torch.float32).eval() is ours
    assert list(ours.parameters()) == []
    ours.enable_slicing()
    ours.disable_slicing()
    ours.disable_tiling()
    (found,) = ours.decode(latents(2), return_dict=False)
    torch.testing.assert_close(found, theirs.decode(latents(2)).sample, rtol=1e-5, atol=1e-4)
    (found,) = ours.encode(images(2), return_dict=False)
    expected = theirs.encode(images(2)).latent_dist.mode()
    torch.testing.assert_close(found.mode(), expected, rtol=1e-5, atol=1e-5)


def test_types_are_converted_and_results_have_the_type_of_the_input(vae, theirs, caplog):
    ours, *_ = drop_in(vae)
    ours.to(torch.float16)
    assert "vae.encoder.plan takes torch.float32, not torch.float16" in caplog.text
    found = ours.encode(images(2, dtype=torch.float16)).latent_dist.mode()
    assert found.dtype is torch.float16
    expected = theirs.encode(images(2)).latent_dist.mode()
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def test_results_stay_when_it_runs_again(vae):
    ours, *_ = drop_in(vae)
    first = ours.decode(latents(2)).sample
    before = first.clone()
    ours.decode(latents(3))
    assert torch.equal(first, before)


def test_inside_inference_mode_first(vae):
    ours, *_ = drop_in(vae)
    with torch.inference_mode():
        ours.decode(latents(2))
    assert ours.decode(latents(2)).sample.shape == (2, 3, 32, 48)


@pytest.mark.parametrize(
    "shape", [(2, 3, 40, 48), (2, 4, 32, 48), (0, 3, 32, 48), (3, 32, 48)], ids=str
)
def test_shapes_that_the_plan_does_not_take(vae, shape):
    ours, *_ = drop_in(vae)
    with pytest.raises(SpecError, match=r"vae\.encoder\.plan takes image of 4x3x32x48"):
        ours.encode(torch.zeros(shape))


def test_what_it_cannot_do(vae):
    ours, encoder, decoder = drop_in(vae)
    with pytest.raises(UnsupportedError, match="fewer frames"):
        ours.enable_tiling()
    with pytest.raises(UnsupportedError, match="encode and decode"):
        ours(images(1))
    with pytest.raises(UnsupportedError, match="cannot be moved to cuda"):
        ours.to("cuda")
    with pytest.raises(SpecError, match=r"takes image of 4x3x32x48.*torch\.int64"):
        ours.encode(images(4).long())
    ours.close()
    assert encoder.closed
    assert decoder.closed
    with pytest.raises(ClosedError):
        ours.decode(latents(1))


def test_plans_of_something_else(vae):
    encoder, decoder = runners(vae)
    with pytest.raises(SpecError, match="does not turn image into moments, found latents"):
        LatentSyncVAE(decoder, encoder, config=vae.config)
    encoder.tensors = [*encoder.tensors, tensor("more", "output", "float32", shape=(1,))]
    with pytest.raises(SpecError, match=r"found image .*, moments .*, more"):
        LatentSyncVAE(encoder, decoder, config=vae.config)
