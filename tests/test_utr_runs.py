"""The engine's promises with the shipped networks: bit-equal runs, and rows counted outside."""

from __future__ import annotations

import pytest
import torch

import fastguide as fg

NUM_STEPS, FIXED = 128, 64


class Recorder:
    """Wraps a model and keeps every row it was given."""

    def __init__(self, model):
        self._model = model
        self._rows: list[torch.Tensor] = []

    def __call__(self, x, *rest):
        self._rows.append(x.clone())
        return self._model(x, *rest)

    def counts(self) -> tuple[int, int]:
        """(rows, distinct rows)."""
        rows = torch.cat(self._rows)
        return len(rows), len(rows.unique(dim=0))


@pytest.fixture(scope="module")
def task():
    return fg.zoo.load("utr")


def svdd(task, alpha: float, num_candidates: int = 10) -> fg.SVDD:
    return fg.SVDD(task.diffusion, task.reward, num_candidates=num_candidates, alpha=alpha)


def draw(sampler, n, **options):
    options.setdefault("fixed_rows", FIXED)
    options.setdefault("num_steps", 16)
    return sampler.sample(n, progress=False, **options)


def test_fixed_rows_makes_every_way_of_running_bit_equal(task):
    whole = draw(svdd(task, 0.1, 4), 8)
    ways = {
        "nothing saved": draw(svdd(task, 0.1, 4), 8, savings="none"),
        "no memory": draw(svdd(task, 0.1, 4), 8, cache_bytes=0),
        "only carry": draw(svdd(task, 0.1, 4), 8, savings={"carry"}),
    }
    for name, other in ways.items():
        assert torch.equal(whole.samples, other.samples), name
        assert torch.equal(whole.rewards, other.rewards), name
    halves = [draw(svdd(task, 0.1, 4), n, first_chain=c) for c, n in ((0, 1), (1, 4), (5, 3))]
    assert torch.equal(whole.samples, torch.cat([half.samples for half in halves]))
    assert torch.equal(whole.rewards, torch.cat([half.rewards for half in halves]))


def test_thread_count_with_fixed_rows(task):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = draw(svdd(task, 0.1, 4), 4)
        torch.set_num_threads(2)
        assert torch.equal(one.samples, draw(svdd(task, 0.1, 4), 4).samples)
    finally:
        torch.set_num_threads(before)


def recorded(task, alpha, n, reward=None, **options):
    denoiser, reward = Recorder(task.diffusion.denoiser), Recorder(reward or task.reward)
    diffusion = fg.MaskedDiffusion(denoiser, task.diffusion.length, task.diffusion.vocab_size)
    sampler = fg.SVDD(diffusion, reward, num_candidates=10, alpha=alpha)
    result = sampler.sample(n, num_steps=NUM_STEPS, progress=False, **options)
    return result, denoiser, reward


@pytest.mark.parametrize("alpha", fg.report.DEMO.alphas)
def test_rows_are_distinct_states_and_predictions(task, alpha):
    result, denoiser, reward = recorded(task, alpha, 2)
    rows, distinct = denoiser.counts()
    assert result.cost.denoiser_rows == rows == distinct
    rows, distinct = reward.counts()
    assert result.cost.reward_rows == rows == distinct


def test_a_neutral_value_needs_few_rows(task):
    n = 8
    result, denoiser, _ = recorded(task, 0.1, n, reward=lambda x: torch.zeros(len(x)))
    rows, distinct = denoiser.counts()
    assert result.cost.denoiser_rows == rows == distinct
    assert rows <= 0.28 * n * 11 * NUM_STEPS
