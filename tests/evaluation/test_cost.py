"""Rows executed and requested, checked by wrappers outside the engine."""

from __future__ import annotations

import exact
import pytest
import torch

import fastguide as fg
from fastguide.evaluation.savings import ALL


class Recorder:
    """Wraps a model and keeps every row it was given."""

    def __init__(self, model, **attributes):
        self._model = model
        self.calls: list[torch.Tensor] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def __call__(self, x, *rest):
        self.calls.append(x.clone())
        return self._model(x, *rest)

    @property
    def rows(self) -> torch.Tensor:
        return torch.cat(self.calls) if self.calls else torch.zeros(0, 3, dtype=torch.int64)

    @property
    def distinct(self) -> int:
        return len(self.rows.unique(dim=0)) if self.calls else 0


def run(savings="all", value="posterior_mean", n=200, time_conditioned=False, **options):
    denoiser, reward = Recorder(exact.denoiser), Recorder(exact.reward)
    d = fg.MaskedDiffusion(denoiser, 3, 2, time_conditioned=time_conditioned)
    if value == "posterior_mean":
        value = fg.values.PosteriorMean(reward)
    sampler = fg.SVDD(d, reward, value, num_candidates=5, alpha=0.5)
    result = sampler.sample(n, num_steps=4, progress=False, savings=savings, **options)
    return result, denoiser, reward


def test_each_distinct_state_and_prediction_once():
    result, denoiser, reward = run()
    assert result.cost.denoiser_rows == len(denoiser.rows) == denoiser.distinct
    assert result.cost.reward_rows == len(reward.rows) == reward.distinct
    _, naive_denoiser, naive_reward = run("none")
    assert denoiser.distinct == naive_denoiser.distinct
    assert reward.distinct == naive_reward.distinct


@pytest.mark.parametrize("savings", ["all", "none", *sorted(ALL)])
def test_counts_agree_with_the_wrappers(savings):
    result, denoiser, reward = run(savings)
    assert result.cost.denoiser_rows == len(denoiser.rows)
    assert result.cost.reward_rows == len(reward.rows)
    assert result.cost.denoiser_rows == int(result.trace.denoiser_rows.sum())
    assert result.cost.reward_rows == int(result.trace.reward_rows.sum())


def test_requested_rows_are_what_no_savings_execute():
    naive, _, _ = run("none")
    assert naive.cost.denoiser_rows == naive.cost.denoiser_rows_requested
    assert naive.cost.reward_rows == naive.cost.reward_rows_requested
    thrifty, _, _ = run("all")
    assert thrifty.cost.denoiser_rows_requested == naive.cost.denoiser_rows_requested
    # a finished chain proposes one candidate instead of five equal ones
    assert thrifty.cost.reward_rows_requested <= naive.cost.reward_rows_requested


@pytest.mark.parametrize("saving", sorted(ALL - {"skip"}))
def test_each_saving_saves(saving):
    naive, _, _ = run("none")
    saved, _, _ = run(saving)
    rows = "reward_rows" if saving == "rewards" else "denoiser_rows"
    assert getattr(saved.cost, rows) < getattr(naive.cost, rows)


def test_time_conditioned_denoisers_share_only_within_a_step():
    result, denoiser, _ = run(time_conditioned=True, n=500)
    once = sum(len(call.unique(dim=0)) for call in denoiser.calls)
    assert len(denoiser.rows) == once
    assert result.cost.denoiser_rows > denoiser.distinct
    # carried: at most one call per time of the grid
    assert len(denoiser.calls) <= 5


def test_time_dependent_values_are_not_reused_across_steps():
    value = Recorder(exact.TableValue(exact.exact_values(0.5)))
    run(value=value, n=500)
    assert len(value.calls) == 4  # one call a step, the fill is scored by the reward
    assert len(value.rows) == sum(len(call.unique(dim=0)) for call in value.calls)
    assert len(value.rows) > value.distinct
    timeless = Recorder(exact.TableValue(exact.mode_values()), time_conditioned=False)
    run(value=timeless, n=500)
    assert len(timeless.rows) == timeless.distinct


def test_random_rewards_are_not_remembered():
    reward = Recorder(exact.reward, deterministic=False)
    d = exact.diffusion()
    sampler = fg.SVDD(d, reward, num_candidates=5, alpha=0.5)
    sampler.sample(200, num_steps=4, progress=False)
    assert len(reward.rows) > reward.distinct
    assert all(len(call) == len(call.unique(dim=0)) for call in reward.calls)


def test_small_memory_costs_rows_not_bits():
    thrifty, _, _ = run()
    forgetful, denoiser, _ = run(cache_bytes=0)
    assert torch.equal(thrifty.samples, forgetful.samples)
    assert forgetful.cost.denoiser_rows >= thrifty.cost.denoiser_rows
    assert forgetful.cost.reward_rows > thrifty.cost.reward_rows
    assert forgetful.cost.denoiser_rows == len(denoiser.rows)


def test_max_rows_and_fixed_rows_shape_every_call():
    _, denoiser, reward = run(max_rows=3)
    assert max(len(call) for call in (*denoiser.calls, *reward.calls)) <= 3
    result, denoiser, reward = run(fixed_rows=8)
    assert {len(call) for call in (*denoiser.calls, *reward.calls)} == {8}
    padded = len(denoiser.rows) + len(reward.rows)
    cost = result.cost
    assert padded == cost.denoiser_rows + cost.reward_rows + cost.padding_rows


@pytest.mark.parametrize("time_conditioned", [False, True])
@pytest.mark.parametrize("make", ["svdd", "best", "plain"])
def test_plan_bounds_the_run(make, time_conditioned):
    d = exact.diffusion(time_conditioned=time_conditioned)
    sampler = {
        "svdd": fg.SVDD(d, exact.reward, num_candidates=5, alpha=0.5),
        "best": fg.BestOfN(d, exact.reward, 5),
        "plain": fg.Unguided(d),
    }[make]
    for n in (1, 50):
        bound = sampler.plan(n, num_steps=4)
        cost = sampler.sample(n, num_steps=4, progress=False).cost
        assert cost.denoiser_rows <= bound.denoiser_rows
        assert cost.reward_rows <= bound.reward_rows
    assert bound.denoiser_rows == {"svdd": 50 * (1 + 4 * 5), "best": 250 * 5, "plain": 250}[make]
    assert bound.reward_rows == {"svdd": 50 * 5 * 5, "best": 250, "plain": 0}[make]


def test_seconds_add_up():
    result, _, _ = run(n=50)
    parts = [result.cost.seconds[name] for name in ("denoiser", "reward", "kernels", "other")]
    assert sum(parts) == pytest.approx(result.cost.seconds["total"], rel=1e-6)
    assert min(parts) > 0
    assert "outside the models" in str(result.cost)


def test_stops_keep_finished_chains():
    def sampler(reward=exact.reward):
        return fg.SVDD(exact.diffusion(), reward, num_candidates=5, alpha=0.5)

    whole = sampler().sample(300, num_steps=4, progress=False)
    assert whole.stopped is None
    moves = iter(range(1, 1000))
    early = sampler().sample(
        300, num_steps=4, progress=False, callback=lambda step, state: next(moves) < 12
    )
    assert early.stopped == "callback"
    assert 0 < len(early) < 300
    assert torch.equal(early.samples, whole.samples[: len(early)])
    assert torch.equal(early.chains, torch.arange(len(early)))
    limited = sampler().sample(300, num_steps=4, progress=False, max_reward_rows=8)
    assert limited.stopped == "max_reward_rows=8"
    slow = sampler().sample(300, num_steps=4, progress=False, max_seconds=1e-9)
    assert slow.stopped == "max_seconds=1e-09"
    assert len(slow) == 0


def test_a_stop_at_the_very_end_is_a_whole_run():
    sampler = fg.Unguided(exact.diffusion())
    result = sampler.sample(8, num_steps=4, progress=False, callback=lambda step, state: step < 4)
    assert result.stopped is None
    assert len(result) == 8


def test_trace_and_save(tmp_path):
    result, _, _ = run(n=64)
    trace = result.trace
    assert trace.values.shape == (5, 64)
    torch.testing.assert_close(trace.values[-1], result.rewards)
    # nothing is selected at the fill: no site is left masked
    assert bool(((trace.ess[:-1] >= 1) & (trace.ess[:-1] <= 5)).all())
    assert bool(trace.ess[-1:].isnan().all())
    assert trace.value_quantiles((0.0, 1.0)).shape == (5, 2)
    result.save(tmp_path / "out")
    loaded = fg.Result.load(tmp_path / "out")
    assert torch.equal(loaded.samples, result.samples)
    assert torch.equal(loaded.rewards, result.rewards)
    torch.testing.assert_close(loaded.trace.values, trace.values)
    assert loaded.cost == result.cost
    assert loaded.settings == result.settings
    assert loaded.settings["method"] == "SVDD"
    assert loaded.settings["alpha"] == 0.5
