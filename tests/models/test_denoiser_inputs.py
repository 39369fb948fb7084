"""Inputs of a denoiser's call as the exported model takes them."""

from __future__ import annotations

import pytest
import torch

from trt_native.errors import SpecError
from trt_native.models.latentsync import denoiser_inputs


class TestLatentSync:
    @pytest.mark.parametrize("timestep", [981, torch.tensor(981), torch.tensor([981.0])])
    @pytest.mark.parametrize("shape", [(2, 3, 50, 24), (6, 50, 24)])
    def test_inputs_of_the_exported_model(self, timestep, shape):
        sample = torch.ones(2, 13, 3, 8, 8)
        found = denoiser_inputs(sample, timestep, encoder_hidden_states=torch.ones(shape))
        assert found["latents"] is sample
        assert found["encoder_hidden_states"].shape == (6, 50, 24)
        assert found["timestep"].dtype == torch.int64
        assert found["timestep"].tolist() == [981]

    def test_timesteps_with_a_fraction(self):
        sample = torch.ones(2, 13, 3, 8, 8)
        for timestep in (961.4, torch.tensor(961.4), torch.tensor([961.4])):
            found = denoiser_inputs(sample, timestep, timestep_dtype="float32")["timestep"]
            assert torch.equal(found, torch.tensor([961.4]))
            with pytest.raises(SpecError, match=r"961\.4.* is not an integer, .* takes int64; exp"):
                denoiser_inputs(sample, timestep)
        found = denoiser_inputs(sample, torch.tensor(961), timestep_dtype="float32")["timestep"]
        assert torch.equal(found, torch.tensor([961.0]))

    def test_without_audio(self):
        assert set(denoiser_inputs(torch.ones(1), 1, None)) == {"latents", "timestep"}
