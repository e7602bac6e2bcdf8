"""Weighted particles on TC-A: what they estimate without bias, and how far off they are."""

from __future__ import annotations

from typing import Any

import exact
import numpy as np
import torch

import fastguide as fg

ALPHA, DRAWS = 2.0, 20_000
Z = float(exact.pretrained_law() @ np.exp(exact.REWARD / ALPHA))


def made(kind: type[Any], num_particles: int = 16, **how: Any) -> Any:
    how = {"alpha": ALPHA, "num_particles": num_particles, **how}
    return kind(exact.diffusion(), exact.reward, **how)


def run(sampler: Any, draws: int = DRAWS, **how: Any) -> fg.Result:
    return sampler.sample(draws, **{"num_steps": exact.STEPS, "progress": False, **how})


def worst_score(result: fg.Result) -> float:
    """Largest |z-score| of exp(log_z), and of the weighted share of each state times it.

    exp(log_z) sum_i W_i f(x_i) is an unbiased estimate of Z E_target[f], whatever the number of
    particles.
    """
    shares = torch.zeros(len(result), 8, dtype=torch.float64)
    states = exact.clean_index(result.particles.flatten(0, 1)).view(len(result), -1)
    shares.scatter_add_(1, states, result.log_weights.exp())
    assert torch.allclose(shares.sum(1), torch.ones(()).double())
    terms = result.log_z.exp()[:, None] * shares
    terms = torch.cat([terms, terms.sum(1, keepdim=True)], dim=1)
    due = Z * torch.tensor([*exact.target_law(ALPHA), 1.0])
    return float(((terms.mean(0) - due) / terms.std(0) * len(result) ** 0.5).abs().max())
