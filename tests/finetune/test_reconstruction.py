"""The denoising form of weighted likelihood, against its definition."""

from __future__ import annotations

import pytest
import torch
from tuning_case import QUIET, count_of_threes, sequences

from fastguide import finetune
from fastguide.finetune.parts import Part


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reconstruction_is_weighted_cross_entropy(temperature):
    """Value and gradient are those of rho times the log-probability, forbidden tokens included."""
    diffusion = sequences()
    diffusion.temperature = temperature
    diffusion.forbidden_tokens = (1,)
    diffusion._forbidden = torch.tensor([1])
    tuner = finetune.RewardWeightedMLE(
        diffusion, count_of_threes, alpha=1.0, form="denoise", adapter="full"
    )
    tuner.train(1, 32, num_steps=4, **QUIET)
    start = {"prompt": None, "cond": {}}
    buffer = tuner.collect(3, torch.arange(32), 0.0, start)
    paths, steps = torch.ones(32, 5, dtype=torch.bool).nonzero(as_tuple=True)
    part = Part(buffer, paths, steps)
    policy = tuner.policy
    law = policy.at(part.x, steps, {})
    likelihood = policy.rho[steps] * law.log_prob(part.clean)
    expected = -(buffer.extra["weight"][paths] * likelihood).sum()
    found, _ = tuner.loss(part)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    weights = [p for p in tuner._network.parameters() if p.requires_grad]
    for one, due in zip(
        torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(one, due, rtol=1e-9, atol=1e-12)
        assert bool(one.isfinite().all())
    assert float(buffer.extra["weight"].std()) > 0.1
