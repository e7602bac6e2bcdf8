"""FKCGuidance against the product of two chains, by quadrature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fastguide as fg
from fastguide.errors import ArgumentError
from fastguide.policy import Choice, Selection

STEPS, SCALE = 6, 1.7
ABAR = np.cumprod(1 - np.linspace(0.05, 0.6, STEPS))
MEAN, SD = (0.2, 0.8), (0.9, 0.6)  # of the data: unconditional, conditional


def prediction(x: Any, index: Any, which: Any) -> Any:
    """x0_hat of N(m, s^2) data at noise level `index`."""
    m, s = np.array(MEAN)[which], np.array(SD)[which]
    a = ABAR[index]
    return m + np.sqrt(a) * s**2 / (a * s**2 + 1 - a) * (x - np.sqrt(a) * m)


def denoiser(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return torch.tensor(prediction(x[:, 0].double().numpy(), t.numpy(), label.numpy()))[:, None]


def diffusion(scale: float = SCALE) -> fg.GaussianDiffusion:
    null = {"label": torch.zeros(1, dtype=torch.int64)} if scale != 1 else None
    return fg.GaussianDiffusion(
        denoiser,
        (1,),
        alphas_cumprod=ABAR,
        prediction_type="sample",
        null_cond=null,
        guidance_scale=scale,
    )


def product_law() -> tuple[float, float, float]:
    """Z, E[x0] and E[x0^2] of prior * prod of p_u^(1 - g) p_c^g over the steps with noise."""
    grid = np.linspace(-9, 9, 2401)
    width = grid[1] - grid[0]
    law = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    d = diffusion()
    for step in d.steps(STEPS):
        a, b, s = step.params
        level = np.full(len(grid), int(step.time))
        means = [a * grid + b * prediction(grid, level, np.full(len(grid), i)) for i in (0, 1)]
        guided = means[0] + SCALE * (means[1] - means[0])
        if s == 0:
            return law.sum() * width, *(float((law * guided**k).sum() * width) for k in (1, 2))
        log_kernel = -((grid[None, :] - guided[:, None]) ** 2) / (2 * s**2)
        log_kernel += (SCALE * (SCALE - 1) * (means[1] - means[0]) ** 2 / (2 * s**2))[:, None]
        law = law @ (np.exp(log_kernel) / (s * np.sqrt(2 * np.pi))) * width
    raise AssertionError("the last step has no noise")


def scores(kind: type[Any], draws: int = 10_000, **how: Any) -> list[float]:
    sampler = kind(diffusion(), num_particles=8, num_steps=STEPS, **how)
    cond = {"label": torch.ones(1, dtype=torch.int64)}
    result = sampler.sample(draws, num_steps=STEPS, cond=cond, progress=False)
    x = result.particles[..., 0].double()
    weight = result.log_weights.exp() * result.log_z.exp()[:, None]
    found = []
    for power, due in enumerate(product_law()):
        terms = (weight * x**power).sum(1)
        found.append(float((terms.mean() - due) / (terms.std() / draws**0.5)))
    return found


@pytest.mark.parametrize("ess_threshold", [0.0, 0.5, 1.0])
def test_the_weighted_particles_follow_the_product(ess_threshold: float) -> None:
    assert max(map(abs, scores(fg.FKCGuidance, ess_threshold=ess_threshold))) < 5


class Halved(fg.FKCGuidance):
    """Half of each weight is missing."""

    def select(self, selection: Selection) -> Choice:
        return super().select(Selection(**{**vars(selection), "values": selection.values / 2}))


def test_the_test_sees_half_the_weight_missing() -> None:
    assert max(map(abs, scores(Halved))) > 5


def test_no_further_network_calls() -> None:
    cond = {"label": torch.ones(1, dtype=torch.int64)}
    sampler = fg.FKCGuidance(diffusion(), num_particles=4, num_steps=STEPS)
    corrected = sampler.sample(5, num_steps=STEPS, cond=cond, progress=False)
    plain = fg.Unguided(diffusion()).sample(20, num_steps=STEPS, cond=cond, progress=False)
    assert corrected.cost.denoiser_rows == plain.cost.denoiser_rows == 2 * 20 * STEPS


def test_it_needs_guidance_to_correct() -> None:
    with pytest.raises(ArgumentError, match="and a guidance_scale other than 1"):
        fg.FKCGuidance(diffusion(1.0), num_steps=STEPS)
    masked = fg.MaskedDiffusion(lambda x, t: x, 3, 4)
    with pytest.raises(ArgumentError, match="got MaskedDiffusion"):
        fg.FKCGuidance(masked, num_steps=STEPS)
    with pytest.raises(ArgumentError, match="output='best' needs a reward"):
        fg.FKCGuidance(diffusion(), num_steps=STEPS, output="best")
