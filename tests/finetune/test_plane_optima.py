"""Every method on a correlated Gaussian chain of the plane reaches the law that is known.

The figures are closed forms of the ten steps, with covariances and the initial law learned or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from exact_chains import ALPHA, G2, law_of_g2, linear_reward, quadratic_reward
from torch import nn

from fastguide import finetune
from fastguide.finetune import cosine, linear

FALLING = dict(learning_rate=linear(0.05, 5e-4))


def monomials(y):
    """All of degree two and less."""
    return torch.cat([torch.ones_like(y[:, :1]), y, y * y, y[:, :1] * y[:, 1:]], dim=1)


class PlaneValue(nn.Module):
    """A quadratic at every time."""

    def __init__(self):
        super().__init__()
        self.q = nn.Parameter(torch.zeros(11, 6))

    def forward(self, x, t):
        return (self.q[t.long()] * monomials(x)).sum(dim=1)


WHOLE = dict(learn_scale="full", prior_steps=1)
TARGET = (0.81818, -0.09091), (0.31061, 0.11364, 0.43182)
LINEAR_TARGET = (1.4, 0.2), (1.0, 0.6, 1.0)


@dataclass
class PlaneRow:
    """A method on G2: its chain, and the mean and covariance of x0 it must come to."""

    method: type[finetune.Method]
    options: dict[str, Any]
    last: float
    reward: Any
    iterations: int
    batch: int
    mean: tuple[float, float]
    cov: tuple[float, float, float]
    error: float


PLANE = {
    "backprop, quadratic": PlaneRow(
        finetune.RewardBackprop,
        {},
        1e-4,
        quadratic_reward,
        300,
        256,
        (0.81816, -0.09091),
        (0.35502, 0.13572, 0.46955),
        0.03,
    ),
    "backprop, linear": PlaneRow(
        finetune.RewardBackprop,
        {},
        0.3,
        linear_reward,
        150,
        128,
        (0.98677, -0.03762),
        (1.0, 0.6, 1.0),
        0.005,
    ),
    "weighted likelihood, means": PlaneRow(
        finetune.RewardWeightedMLE,
        {},
        0.3,
        quadratic_reward,
        300,
        4096,
        (0.72664, -0.10657),
        (0.35232, 0.14104, 0.47373),
        0.02,
    ),
    "weighted likelihood, quadratic": PlaneRow(
        finetune.RewardWeightedMLE,
        WHOLE,
        0.3,
        quadratic_reward,
        150,
        4096,
        *TARGET,
        0.02,
    ),
    "weighted likelihood, linear": PlaneRow(
        finetune.RewardWeightedMLE,
        {**WHOLE, "min_ess": 0.001},
        0.3,
        linear_reward,
        150,
        8192,
        *LINEAR_TARGET,
        0.06,
    ),
    "vargrad, quadratic, learned start": PlaneRow(
        finetune.PathConsistency,
        {**WHOLE, "learning_rate": cosine(0.05, 1e-4)},
        0.3,
        quadratic_reward,
        400,
        256,
        *TARGET,
        0.005,
    ),
    "vargrad, quadratic": PlaneRow(
        finetune.PathConsistency,
        dict(learn_scale="full", features=monomials, learning_rate=cosine(0.05, 1e-4)),
        1e-4,
        quadratic_reward,
        400,
        256,
        *TARGET,
        0.005,
    ),
    "vargrad, linear, learned start": PlaneRow(
        finetune.PathConsistency,
        dict(prior_steps=1),
        0.3,
        linear_reward,
        400,
        256,
        *LINEAR_TARGET,
        0.005,
    ),
    "one step, quadratic": PlaneRow(
        finetune.PathConsistency,
        dict(
            objective="one_step",
            learn_scale="full",
            learning_rate=cosine(0.03, 1e-4),
            value_learning_rate=cosine(0.1, 1e-4),
        ),
        0.3,
        quadratic_reward,
        1200,
        256,
        (0.72664, -0.10657),
        (0.32472, 0.12909, 0.45179),
        0.005,
    ),
}


def check_plane(name, seed):
    row = PLANE[name]
    chain = G2(row.last)
    options = {**FALLING, **row.options}
    if options.get("objective") == "one_step":
        options["value"] = PlaneValue()
    tuner = row.method(
        chain, chain.in_x(row.reward), alpha=ALPHA, adapter="full", max_grad_norm=None, **options
    )
    tuner.train(row.iterations, row.batch, num_steps=10, seed=seed, progress=False)
    mean, cov = law_of_g2(tuner.diffusion)
    assert (mean - torch.tensor(row.mean)).abs().max() <= row.error, mean
    assert (cov - torch.tensor(row.cov)).abs().max() <= row.error, cov


@pytest.mark.parametrize(
    "name", ["backprop, linear", "vargrad, quadratic, learned start", "vargrad, quadratic"]
)
def test_plane_optimum(name):
    check_plane(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PLANE))
def test_plane_optimum_over_seeds(name):
    for seed in range(1, 6):
        check_plane(name, seed)
