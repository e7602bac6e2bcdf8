"""IterativeRefinement: what it touches, what it keeps, and where it ends up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import exact
import exact_gaussian as eg
import numpy as np
import pytest
import torch
from quarter_model import STEPS, Denoiser, L, V, reward
from scipy.stats import kstest

import fastguide as fg
from fastguide.errors import ArgumentError, DtypeError, ShapeError
from fastguide.samplers.refinement import round_seed


def made(**how: Any) -> fg.IterativeRefinement:
    diffusion = fg.MaskedDiffusion(Denoiser(), L, V)
    sampler = fg.SVDD(diffusion, reward, num_candidates=3, alpha=0.05)
    return fg.IterativeRefinement(sampler, **{"fraction": 0.25, "num_rounds": 4, **how})


def run(refinement: fg.IterativeRefinement, num: int = 16, **how: Any) -> list[fg.Result]:
    return refinement.sample(num, **{"num_steps": STEPS, "progress": False, **how})


def test_a_round_touches_its_share_of_the_sites() -> None:
    results = run(made(accept="always"))
    assert len(results) == 5
    for before, after in pairwise(results):
        changed = (before.samples != after.samples).sum(dim=1)
        assert int(changed.max()) <= 3
    assert any(int((a.samples != b.samples).sum()) for a, b in pairwise(results))


def test_better_never_falls() -> None:
    rewards = [result.rewards for result in run(made(num_rounds=8))]
    for before, after in pairwise(rewards):
        assert bool((after >= before).all())
    assert float(rewards[-1].mean()) > float(rewards[0].mean())
    last = run(made(num_rounds=8))[-1]
    torch.testing.assert_close(last.rewards, reward(last.samples).float())


def test_prompts_stay_and_given_designs_are_where_it_starts() -> None:
    prompt = torch.full((L,), V)
    prompt[:5] = 1
    for result in run(made(), prompt=prompt):
        assert bool((result.samples[:, :5] == 1).all())
    initial = torch.zeros((16, L), dtype=torch.int64)
    assert torch.equal(run(made(), initial=initial)[0].samples, initial)
    assert torch.equal(run(made(), initial=initial)[0].rewards, reward(initial).float())


def test_runs_split_and_repeat() -> None:
    whole = run(made())[-1].samples
    halves = [run(made(), 8, first_chain=first)[-1].samples for first in (0, 8)]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(run(made(), seed=1)[-1].samples, whole)
    seeds = {round_seed(7, number) for number in range(100)}
    assert len(seeds) == 100
    assert round_seed(2**64 - 1, 3) < 2**64


def test_one_masked_site_redrawn_in_full_is_a_gibbs_step() -> None:
    """TC-A's denoiser is exact, so unguided rounds of one site leave its data law as it is."""
    plain = fg.Unguided(exact.diffusion(), exact.reward)
    refinement = fg.IterativeRefinement(plain, fraction=0.3, num_rounds=3, accept="always")
    data = torch.multinomial(torch.tensor(exact.DATA), 20_000, replacement=True)
    initial = torch.tensor(exact.CLEAN)[data]
    results = refinement.sample(20_000, num_steps=2, initial=initial, progress=False)
    for result in results:
        counts = exact.counts_of(result.samples)
        assert exact.chi_square_p(counts, np.asarray(exact.DATA)) > 1e-6


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"fraction must be a share of the sites in \(0, 1\]"):
        made(fraction=0.0)
    with pytest.raises(ArgumentError, match="num_rounds must be at least 1, got 0"):
        made(num_rounds=0)
    with pytest.raises(ArgumentError, match="accept must be 'always' or 'better', got 'exact'"):
        made(accept="exact")
    with pytest.raises(DtypeError, match="sampler must have a reward"):
        fg.IterativeRefinement(fg.Unguided(exact.diffusion()))
    with pytest.raises(DtypeError, match="sampler must be one such as"):
        fg.IterativeRefinement(exact.diffusion())


def test_noising_and_denoising_leaves_the_data_law_as_it_is() -> None:
    """The exact kernel undoes the forward noise in law, from any level."""
    draws, d = 20_000, eg.diffusion(kind=eg.ExactKernel)
    sampler = fg.Unguided(d, eg.linear_reward)
    refinement = fg.IterativeRefinement(sampler, fraction=0.4, num_rounds=2, accept="always")
    data = eg.DATA_MEAN + eg.DATA_SD * torch.randn(draws, 1)
    results = refinement.sample(draws, num_steps=eg.STEPS, initial=data, progress=False)
    assert len(results) == 2
    pair = torch.stack([results[0].samples[:, 0], data[:, 0]]).double()
    assert float(torch.corrcoef(pair)[0, 1]) > 0.05  # a part of the sample is kept
    for result in results:
        x = result.samples[:, 0].double()
        assert kstest(x.numpy(), "norm", args=(eg.DATA_MEAN, eg.DATA_SD)).pvalue > 1e-6


def test_gaussian_designs_improve() -> None:
    sampler = fg.SVDD(eg.diffusion(), eg.quadratic_reward, num_candidates=4, alpha=0.1)
    refinement = fg.IterativeRefinement(sampler, fraction=0.3, num_rounds=4)
    rewards = [
        result.rewards for result in refinement.sample(50, num_steps=eg.STEPS, progress=False)
    ]
    for before, after in pairwise(rewards):
        assert bool((after >= before).all())
    assert float(rewards[-1].mean()) > float(rewards[0].mean())


def test_a_run_can_start_from_given_states() -> None:
    made = fg.SVDD(fg.MaskedDiffusion(Denoiser(), L, V), reward, num_candidates=3, alpha=0.05)
    run = made.start(6, num_steps=STEPS)
    for state in run:
        if state.step == 4:
            break
    given = state.x.clone()
    for _ in run:
        pass
    again = made.sample(6, num_steps=STEPS, start_from=(given, 4), progress=False)
    assert torch.equal(again.samples, run.result().samples)
    assert len(again.trace.time) == STEPS + 1 - 4
    with pytest.raises(ArgumentError, match=r"first_step must lie in \[0, 10\], got 11"):
        made.sample(6, num_steps=STEPS, start_from=(given, 11))
    with pytest.raises(ShapeError, match="states must have 5 rows, one per sample, got 6"):
        made.sample(5, num_steps=STEPS, start_from=(given, 4))
    with pytest.raises(ArgumentError, match="start_from already holds the tokens"):
        made.sample(6, num_steps=STEPS, start_from=(given, 4), prompt=given[0])
    sampler = fg.DPS(eg.diffusion(), eg.linear_reward)
    with pytest.raises(ArgumentError, match="DPS needs the gradient in the first state"):
        sampler.sample(2, num_steps=50, start_from=(torch.zeros(2, 1), 3))
