"""The pieces that objectives are made of, each against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from exact_chains import G1, M1, MASK, STATES, Table, conditionals

import fastguide as fg
from fastguide.finetune.laws import laws_of
from fastguide.finetune.noising import noised
from fastguide.finetune.relaxation import _gumbel_given, revealed_softly
from fastguide.finetune.rollout import roll

EMPTY = torch.arange(64)


def gaussian():
    network = torch.nn.Linear(3, 3)
    table = torch.linspace(0.99, 0.05, 12)
    return fg.GaussianDiffusion(lambda x, t: network(x), (3,), alphas_cumprod=table)


@pytest.mark.parametrize("make", [gaussian, G1], ids=["ddpm", "exact"])
def test_gaussian_rollout_and_log_probability(make):
    """Paths are the sampler's, bit for bit, and their steps have the diffusion's own density."""
    diffusion = make()
    steps = 6 if make is gaussian else 10
    laws = laws_of(diffusion, steps)
    with torch.no_grad():
        buffer = roll(laws, laws, 7, torch.arange(32))
    result = fg.Unguided(diffusion).sample(32, num_steps=steps, seed=7, progress=False)
    assert torch.equal(buffer.samples, result.samples)
    for i in range(steps):
        expected = diffusion.log_prob(buffer.states[:, i], buffer.states[:, i + 1], i, steps)
        if not laws.steps[i].varies:
            # the density of a normal variable of the deviation before, at its mean
            s = torch.tensor(laws.steps[i - 1].params[2], dtype=torch.float64)
            expected = torch.full((32,), -3 * float((s * math.sqrt(2 * math.pi)).log())).double()
        torch.testing.assert_close(buffer.log_prob[:, i], expected.detach(), rtol=1e-4, atol=1e-4)
    assert float(buffer.kl.abs().max()) == 0


def test_gaussian_divergence():
    one, other = laws_of(G1(), 10), laws_of(G1(), 10)
    one = type(one)(G1(), 10, scale=torch.full((10,), 0.3))
    one.diffusion.denoiser.c.data.fill_(0.2)
    x, index = torch.randn(20, 1), torch.arange(20) % 10
    with torch.no_grad():
        law, natural = one.at(x, index, {}), other.at(x, index, {})
    s = other.s[index]
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(law.mean[:, 0], s * math.exp(0.3)),
        torch.distributions.Normal(natural.mean[:, 0], s),
    )
    torch.testing.assert_close(law.kl(natural), expected.double(), rtol=1e-4, atol=1e-5)


def chain():
    return fg.MaskedDiffusion(Table(conditionals()), 4, 3, schedule="linear", forbidden_tokens=())


def test_masked_rollout_and_log_probability():
    """Paths are the sampler's; log-probabilities differ from the exact ones by no policy's term."""
    diffusion = chain()
    tuned = chain()
    tuned.denoiser = Table(conditionals() + torch.randn(256, 4, 3).double())
    policy, reference = laws_of(tuned, 5), laws_of(diffusion, 5)
    buffer = roll(policy, reference, 3, EMPTY)
    result = fg.Unguided(tuned).sample(64, num_steps=5, seed=3, progress=False)
    assert torch.equal(buffer.samples, result.samples)
    for i in range(6):
        x, following = buffer.states[:, i], buffer.states[:, i + 1]
        exact = [d.log_prob(x, following, i, 5) for d in (tuned, diffusion)]
        ratio = buffer.log_prob[:, i] - buffer.log_reference[:, i]
        torch.testing.assert_close(ratio, (exact[0] - exact[1]).detach(), rtol=1e-4, atol=1e-5)


def test_masked_divergence_is_that_of_the_transition():
    """rho times the sum over masked sites equals the sum over all successors of a state."""
    tuned = chain()
    tuned.denoiser = Table(conditionals() + torch.randn(256, 4, 3).double())
    policy, reference = laws_of(tuned, 5), laws_of(chain(), 5)
    x = torch.tensor([[3, 1, 3, 0]])
    successors = STATES[((x == STATES) | (x == MASK)).all(dim=1)]
    spread = x.expand(len(successors), -1)
    for i in (0, 2, 5):
        found = policy.at(x, torch.tensor([i]), {}).kl(reference.at(x, torch.tensor([i]), {}))
        one, other = (d.log_prob(spread, successors, i, 5) for d in (tuned, chain()))
        possible = one.isfinite()
        expected = (one.exp() * (one - other))[possible].sum()
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)
    # nothing is left to diverge where nothing is masked
    clean, start = torch.zeros(1, 4, dtype=torch.int64), torch.tensor([0])
    nothing = policy.at(clean, start, {}).kl(reference.at(clean, start, {}))
    assert nothing.tolist() == [0]


def test_forbidden_tokens_have_finite_derivatives():
    logits = torch.nn.Parameter(torch.zeros(256, 4, 3).double())

    class Net(torch.nn.Module):
        def forward(self, x, t):
            return logits[: len(x)]

    laws = laws_of(fg.MaskedDiffusion(Net(), 4, 3, forbidden_tokens=[1]), 3)
    x = torch.full((5, 4), MASK)
    law = laws.at(x, torch.zeros(5, dtype=torch.int64), {})
    (law.kl(law).sum() + law.log_prob(torch.zeros(5, 4, dtype=torch.int64)).sum()).backward()
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[:5, :, 1] == 0).all())
    assert bool((logits.grad[:5, :, 0] != 0).any())


def test_noised_tokens_follow_the_schedule():
    laws = laws_of(chain(), 4)
    buffer = roll(laws, None, 1, torch.arange(4000))
    states = noised(laws, buffer)
    assert torch.equal(states[:, -1], buffer.samples)
    share = (states == MASK).double().mean(dim=(0, 2))
    expected = torch.tensor([step.time for step in laws.steps]).clamp_max(1).double()
    torch.testing.assert_close(share[:5], expected, rtol=0, atol=0.02)
    assert float(share[-1]) == 0
    kept = (states == MASK) | (states == states[:, -1:])
    assert bool(kept.all())


def test_noised_vectors_follow_the_schedule():
    diffusion = gaussian()
    laws = laws_of(diffusion, 6)
    with torch.no_grad():
        buffer = roll(laws, None, 1, torch.arange(4000))
    states = noised(laws, buffer)
    for i, level in enumerate(diffusion.levels(6)[:-1]):
        noise = (states[:, i] - level.alpha * buffer.samples) / level.sigma
        assert abs(float(noise.mean())) < 0.05
        assert float(noise.std()) == pytest.approx(1, abs=0.05)


def test_gumbel_noise_given_the_draw():
    """The drawn token has the largest sum, and mixed over draws the noise is Gumbel."""
    log_probs = torch.tensor([0.5, 0.3, 0.2, 0.0]).clamp_min(1e-30).log().double()
    rows = 4000
    tokens = torch.multinomial(log_probs.exp(), rows, replacement=True)[:, None]
    spread = log_probs.expand(rows, 1, 4)
    noise = _gumbel_given(spread, tokens, 0, torch.arange(rows), 0)
    assert torch.equal((spread + noise).argmax(dim=-1), tokens)
    mean, var = noise[:, 0, :3].mean(dim=0), noise[:, 0, :3].var(dim=0)
    torch.testing.assert_close(mean, torch.full((3,), 0.5772).double(), rtol=0, atol=0.08)
    torch.testing.assert_close(var, torch.full((3,), math.pi**2 / 6).double(), rtol=0, atol=0.2)


def test_relaxed_states_are_the_states():
    diffusion = M1()
    laws = laws_of(diffusion, 4)
    batch = diffusion.start(EMPTY, None, 0)
    index = torch.zeros(64, dtype=torch.int64)
    output = laws.output(batch.x, index, {})
    with torch.no_grad():
        following = laws.propose(batch, output, 0, 0, EMPTY)
    relaxed = revealed_softly(
        diffusion.relax(batch.x),
        laws.law(batch.x, output, index),
        following.x,
        key=0,
        chains=EMPTY,
        step=0,
        temperature=0.7,
        drawn=True,
    )
    torch.testing.assert_close(relaxed, diffusion.relax(following.x), rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(relaxed[..., 2].sum(), diffusion.denoiser.logits)
    assert bool((slope[-1] != 0).any())
    assert float(slope[:-1].abs().max()) == 0
