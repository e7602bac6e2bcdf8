"""Relaxed states: their KL, their gradient, and what they come to as the temperature falls."""

from __future__ import annotations

import pytest
import torch
from exact_chains import G1, LENGTH, MASK, STATES, MultilinearReward, Table, conditionals, quadratic
from tuning_case import QUIET, count_of_threes, sequences

import fastguide as fg
from fastguide import finetune, ops
from fastguide.errors import ArgumentError
from fastguide.finetune.laws import laws_of
from fastguide.finetune.relaxation import drakes_kl, hard_states, largest
from fastguide.finetune.rollout import roll

VOCAB = 3
CHAINS = torch.arange(256)


def chain(seed=None, dtype=torch.float32, **options):
    """M1's denoiser on the library's schedule, disturbed by `seed`."""
    logits = conditionals()
    if seed is not None:
        logits = logits + torch.randn(
            logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(seed)
        )
    denoiser = Table(logits)
    denoiser.logits.data = logits.to(dtype)
    return fg.MaskedDiffusion(denoiser, LENGTH, VOCAB, schedule="linear", **options)


@torch.no_grad()
def divergences(x, index, temperature=1.0):
    """KL of all 256 states three ways, and by the published weight."""
    one, other = chain(1, temperature=temperature), chain(temperature=temperature)
    policy = laws_of(one, 5)
    hard, rho = hard_states(x, MASK), policy.rho[index]
    logits, natural = one.predict_relaxed(x, rho, {})[0], other.predict_relaxed(x, rho, {})[0]
    law, expected = policy.law(hard, logits, index), policy.law(hard, natural, index)
    relaxed = ops.gumbel_softmax_step(
        logits,
        x,
        rho=rho,
        tau=1.0,
        seed=0,
        chains=CHAINS,
        step=0,
        logits_ref=natural,
        temperature=temperature,
    )
    zero = torch.zeros(256)
    steps = ops.masked_ppo(
        logits,
        hard,
        hard,
        zero,
        zero,
        mask_token=MASK,
        rho=rho,
        clip=(0.8, 1.2),
        logits_ref=natural,
        temperature=temperature,
    )
    return law.kl(expected), relaxed.kl, steps.kl, drakes_kl(law, expected, x, 1.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_divergence_of_hard_states(temperature):
    """The exact sum, both fused ops, and nothing at all by the published weight."""
    x, index = chain().relax(STATES), torch.arange(256) % 6
    exact, relaxed, steps, published = divergences(x, index, temperature)
    assert float(exact.max()) > 1
    torch.testing.assert_close(relaxed, exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(steps, exact, rtol=0, atol=1e-6)
    assert bool((published == 0).all())


def test_divergence_of_relaxed_states():
    """On the way the published sum is positive, and a small part of the masked sites' KL."""
    one, index = chain(1), torch.zeros(256, dtype=torch.int64)
    x = one.relax(torch.full((256, LENGTH), MASK))
    for step in range(2):
        logits = one.predict_relaxed(x, torch.ones(256), {})[0]
        draw = dict(seed=3, chains=CHAINS, step=step)
        x = ops.gumbel_softmax_step(logits, x, rho=1 / (5 - step), tau=1.0, **draw).x
    exact, relaxed, _, published = divergences(x.detach(), index)
    rho = laws_of(one, 5).rho[0]
    assert bool((published >= 0).all())
    assert float(published.sum()) > 0.01
    assert float(published.sum()) < 0.5 * float(relaxed.sum() / rho)
    assert not torch.allclose(relaxed, exact, rtol=0.1)


def tuner_of(diffusion, reward=None, **options):
    reward = MultilinearReward() if reward is None else reward
    options = dict(alpha=0.5, adapter="full", max_grad_norm=None, relaxed_steps=5) | options
    return finetune.RewardBackprop(diffusion, reward, **options)


def test_cold_relaxation_is_the_sampler():
    """At a low temperature relaxed paths have the sampler's rewards and divergences."""
    diffusion = chain(1)
    tuner = tuner_of(chain(), temperature=1e-3, learning_rate=0.0)
    tuner._network.logits.data.copy_(diffusion.denoiser.logits.data)
    history = tuner.train(1, 20000, num_steps=4, **QUIET)
    buffer = roll(laws_of(diffusion, 4), laws_of(chain(), 4), 1, torch.arange(20000))
    expected = MultilinearReward()(buffer.samples).double()
    assert history.rows[0]["reward"] == pytest.approx(float(expected.mean()), abs=0.03)
    assert history.rows[0]["kl"] == pytest.approx(float(buffer.kl.sum(dim=1).mean()), rel=0.02)


def test_gradient_of_the_divergence():
    """The slope of the summed KL along a direction is the difference quotient, in float64."""
    tuner = tuner_of(chain(dtype=torch.float64), relaxed_steps=5, temperature=0.8)
    tuner.train(1, 8, num_steps=4, **QUIET)
    weights = tuner._network.logits
    start, g = weights.detach().clone(), torch.Generator().manual_seed(0)
    direction = torch.randn(weights.shape, dtype=torch.float64, generator=g)
    place = start + torch.randn(weights.shape, dtype=torch.float64, generator=g)

    def divergence(at):
        weights.data.copy_(place + at * direction)
        x = torch.full((64, LENGTH), MASK)
        return tuner._draw_relaxed(11, CHAINS[:64], x, {})[2].sum()

    (slope,) = torch.autograd.grad(divergence(0.0), weights)
    with torch.no_grad():
        quotient = (divergence(1e-3) - divergence(-1e-3)) / 2e-3
    # states are float32 on their way
    assert float((slope * direction).sum()) == pytest.approx(float(quotient), rel=2e-3)


def test_hard_steps_learn_nothing():
    """After hard reveals the fill finds no mask, so that nothing is left to learn from."""
    moved = []
    for relaxed_steps in (1, 2, 9):
        tuner = tuner_of(chain(1), relaxed_steps=relaxed_steps)
        tuner.train(1, 4, num_steps=3, **QUIET)
        moved.append(int((tuner._network.logits.grad.abs().sum(dim=(1, 2)) > 0).sum()))
    assert moved[0] == 0 < moved[1] < moved[2]


@pytest.mark.parametrize("final", ["sample", "mode"])
def test_checkpointed_gradients_are_the_gradients(final):
    gradients, diffusion = [], sequences()
    diffusion.final = final
    for checkpointing in (False, True):
        tuner = tuner_of(diffusion, count_of_threes, relaxed_steps=3, checkpointing=checkpointing)
        history = tuner.train(1, 16, num_steps=4, **QUIET)
        gradients.append([p.grad for p in tuner._network.parameters()])
        assert history.rows[0]["kl"] == 0
    assert any(float(each.abs().max()) > 1e-3 for each in gradients[0])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_largest_entries_go_straight_through():
    x = torch.tensor([[[0.1, 0.5, 0.1, 0.3], [0.2, 0.1, 0.1, 0.6]]], requires_grad=True)
    tokens, point = largest(x)
    assert tokens.tolist() == [[1, 0]]
    torch.testing.assert_close(point, torch.eye(3)[tokens])
    weight = torch.randn(1, 2, 3)
    (slope,) = torch.autograd.grad((point * weight).sum(), x)
    assert torch.equal(slope[..., :-1], weight)
    assert bool((slope[..., -1] == 0).all())
    assert hard_states(x, 7).tolist() == [[1, 7]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(relaxed_steps=0), "at least 1, got 0"),
        (dict(truncation=3), "leave truncation away"),
        (dict(relaxed_steps=None, compat="drakes"), "needs relaxed_steps"),
        (dict(compat="d1"), "compat must be None or 'drakes', got 'd1'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ArgumentError, match=message):
        tuner_of(chain(), **options)


def test_gaussian_chains_have_no_relaxation():
    with pytest.raises(ArgumentError, match="for masked chains"):
        tuner_of(G1(), quadratic)
