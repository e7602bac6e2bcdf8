"""ParticleGibbs on TC-A: a sweep leaves the target as it is, and leads to it from elsewhere."""

from __future__ import annotations

from typing import Any

import exact
import numpy as np
import pytest
import torch
from exact_particles import ALPHA

import fastguide as fg
from fastguide.errors import ArgumentError

DRAWS = 20_000


def gibbs(num_particles: int = 3, **how: Any) -> fg.ParticleGibbs:
    how = {"alpha": ALPHA, "num_particles": num_particles, **how}
    return fg.ParticleGibbs(exact.diffusion(), exact.reward, **how)


def target_paths(draws: int) -> torch.Tensor:
    """Paths [N, 5, 3] whose ends follow the target: plain paths, resampled by exp(r / alpha)."""
    states = []
    run = fg.Unguided(exact.diffusion()).start(10 * draws, num_steps=exact.STEPS)
    for state in run:
        states.append(state.x.clone())
    path = torch.stack(states, dim=1)
    weight = (exact.reward(path[:, -1]) / ALPHA).softmax(0)
    generator = torch.Generator().manual_seed(0)
    return path[torch.multinomial(weight, draws, replacement=True, generator=generator)]


@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
@pytest.mark.parametrize("num_particles", [2, 4])
def test_a_sweep_leaves_the_target_as_it_is(num_particles: int, ess_threshold: float) -> None:
    paths = target_paths(DRAWS)
    results = gibbs(num_particles, ess_threshold=ess_threshold, num_sweeps=2).sample(
        DRAWS, num_steps=exact.STEPS, reference=paths, progress=False
    )
    assert len(results) == 2
    for result in results:
        law = exact.target_law(ALPHA)
        assert exact.chi_square_p(exact.counts_of(result.samples), law) > 1e-6
    moved = (results[-1].samples != paths[:, -1]).any(dim=1).double().mean()
    assert float(moved) > 0.1


def distance(result: fg.Result) -> float:
    counts = exact.counts_of(result.samples)
    return float(0.5 * np.abs(counts / counts.sum() - exact.target_law(ALPHA)).sum())


def test_sweeps_lead_to_the_target() -> None:
    """Three particles alone are far from it; the bias falls with every sweep."""
    results = gibbs(3, num_sweeps=6).sample(DRAWS, num_steps=exact.STEPS, progress=False)
    assert distance(results[0]) > 0.05
    assert distance(results[1]) < distance(results[0])
    assert distance(results[-1]) < 0.012  # 20,000 draws of the target itself: about 0.007


def test_a_sweep_that_forgets_the_reference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = gibbs(2, num_sweeps=1)
    monkeypatch.setattr(type(sampler._sweep), "revise", fg.SMC.revise, raising=True)
    monkeypatch.setattr(type(sampler._sweep), "_moved", torch.zeros(2 * DRAWS, 3), raising=False)
    result = sampler.sample(
        DRAWS, num_steps=exact.STEPS, reference=target_paths(DRAWS), progress=False
    )[0]
    assert exact.chi_square_p(exact.counts_of(result.samples), exact.target_law(ALPHA)) < 1e-6


def test_runs_split_and_repeat() -> None:
    whole = gibbs().sample(12, num_steps=4, progress=False)[-1].samples
    parts = [
        gibbs().sample(6, num_steps=4, first_chain=f, progress=False)[-1].samples for f in (0, 6)
    ]
    assert torch.equal(torch.cat(parts), whole)
    other = gibbs().sample(12, num_steps=4, savings="none", progress=False)[-1].samples
    assert torch.equal(other, whole)


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="num_particles must be at least 2"):
        gibbs(1)
    with pytest.raises(ArgumentError, match="num_sweeps must be at least 1, got 0"):
        gibbs(num_sweeps=0)
