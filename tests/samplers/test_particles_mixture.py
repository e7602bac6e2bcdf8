"""Particle methods on TC-C, a bimodal chain with its exact kernel: unbiased for any value."""

from __future__ import annotations

from typing import Any

import exact_mixture as em
import pytest
import torch
from scipy.stats import norm

import fastguide as fg

DRAWS = 10_000


def scores(sampler: Any, reward: str) -> list[float]:
    """z-scores of the unbiased estimates of Z times 1, P(x < 0), E[x] and E[x^2], in units of Z."""
    result = sampler.sample(DRAWS, num_steps=em.STEPS, progress=False)
    weights, means, variances, log_z = em.target(reward)
    due = (
        1.0,
        float((weights * norm.cdf(-means / variances**0.5)).sum()),
        float((weights * means).sum()),
        float((weights * (variances + means**2)).sum()),
    )
    x = result.particles[..., 0].double()
    weight = result.log_weights.exp() * (result.log_z - log_z).exp()[:, None]
    found = []
    for f, expected in zip((torch.ones_like(x), (x < 0).double(), x, x**2), due, strict=True):
        terms = (weight * f).sum(1)
        found.append(float((terms.mean() - expected) / (terms.std() / DRAWS**0.5)))
    return found


@pytest.mark.parametrize("kind", ["exact", "mean", "pm"])
@pytest.mark.parametrize("reward", ["linear", "quadratic"])
def test_weighted_particles(reward: str, kind: str) -> None:
    common = {"reward": em.reward(reward), "value": em.value(reward, kind)}
    common |= {"diffusion": em.MixtureDiffusion(), "alpha": em.ALPHAS[reward]}
    for sampler in (
        fg.SMC(**common, num_particles=16),
        fg.NestedSMC(**common, num_particles=4, num_candidates=4),
        fg.FKSteering(**common, num_particles=16, potential="max", interval=2),
    ):
        assert max(map(abs, scores(sampler, reward))) < 5
