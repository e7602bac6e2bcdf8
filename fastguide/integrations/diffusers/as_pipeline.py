"""A Gaussian diffusion of ours as a diffusers pipeline."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastguide.diffusion import GaussianDiffusion
from fastguide.diffusion.conditioning import call_denoiser
from fastguide.errors import DtypeError, MissingExtraError

Tensor = torch.Tensor


@dataclass
class DenoiserOutput:
    """What pipelines read of a denoiser's output.

    Attributes:
        sample: [B, C, H, W].
    """

    sample: Tensor


class DenoiserUNet(nn.Module):
    """The denoiser of a `GaussianDiffusion`, called as pipelines call a UNet."""

    def __init__(self, diffusion: GaussianDiffusion, config: Any) -> None:
        super().__init__()
        self.denoiser = diffusion.denoiser
        self.config = config
        self._place = diffusion.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the states."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Of the states."""
        return self._place

    def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True) -> Any:
        """States [B, C, H, W] and one timestep, or one each, to the model's output."""
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        output = call_denoiser(self.denoiser, sample, t, None, None)
        return DenoiserOutput(output) if return_dict else (output,)


def as_pipeline(diffusion: GaussianDiffusion) -> Any:
    """A `diffusers.DDPMPipeline` that runs `diffusion`, sharing its denoiser.

    Pixels in [-1, 1] become images as that pipeline makes them. Its scheduler visits the same
    noise levels by the same ancestral steps for every num_inference_steps.

    Args:
        diffusion: of images [C, H, W] with H = W, without classifier-free guidance, eta=1.

    Raises:
        DtypeError: something else.   MissingExtraError: diffusers is not installed.
    """
    fits = isinstance(diffusion, GaussianDiffusion) and len(diffusion.shape) == 3
    if not fits or diffusion.shape[1] != diffusion.shape[2] or diffusion.rows_per_state != 1:
        raise DtypeError(
            "diffusion must be a fastguide.GaussianDiffusion of square images (C, H, H) without a "
            f"guidance_scale, got {type(diffusion).__name__}"
        )
    try:
        diffusers: Any = importlib.import_module("diffusers")
    except ImportError as error:
        raise MissingExtraError(
            'as_pipeline needs diffusers: pip install "fastguide[diffusers]"'
        ) from error
    table = diffusion.alphas_cumprod
    betas = 1 - table / torch.cat([torch.ones(1, dtype=table.dtype), table[:-1]])
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=len(table),
        trained_betas=betas.tolist(),
        prediction_type=diffusion.prediction_type,
        timestep_spacing=diffusion.timestep_spacing,
        variance_type="fixed_small" if diffusion.variance == "posterior" else "fixed_large",
        clip_sample=False,
    )
    channels, side, _ = diffusion.shape
    config = diffusers.configuration_utils.FrozenDict(in_channels=channels, sample_size=side)
    return diffusers.DDPMPipeline(DenoiserUNet(diffusion, config), scheduler)
