"""IterativeRefinement: what it touches, what it keeps, and where it ends up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import exact
import numpy as np
import pytest
import torch
from quarter_model import STEPS, Denoiser, L, V, reward

import fastguide as fg
from fastguide.errors import ArgumentError, DtypeError
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
    with pytest.raises(DtypeError, match="sampler must be one of a MaskedDiffusion"):
        fg.IterativeRefinement(exact.diffusion())
