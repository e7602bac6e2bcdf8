"""What is cut out of the gradient, and what precision it is taken in."""

from __future__ import annotations

import pytest
import torch
from exact_chains import G1, Shift, first
from tuning_case import QUIET, count_of_threes, sequences

import fastguide as fg
from fastguide import finetune
from fastguide.errors import ArgumentError
from fastguide.finetune import linear
from fastguide.samplers.refinement import round_seed


@pytest.mark.parametrize("truncation", [None, 4, "random_path", "random_step"])
def test_truncated_gradients(truncation):
    """For r = x the slope of c_t is the product of the later factors, where t is not cut off."""
    chain = G1()
    tuner = finetune.RewardBackprop(
        chain, first, alpha=1e-9, truncation=truncation, adapter="full", max_grad_norm=None
    )
    tuner.train(1, 500, num_steps=10, seed=5, **QUIET)
    slope = tuner._network.c.grad
    factors = torch.tensor([1.0, *(step.params[0] for step in reversed(chain.steps(10)))])
    later = factors[:10].cumprod(0)
    kept = tuner._kept(round_seed(5, 0), torch.arange(500))
    share = torch.ones(10) if kept is None else kept.double().mean(dim=0).flip(0).float()
    if truncation == 4:
        share[4:] = 0
    torch.testing.assert_close(slope[1:], -later * share, rtol=1e-4, atol=1e-6)
    if kept is not None:
        assert 0.02 < float(share[-1]) < 0.3 < 0.8 < float(share[0])


def test_steps_without_noise_are_held():
    """The last step of DDPM costs the KL that noise of the step before would make of its shift."""
    diffusion = fg.GaussianDiffusion(
        Shift(4), (1,), alphas_cumprod=[0.9, 0.7, 0.4, 0.1], prediction_type="sample"
    )
    for checkpointing in (False, True):
        tuner = finetune.RewardBackprop(
            diffusion,
            first,
            alpha=1.0,
            truncation=1,
            adapter="full",
            max_grad_norm=None,
            learning_rate=linear(0.05, 1e-3),
            checkpointing=checkpointing,
        )
        tuner.train(150, 32, num_steps=4, **QUIET)
        shift, (a, _, s) = tuner.diffusion.denoiser.c, diffusion.steps(4)[2].params
        assert a > 0
        assert float(shift[0].detach()) == pytest.approx(s**2, abs=0.02)
        assert bool((shift[1:] == 0).all())


def test_chains_without_any_noise_are_refused():
    diffusion = fg.GaussianDiffusion(Shift(4), (1,), alphas_cumprod=[0.9, 0.7, 0.4, 0.1], eta=0)
    tuner = finetune.RewardBackprop(diffusion, first, alpha=1.0, adapter="full")
    with pytest.raises(ArgumentError, match="eta > 0"):
        tuner.train(1, 4, num_steps=4, **QUIET)


def test_mixed_precision():
    """bfloat16 products: ratios stay near 1, and what is learned is nearly what float32 learns."""
    rewards = []
    for autocast in (None, torch.bfloat16):
        network = sequences().denoiser.float()
        tuner = finetune.PPO(
            fg.MaskedDiffusion(network, 8, 4),
            count_of_threes,
            alpha=0.5,
            adapter="full",
            learning_rate=0.01,
            autocast=autocast,
        )
        history = tuner.train(20, 64, num_steps=4, **QUIET)
        assert history.rows[0]["ratio_drift"] < 1e-3
        rewards.append(float(history.column("reward")[-5:].mean()))
    assert rewards[0] == pytest.approx(rewards[1], abs=0.3)
    assert rewards[1] > history.rows[0]["reward"] + 1
    assert rewards[0] != rewards[1]
