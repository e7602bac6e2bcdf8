"""The forward process: clean samples at the noise of every step."""

from __future__ import annotations

import math

import torch

from fastguide import ops
from fastguide.diffusion import MaskedDiffusion
from fastguide.finetune.laws import Laws
from fastguide.finetune.rollout import Buffer
from fastguide.rng import Purpose
from fastguide.samplers.refinement import round_seed

Tensor = torch.Tensor


def noised(laws: Laws, buffer: Buffer) -> Tensor:
    """The samples as they might have been before each step: [N, T + 1, ...], the last one clean.

    Gaussian: alpha x0 + sigma noise at the level of the step. Masked: every site that was masked
    at the start is masked with the chance that it still is before the step.
    """
    clean, chains, steps = buffer.samples, buffer.chains, len(laws)
    size = math.prod(clean.shape[1:])
    key = round_seed(buffer.key, 0)
    column = (1, -1, *[1] * (clean.dim() - 1))
    diffusion = laws.diffusion
    if isinstance(diffusion, MaskedDiffusion):
        draw = ops.philox_uniform(key, chains, 0, Purpose.MASK, num_elements=steps * size)
        chance = (1 - torch.tensor([0.0] + [step.params[0] for step in laws.steps[:-1]])).cumprod(0)
        masked = draw.view(-1, steps, size) < chance.to(draw.device).view(column)
        masked &= (buffer.states[:, 0] == diffusion.mask_token)[:, None]
        before = clean[:, None].where(~masked, diffusion.mask_token)
    else:
        draw = ops.philox_normal(key, chains, 0, Purpose.NOISE, num_elements=steps * size)
        noise = draw.view(len(clean), steps, *clean.shape[1:])
        levels = diffusion.levels(steps)[:-1]
        alpha, sigma = (
            torch.tensor([getattr(level, name) for level in levels], device=clean.device)
            for name in ("alpha", "sigma")
        )
        before = alpha.view(column) * clean[:, None] + sigma.view(column) * noise
    return torch.cat([before, clean[:, None]], dim=1)
