"""MaskedDiffusion: schedules, kernels, likelihoods, conditioning and infilling."""

from __future__ import annotations

import itertools
import math

import exact
import numpy as np
import pytest
import torch

import fastguide as fg
from fastguide.diffusion.likelihood import mask_levels
from fastguide.diffusion.schedules import SCHEDULES, hazard, invert, resolve_schedule

FORMULAS = {
    "loglinear": lambda t: (1 - 1e-3) * t,
    "linear": lambda t: t,
    "cosine": lambda t: 1 - math.cos(math.pi * t / 2),
    "geometric": lambda t: 1 - math.exp(-(1e-5 ** (1 - t)) * 20**t),
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_schedules(name):
    a = resolve_schedule(name)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    due = torch.tensor([FORMULAS[name](float(v)) for v in t], dtype=torch.float64)
    torch.testing.assert_close(a(t), due, rtol=1e-12, atol=1e-12)
    step = 1e-6
    slope = (a(t[:-1] + step) - a(t[:-1] - step)) / (2 * step)
    torch.testing.assert_close(hazard(a, t[:-1]), slope / a(t[:-1]), rtol=1e-5, atol=0)
    inner = t[a(t) < 1 - 1e-6]
    torch.testing.assert_close(invert(a, a(inner)), inner, rtol=0, atol=1e-8)
    assert set(SCHEDULES) == set(FORMULAS)


@pytest.mark.parametrize("name", [*sorted(FORMULAS), "callable"])
def test_steps_telescope_to_the_move_chance(name):
    schedule = (lambda t: t**2) if name == "callable" else name
    steps = exact.diffusion(schedule=schedule).steps(16)
    assert [step.index for step in steps] == list(range(17))
    assert steps[-1].clean
    assert steps[-1].params == (1.0,)
    kept = math.prod(1 - step.params[0] for step in steps[:-1])
    a = resolve_schedule(schedule)
    ends = a(torch.tensor([1.0, 1e-5], dtype=torch.float64))
    assert kept == pytest.approx(float(ends[1] / ends[0]), rel=1e-9, abs=1e-14)
    assert steps[0].time == 1
    assert steps[-1].time == pytest.approx(1e-5)


def test_transition_log_prob_is_the_kernel():
    d = exact.diffusion()
    states = torch.tensor(exact.STATES)
    for step in range(exact.STEPS + 1):
        pairs = torch.tensor(list(itertools.product(range(27), range(27))))
        log_p = d.log_prob(states[pairs[:, 0]], states[pairs[:, 1]], step, exact.STEPS)
        found = log_p.exp().view(27, 27).numpy()
        np.testing.assert_allclose(found, exact.KERNELS[step], rtol=1e-9, atol=1e-12)
    mode = exact.diffusion(final="mode")
    log_p = mode.log_prob(states[pairs[:, 0]], states[pairs[:, 1]], exact.STEPS, exact.STEPS)
    np.testing.assert_array_equal(log_p.exp().view(27, 27).numpy(), exact.mode_kernel())


def test_log_prob_has_gradients():
    weight = torch.zeros(3, 2, requires_grad=True)
    d = fg.MaskedDiffusion(lambda x, t: weight.expand(len(x), 3, 2), 3, 2)
    d.log_prob(torch.tensor([[2, 2, 2]]), torch.tensor([[1, 2, 2]]), 0, 4).sum().backward()
    torch.testing.assert_close(weight.grad[0], torch.tensor([-0.5, 0.5]))
    assert not bool(weight.grad[1:].any())


def test_elbo_is_exact_for_independent_sites():
    """With x-independent predictions the bound is tight and free of Monte Carlo error."""
    log_p = torch.tensor([[0.1, 0.9], [0.7, 0.3], [0.5, 0.5]]).log()
    d = fg.MaskedDiffusion(lambda x, t: log_p.expand(len(x), 3, 2), 3, 2)
    x = torch.tensor(exact.CLEAN)
    due = log_p.gather(1, x.T).T.sum(1)
    # the mean over the order is exact only in expectation; with many levels it is close
    torch.testing.assert_close(d.elbo(x, num_masks=4096), due.double(), rtol=0, atol=0.05)


@pytest.mark.parametrize("time_conditioned", [False, True])
def test_elbo_is_unbiased_for_the_order_agnostic_bound(time_conditioned):
    """Against the bound computed by enumerating every mask set."""
    d = exact.diffusion(time_conditioned=time_conditioned)
    x = torch.tensor(exact.CLEAN)
    due = np.zeros(8)
    for row, clean in enumerate(exact.CLEAN):
        for sites in range(1, 8):
            hidden = [bool(sites >> s & 1) for s in range(3)]
            n = sum(hidden)
            state = tuple(2 if h else c for h, c in zip(hidden, clean, strict=True))
            probs = exact.PROBS[exact.INDEX[state]]
            log_p = sum(math.log(probs[s, clean[s]]) for s in range(3) if hidden[s])
            due[row] += (3 / n) * log_p / math.comb(3, n) / 3
    runs = torch.stack([d.elbo(x, num_masks=64, seed=seed) for seed in range(200)])
    error = runs.std(0) / math.sqrt(200)
    assert bool(((runs.mean(0) - torch.tensor(due)).abs() < 5 * error + 1e-9).all())
    # a bound: never above the model's own log-probability, which here is the data law
    assert bool((torch.tensor(due) <= torch.tensor(np.log(exact.DATA)) + 1e-12).all())


def test_elbo_sees_the_same_masks_in_every_row():
    d = exact.diffusion()
    x = torch.tensor(exact.CLEAN)
    whole = d.elbo(x, num_masks=10)
    assert torch.equal(whole[3:5], d.elbo(x[3:5], num_masks=10))
    torch.testing.assert_close(whole, d.elbo(x, num_masks=10, max_rows=7))
    assert d.elbo(x[:0]).shape == (0,)


def test_mask_levels_are_stratified_and_antithetic():
    masked, count, chance = mask_levels(50, 64, seed=1)
    assert torch.equal(masked.sum(1), count)
    assert int(count.min()) <= 2
    assert int(count.max()) >= 49
    assert bool(((chance > 0) & (chance < 1)).all())
    # partners of opposite depth cover the sequence between them, up to one site
    assert int((~(masked[0] | masked[-1])).sum()) <= 2


def test_loss_averages_to_the_bound():
    d = exact.diffusion()
    x = torch.tensor(exact.CLEAN)
    generator = torch.Generator().manual_seed(0)
    losses = torch.stack([d.loss(x.repeat(500, 1), generator=generator) for _ in range(20)])
    mean = losses.view(20, 500, 8).mean((0, 1))
    error = losses.view(-1, 8).std(0) / math.sqrt(10_000)
    bound = -torch.stack([d.elbo(x, num_masks=64, seed=s) for s in range(200)]).mean(0)
    # loglinear: the loss integrates over a in (0, .999); the rest is worth < 0.01 nats here
    assert bool(((mean - bound).abs() < 5 * error + 0.01).all())


def test_loss_is_differentiable():
    weight = torch.zeros(3, 2, requires_grad=True)
    d = fg.MaskedDiffusion(lambda x, t: weight.expand(len(x), 3, 2), 3, 2)
    x = torch.ones(256, 3, dtype=torch.int64)
    d.loss(x).mean().backward()
    assert bool((weight.grad[:, 1] < 0).all())


def test_infilling_keeps_the_prompt():
    prompt = torch.tensor([2, 1, 2])
    sampler = fg.SVDD(exact.diffusion(), exact.reward, num_candidates=4, alpha=0.5)
    result = sampler.sample(20_000, num_steps=4, prompt=prompt, progress=False)
    assert bool((result.samples[:, 1] == 1).all())
    plain = fg.Unguided(exact.diffusion()).sample(
        20_000, num_steps=4, prompt=prompt.expand(20_000, 3), progress=False
    )
    law = np.zeros(27)
    law[exact.INDEX[(2, 1, 2)]] = 1
    for matrix in exact.KERNELS:
        law = law @ matrix
    clean = np.array([law[exact.INDEX[state]] for state in exact.CLEAN])
    assert exact.chi_square_p(exact.counts_of(plain.samples), clean) > 1e-6


def test_a_complete_prompt_comes_back():
    prompt = torch.tensor(exact.CLEAN)
    calls = []

    def denoiser(x, t):
        calls.append(len(x))
        return exact.denoiser(x, t)

    d = fg.MaskedDiffusion(denoiser, 3, 2)
    result = fg.SVDD(d, exact.reward).sample(8, num_steps=4, prompt=prompt, progress=False)
    assert torch.equal(result.samples, prompt)
    assert not calls
    torch.testing.assert_close(result.rewards.double(), torch.tensor(exact.REWARD))
    none = fg.SVDD(d, exact.reward).sample(
        8, num_steps=4, prompt=prompt, progress=False, savings="none"
    )
    assert torch.equal(none.samples, prompt)


def test_mask_token_inside_the_vocabulary():
    """Mask id 0, tokens 1 and 2: the mask's own column is never drawn."""

    def denoiser(x, t):
        state = torch.where(x == 0, 2, x - 1)
        logits = torch.full((len(x), 3, 3), 50.0, dtype=torch.float64)
        logits[..., 1:] = exact.denoiser(state, t)
        return logits

    shifted = fg.Unguided(fg.MaskedDiffusion(denoiser, 3, 3, mask_token=0))
    result = shifted.sample(20_000, num_steps=4, progress=False)
    counts = exact.counts_of(result.samples - 1)
    assert exact.chi_square_p(counts, exact.pretrained_law()) > 1e-6


def test_mask_column_of_the_denoiser_is_ignored():
    def wide(x, t):
        return torch.cat([exact.denoiser(x, t), torch.full((len(x), 3, 1), torch.nan)], dim=2)

    plain = fg.Unguided(exact.diffusion()).sample(500, num_steps=4, progress=False)
    other = fg.Unguided(fg.MaskedDiffusion(wide, 3, 2)).sample(500, num_steps=4, progress=False)
    assert torch.equal(plain.samples, other.samples)


def test_forbidden_tokens_and_temperature():
    d = exact.diffusion(forbidden_tokens=[0])
    assert bool((fg.Unguided(d).sample(100, num_steps=4, progress=False).samples == 1).all())
    cold = exact.diffusion(temperature=1e-6)
    samples = fg.Unguided(cold).sample(200, num_steps=64, progress=False).samples
    assert len(samples.unique(dim=0)) < 8
    # temperature 2 on independent sites: probabilities proportional to p ** (1/2)
    p = torch.tensor([0.9, 0.1], dtype=torch.float64)
    warm = fg.MaskedDiffusion(lambda x, t: p.log().expand(len(x), 1, 2), 1, 2, temperature=2.0)
    share = fg.Unguided(warm).sample(200_000, num_steps=2, progress=False).samples.double().mean()
    assert float(share) == pytest.approx(0.25, abs=0.006)


def test_time_is_given_only_to_time_conditioned_denoisers():
    for conditioned in (False, True):
        times = []

        def denoiser(x, t, times=times):
            times.append(t)
            return exact.denoiser(x, t)

        d = fg.MaskedDiffusion(denoiser, 3, 2, time_conditioned=conditioned)
        fg.Unguided(d).sample(4, num_steps=4, progress=False, savings="none")
        seen = torch.cat(times)
        assert seen.dtype == torch.float32
        assert bool((seen == 0).all()) is not conditioned
        assert float(seen.max()) == (1.0 if conditioned else 0.0)


class Biased:
    """A denoiser conditioned on a per-row logit bias."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, t, bias):
        self.rows.append(torch.cat([x, bias.long()], dim=1))
        logits = exact.denoiser(x, t).clone()
        logits[..., 1] += bias
        return logits


@pytest.mark.parametrize("savings", ["all", "none"])
def test_conditioning_follows_its_chain(savings):
    bias = torch.tensor([[-60.0], [60.0], [60.0], [-60.0]])
    d = fg.MaskedDiffusion(Biased(), 3, 2)
    sampler = fg.SVDD(d, exact.reward, num_candidates=4, alpha=0.5)
    result = sampler.sample(4, num_steps=4, cond={"bias": bias}, progress=False, savings=savings)
    due = (bias > 0).long().expand(4, 3)
    assert torch.equal(result.samples, due)


def test_equal_conditioning_is_merged():
    net = Biased()
    bias = torch.tensor([[0.0], [1.0]]).repeat(50, 1)
    sampler = fg.Unguided(fg.MaskedDiffusion(net, 3, 2))
    result = sampler.sample(100, num_steps=4, cond={"bias": bias}, progress=False)
    rows = torch.cat(net.rows)
    assert len(rows) == len(rows.unique(dim=0)) == result.cost.denoiser_rows
    one = sampler.sample(100, num_steps=4, cond={"bias": torch.zeros(1, 1)}, progress=False)
    assert one.cost.denoiser_rows <= 19


def test_rewards_and_values_with_conditioning():
    class Reward:
        needs_cond = True

        def __call__(self, x, bias):
            return exact.reward(x) + 100 * bias[:, 0]

    bias = torch.tensor([[1.0], [2.0], [3.0]])
    d = fg.MaskedDiffusion(Biased(), 3, 2)
    result = fg.SVDD(d, Reward(), num_candidates=3, alpha=0.5).sample(
        3, num_steps=4, cond={"bias": bias}, progress=False
    )
    due = exact.reward(result.samples) + 100 * bias[:, 0]
    torch.testing.assert_close(result.rewards.double(), due)


def test_classifier_free_guidance():
    """scale s on logits: given = bias, null = 0, so the guided bias is s * bias."""
    net = Biased()
    d = fg.MaskedDiffusion(net, 3, 2, null_cond={"bias": torch.zeros(1, 1)}, guidance_scale=3.0)
    guided = fg.Unguided(d).sample(
        500, num_steps=4, cond={"bias": torch.ones(1, 1)}, progress=False
    )
    plain = fg.Unguided(fg.MaskedDiffusion(Biased(), 3, 2)).sample(
        500, num_steps=4, cond={"bias": torch.full((1, 1), 3.0)}, progress=False
    )
    assert torch.equal(guided.samples, plain.samples)
    assert guided.cost.denoiser_rows == 2 * plain.cost.denoiser_rows
    assert sum(len(rows) for rows in net.rows) == guided.cost.denoiser_rows
    with pytest.raises(fg.FastguideError, match="same keys"):
        fg.Unguided(d).sample(2, num_steps=4, cond={"other": torch.ones(1, 1)}, progress=False)
    with pytest.raises(fg.FastguideError, match="too small"):
        fg.Unguided(d).sample(
            2, num_steps=4, cond={"bias": torch.ones(1, 1)}, progress=False, max_rows=1
        )


def test_modules_get_their_mode_back():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Dropout()
            self.frozen = torch.nn.Dropout()

        def forward(self, x, t):
            assert not self.inner.training
            assert not torch.is_grad_enabled()
            return exact.denoiser(x, t)

    net = Net().train()
    net.frozen.eval()
    fg.Unguided(fg.MaskedDiffusion(net, 3, 2)).sample(2, num_steps=2, progress=False)
    assert net.training
    assert net.inner.training
    assert not net.frozen.training
