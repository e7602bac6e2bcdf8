"""Values averaged over posterior samples: soft, mean and risk-averse, against enumeration."""

from __future__ import annotations

import itertools
import math

import exact
import numpy as np
import pytest
import torch
from evaluating import STATES, values_of

import fastguide as fg
from fastguide.errors import ArgumentError

ALPHA = 0.5


def prediction_law() -> np.ndarray:
    """Law of a posterior sample from each state, [27, 8]: tokens of the sites are independent."""
    law = np.zeros((27, 8))
    for row, state in enumerate(exact.STATES):
        for column, clean in enumerate(exact.CLEAN):
            chances = [
                exact.PROBS[row, site, b] if a == exact.MASK else float(a == b)
                for site, (a, b) in enumerate(zip(state, clean, strict=True))
            ]
            law[row, column] = math.prod(chances)
    return law


def quantile(law: np.ndarray, rewards: np.ndarray, tau: float) -> float:
    """The atom c that maximises c - E(c - R)+ / tau. Source: Rockafellar and Uryasev 2000."""
    return float(
        max(rewards[law > 0], key=lambda c: c - float(law @ np.maximum(c - rewards, 0)) / tau)
    )


def cvar(law: np.ndarray, rewards: np.ndarray, tau: float) -> float:
    """The mean of the worst tau share of a finite law: the maximum over c."""
    c = quantile(law, rewards, tau)
    return c - float(law @ np.maximum(c - rewards, 0)) / tau


def drawn(num_samples: int, seed: int = 0) -> np.ndarray:
    """Rewards of the draws that the value makes, [27, S]: they depend on state and seed alone."""
    x0 = fg.ops.masked_posterior(
        exact.LOGITS,
        STATES,
        mask_token=2,
        num_samples=num_samples,
        keys=fg.ops.masked_keys(STATES),
        seed=seed,
    )
    return exact.reward(x0.flatten(0, 1)).view(27, num_samples).numpy()


@pytest.mark.parametrize("tau", [0.05, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("num_samples", [1, 2, 3, 10])
def test_the_mean_of_the_worst_share(num_samples: int, tau: float) -> None:
    found = values_of(fg.values.PosteriorSamples(exact.reward, num_samples, tau=tau))
    uniform = np.full(num_samples, 1 / num_samples)
    due = [cvar(uniform, row, tau) for row in drawn(num_samples)]
    np.testing.assert_allclose(found, due, atol=1e-12)


@pytest.mark.parametrize("tau", [0.1, 0.37, 1.0])
def test_many_draws_give_the_cvar_of_the_prediction(tau: float) -> None:
    draws = 20_000
    found = values_of(fg.values.PosteriorSamples(exact.reward, draws, tau=tau)).numpy()
    law = prediction_law()
    due = np.array([cvar(row, exact.REWARD, tau) for row in law])
    for row, chances in enumerate(law):
        short = np.maximum(quantile(chances, exact.REWARD, tau) - exact.REWARD, 0)
        error = np.sqrt(max(chances @ short**2 - (chances @ short) ** 2, 0) / draws) / tau
        assert abs(found[row] - due[row]) <= 5 * error + 0.005
    mean = law @ exact.REWARD
    unsure = law.max(1) < 1
    assert (due[unsure] < mean[unsure] - 1e-9).all() == (tau < 1)


def test_tau_one_is_the_mean_and_small_tau_the_minimum() -> None:
    rewards = drawn(16)
    mean = values_of(fg.values.PosteriorSamples(exact.reward, 16, tau=1))
    worst = values_of(fg.values.PosteriorSamples(exact.reward, 16, tau=1e-6))
    np.testing.assert_allclose(mean, rewards.mean(1), atol=1e-12)
    np.testing.assert_array_equal(worst, rewards.min(1))


def test_one_draw_needs_no_average() -> None:
    plain = values_of(fg.values.PosteriorSamples(exact.reward, 1))
    np.testing.assert_array_equal(plain, drawn(1)[:, 0])
    for how in ({"alpha": 0.1}, {"tau": 0.3}):
        value = fg.values.PosteriorSamples(exact.reward, 1, **how)
        assert torch.equal(values_of(value), plain)


@pytest.mark.parametrize("how", [{"tau": 0.4}, {"alpha": ALPHA}], ids=str)
def test_svdd_follows_the_law_of_each_kind_and_not_of_the_other(how: dict[str, float]) -> None:
    value = fg.values.PosteriorSamples(exact.reward, 5, **how)
    sampler = fg.SVDD(exact.diffusion(), exact.reward, value, num_candidates=4, alpha=ALPHA)
    counts = exact.counts_of(sampler.sample(20_000, num_steps=4, progress=False).samples)
    rewards = drawn(5)
    tables = {
        "tau": np.array([cvar(np.full(5, 0.2), row, 0.4) for row in rewards]),
        "alpha": ALPHA * np.log(np.exp(rewards / ALPHA).mean(1)),
    }
    for name, table in tables.items():
        steps = [table] * (exact.STEPS + 1) + [exact.terminal_reward()]
        law = exact.output_law(steps, ALPHA, 4)
        assert (exact.chi_square_p(counts, law) > 1e-6) == (name in how)


def test_smc_stays_unbiased_under_a_pessimist() -> None:
    """A value decides the variance of weighted particles, never their target."""
    value = fg.values.PosteriorSamples(exact.reward, 4, tau=0.3)
    sampler = fg.SMC(exact.diffusion(), exact.reward, value, num_particles=8, alpha=2.0)
    found = sampler.sample(10_000, num_steps=4, progress=False).log_z.exp()
    due = exact.pretrained_law() @ np.exp(exact.REWARD / 2.0)
    assert abs(float(found.mean()) - due) < 5 * float(found.std()) / 10_000**0.5


def test_a_pessimist_takes_the_safe_way() -> None:
    """One gamble of mean 1 and one sure 0.9: the mean prefers the gamble, the worst half does not.

    The first token says which: after 0, tokens are fair coins and the reward is 2 for 1 1; after 1
    it is 0.9 whatever comes.
    """

    def reward(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] == 1, 0.9, (x[:, 1:].sum(1)).double())

    states = torch.tensor([[0, 2, 2], [1, 2, 2]])
    diffusion = fg.MaskedDiffusion(lambda x, t: torch.zeros(len(x), 3, 2), 3, 2)
    ranked = {}
    for tau in (1.0, 0.5):
        value = fg.values.PosteriorSamples(reward, 4096, tau=tau)
        ranked[tau] = values_of(value, states, diffusion=diffusion).tolist()
    assert ranked[1.0] == pytest.approx([1.0, 0.9], abs=0.05)
    assert ranked[0.5] == pytest.approx([0.5, 0.9], abs=0.05)


def test_bad_arguments() -> None:
    samples = fg.values.PosteriorSamples
    for how, text in (
        ({}, r"num_samples=4 must be averaged: give alpha=, .*, or tau="),
        ({"alpha": 1.0, "tau": 0.5}, "alpha=1.0 and tau=0.5 are two ways"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"alpha": float("inf")}, "alpha must be positive"),
        ({"tau": 0.0}, r"tau must be a share in \(0, 1\]"),
        ({"tau": 1.5}, r"tau must be a share in \(0, 1\]"),
    ):
        with pytest.raises(ArgumentError, match=text):
            samples(exact.reward, **how)
    with pytest.raises(ArgumentError, match="num_samples must be at least 1, got 0"):
        samples(exact.reward, 0, tau=1)
    assert samples(exact.reward, tau=0.5).__name__ == "PosteriorSamples(num_samples=4, tau=0.5)"


def test_the_result_says_which_value_it_was() -> None:
    value = fg.values.PosteriorSamples(exact.reward, 2, tau=0.5)
    sampler = fg.SVDD(exact.diffusion(), exact.reward, value, num_candidates=2)
    result = sampler.sample(2, num_steps=2, progress=False)
    assert result.settings["value"] == "PosteriorSamples(num_samples=2, tau=0.5)"


def test_order_of_the_draws_is_irrelevant() -> None:
    rewards = np.array([3.0, -1.0, 2.0])
    for order in itertools.permutations(range(3)):
        part = torch.tensor(rewards[list(order)])[None]
        found = fg.ops.soft_value(part, 0.0, kind="cvar", tau=0.5)
        assert float(found) == pytest.approx(cvar(np.full(3, 1 / 3), rewards, 0.5))


def test_remembered_rewards_keep_every_bit() -> None:
    """Thirds are no float32: a value that is recalled is the number that was computed."""

    def thirds(x: torch.Tensor) -> torch.Tensor:
        return exact.reward(x) / 3

    met: list[list[torch.Tensor]] = []
    for saved in ("all", "none"):
        sampler = fg.SVDD(exact.diffusion(), thirds, num_candidates=4, alpha=ALPHA)
        with torch.no_grad():
            run = sampler.start(50, num_steps=4, savings=saved)
            met.append([state.rows["value"].clone() for state in run if state.rows])
    for one, other in zip(*met, strict=True):
        assert torch.equal(one, other)
