"""SMC, NestedSMC and FKSteering against TC-A: unbiased at any number of particles."""

from __future__ import annotations

import pickle
from typing import Any

import exact
import numpy as np
import pytest
import torch
from exact_particles import ALPHA, made, run, worst_score

import fastguide as fg
from fastguide.errors import ArgumentError, NonFiniteError
from fastguide.policy import Choice, Selection
from fastguide.reference.resample import SCHEMES

# -- unbiased ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_particles", [4, 16, 64])
@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
@pytest.mark.parametrize("resampler", SCHEMES)
def test_smc_is_unbiased(resampler: str, ess_threshold: float, num_particles: int) -> None:
    how = {"resampler": resampler, "ess_threshold": ess_threshold}
    assert worst_score(run(made(fg.SMC, num_particles, **how))) < 5


@pytest.mark.parametrize("num_particles", [1, 4, 16])
def test_never_resampling_is_importance_sampling(num_particles: int) -> None:
    result = run(made(fg.SMC, num_particles, ess_threshold=0.0))
    assert worst_score(result) < 5
    rewards = exact.reward(result.particles.flatten(0, 1)).view(len(result), -1) / ALPHA
    torch.testing.assert_close(result.log_weights, rewards.log_softmax(1))
    log_mean = rewards.logsumexp(1) - np.log(num_particles)
    torch.testing.assert_close(result.log_z, log_mean)


@pytest.mark.parametrize("value", ["posterior_mean", exact.TableValue(exact.exact_values(ALPHA))])
@pytest.mark.parametrize(("num_particles", "num_candidates"), [(4, 4), (16, 4), (4, 16)])
def test_nested_smc_is_unbiased(num_particles: int, num_candidates: int, value: Any) -> None:
    sampler = made(fg.NestedSMC, num_particles, num_candidates=num_candidates, value=value)
    assert worst_score(run(sampler, 10_000)) < 5


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("potential", ["difference", "max", "sum", "immediate"])
def test_fk_steering_is_unbiased(potential: str, interval: int) -> None:
    sampler = made(fg.FKSteering, potential=potential, interval=interval, ess_threshold=1.0)
    assert worst_score(run(sampler, 10_000)) < 5


def test_a_value_that_reads_the_time_is_looked_at_even_where_no_state_moves() -> None:
    value = exact.TableValue(exact.exact_values(0.5))
    assert worst_score(run(made(fg.SMC, 4, value=value, ess_threshold=1.0))) < 5


def test_exact_values_leave_little_to_the_weights() -> None:
    """With the exact soft value the nested estimate of Z has less than 0.4 of the spread."""
    value = exact.TableValue(exact.exact_values(ALPHA))
    spread = {
        name: float(run(made(fg.NestedSMC, 4, num_candidates=16, value=v), 4000).log_z.std())
        for name, v in {"exact": value, "mean": "posterior_mean"}.items()
    }
    assert spread["exact"] < 0.4 * spread["mean"]


# -- what the suite can tell apart -----------------------------------------------------------------


class Inflated(fg.SMC):
    """One increment is 2 % too large."""

    def select(self, selection: Selection) -> Choice:
        if selection.step.index == 2:
            kept = selection.memory["log_twist"] - np.log(1.02)
            selection = Selection(
                **{**vars(selection), "memory": {**selection.memory, "log_twist": kept}}
            )
        return super().select(selection)


class Dropped(fg.SMC):
    """Weights are forgotten where a group does not resample."""

    def select(self, selection: Selection) -> Choice:
        choice = super().select(selection)
        if not selection.step.clean:
            choice.memory["log_weight"].zero_()
        return choice


class Ungathered(fg.SMC):
    """The cached twist stays where it was when the particles move."""

    def select(self, selection: Selection) -> Choice:
        choice = super().select(selection)
        old = selection.memory["log_twist"]
        choice.memory["log_twist"] = selection.values.view(old.shape) / self.alpha
        return choice


class RunningMaximum(fg.FKSteering):
    """The terminal factor is the largest value so far instead of the reward."""

    def select(self, selection: Selection) -> Choice:
        if selection.step.clean:
            seen = torch.maximum(
                selection.memory["seen"].flatten() * self.alpha, selection.values.flatten()
            )
            selection = Selection(**{**vars(selection), "values": seen[:, None]})
        return super().select(selection)


@pytest.mark.parametrize(
    "sampler",
    [
        made(Inflated, 64),
        made(Dropped, 16),
        made(Ungathered, 16, ess_threshold=1.0),
        made(RunningMaximum, 16, potential="max", interval=1),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_the_test_fails_what_is_wrong(sampler: Any) -> None:
    assert worst_score(run(sampler)) > 5


def total_variation(result: fg.Result) -> float:
    counts = exact.counts_of(result.samples)
    return float(0.5 * np.abs(counts / counts.sum() - exact.target_law(ALPHA)).sum())


def test_nested_smc_converges_where_svdd_does_not() -> None:
    """Total variation to the target, as published: about 0.009 of it is noise of 20,000 draws."""
    published = {(4, 4): 0.0275, (16, 4): 0.0074, (4, 16): 0.0214}
    for (num_particles, num_candidates), due in published.items():
        result = run(made(fg.NestedSMC, num_particles, num_candidates=num_candidates))
        assert abs(total_variation(result) - due) < 0.01
    svdd = fg.SVDD(exact.diffusion(), exact.reward, num_candidates=100, alpha=ALPHA)
    assert abs(total_variation(run(svdd)) - 0.0586) < 0.01


def test_dropped_weights_lose_the_steering() -> None:
    assert abs(total_variation(run(made(Dropped, 16))) - 0.171) < 0.01
    assert total_variation(run(made(fg.SMC, 16))) < 0.025


# -- how it runs ---------------------------------------------------------------------------------


def samplers(num_particles: int = 8) -> list[Any]:
    return [
        made(fg.SMC, num_particles),
        made(fg.NestedSMC, num_particles, num_candidates=3),
        made(fg.FKSteering, num_particles, potential="max", interval=2),
        made(fg.SVDDR, num_particles, num_candidates=3, replaced=0.2),
        fg.BeamSearch(exact.diffusion(), exact.reward, num_particles=num_particles),
        fg.BlockwiseBestOfN(exact.diffusion(), exact.reward, num_candidates=3, block=2, alpha=0.3),
    ]


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: type(sampler).__name__)
def test_groups_do_not_mix(sampler: Any) -> None:
    whole = run(sampler, 12, seed=5)
    parts = [run(sampler, 6, seed=5, first_chain=first) for first in (0, 6)]
    for name in ("samples", "rewards", "particles", "log_weights", "log_z"):
        if getattr(whole, name) is not None:
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(getattr(whole, name), joined)


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: type(sampler).__name__)
@pytest.mark.parametrize("savings", ["none", {"duplicates", "carry"}], ids=str)
def test_savings_change_nothing(sampler: Any, savings: Any) -> None:
    one, other = run(sampler, 20), run(sampler, 20, savings=savings)
    assert torch.equal(one.samples, other.samples)
    if one.log_z is not None:
        assert torch.equal(one.log_z, other.log_z)


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: type(sampler).__name__)
def test_a_pickled_state_goes_on(sampler: Any) -> None:
    due = run(sampler, 6)
    for state in sampler.start(6, num_steps=exact.STEPS):
        if state.step == 3:
            break
    again = sampler.start(6, num_steps=exact.STEPS, state=pickle.loads(pickle.dumps(state)))
    for _ in again:
        pass
    assert torch.equal(again.result().samples, due.samples)
    for name in ("particles", "log_weights", "log_z"):
        if getattr(due, name) is not None:
            assert torch.equal(getattr(again.result(), name), getattr(due, name))


def test_special_cases_are_the_other_samplers_bit_for_bit() -> None:
    plain = run(fg.Unguided(exact.diffusion()), 50).samples
    assert torch.equal(run(made(fg.SMC, 1), 50).samples, plain)
    guide = {"diffusion": exact.diffusion(), "reward": exact.reward, "alpha": ALPHA}
    svdd = run(fg.SVDD(**guide, num_candidates=5), 50).samples
    assert torch.equal(run(made(fg.NestedSMC, 1, num_candidates=5), 50).samples, svdd)
    block = fg.BlockwiseBestOfN(**guide, num_candidates=5, block=1)
    assert torch.equal(run(block, 50).samples, svdd)
    smc, fk = run(made(fg.SMC), 50), run(made(fg.FKSteering, interval=1), 50)
    assert torch.equal(smc.particles, fk.particles)
    torch.testing.assert_close(smc.log_z, fk.log_z)
    whole = fg.BlockwiseBestOfN(**{**guide, "alpha": 0.0}, num_candidates=5, block=99)
    best = fg.BestOfN(exact.diffusion(), exact.reward, num_candidates=5)
    assert torch.equal(run(whole, 50).rewards, run(best, 50).rewards)


def test_the_best_particle_can_be_asked_for() -> None:
    result = run(made(fg.SMC, output="best"), 40)
    rewards = exact.reward(result.particles.flatten(0, 1)).view(40, -1)
    assert torch.equal(result.rewards.double(), rewards.amax(1))


def test_rewards_are_those_of_the_samples() -> None:
    for sampler in samplers():
        result = run(sampler, 30)
        torch.testing.assert_close(result.rewards.double(), exact.reward(result.samples))


# -- beams -----------------------------------------------------------------------------------------


def test_a_beam_of_one_follows_the_argmax_law() -> None:
    beam = fg.BeamSearch(exact.diffusion(), exact.reward, num_particles=1, num_candidates=4)
    law = exact.output_law(exact.mode_values(), 0.0, 4)
    assert exact.chi_square_p(exact.counts_of(run(beam).samples), law) > 1e-6


def test_ties_favour_nobody() -> None:
    """With a constant reward the beam is P plain candidates, whoever their parents are."""

    def constant(x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x))

    beam = fg.BeamSearch(exact.diffusion(), constant, num_particles=3, num_candidates=2)
    counts = exact.counts_of(run(beam).samples)
    assert exact.chi_square_p(counts, exact.pretrained_law()) > 1e-6


def test_a_wider_beam_finds_more() -> None:
    means = [
        float(
            run(
                fg.BeamSearch(exact.diffusion(), exact.reward, num_particles=size), 2000
            ).rewards.mean()
        )
        for size in (1, 4, 16)
    ]
    assert means == sorted(means)


def test_the_width_follows_its_schedule() -> None:
    diffusion = exact.diffusion()
    search = fg.ScheduledSearch(diffusion, exact.reward, num_candidates=8, num_steps=4)
    assert [search.width(step) for step in diffusion.steps(4)] == [1, 2, 4, 6, 8]
    cost = run(search, 10, savings="none").cost
    assert cost.candidate_rows == 10 * (1 + 2 + 4 + 6 + 8)
    full = fg.ScheduledSearch(
        diffusion, exact.reward, num_candidates=4, schedule="constant", num_steps=4
    )
    counts = exact.counts_of(run(full).samples)
    law = exact.output_law(exact.mode_values(), 0.0, 4)
    assert exact.chi_square_p(counts, law) > 1e-6
    with pytest.raises(ArgumentError, match=r"schedule\(0\) is 2; it must be a share in \[0, 1\]"):
        fg.ScheduledSearch(diffusion, exact.reward, schedule=lambda done: 2, num_steps=4)
    with pytest.raises(ArgumentError, match="schedule must be one of constant, linear"):
        fg.ScheduledSearch(diffusion, exact.reward, schedule="late", num_steps=4)


# -- bad input -------------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    for kind in (fg.SMC, fg.NestedSMC, fg.FKSteering):
        with pytest.raises(ArgumentError, match="alpha must be positive for weighted particles"):
            made(kind, alpha=0.0)
        with pytest.raises(ArgumentError, match=r"resampler must be one of .*, got 'best'"):
            made(kind, resampler="best")
        with pytest.raises(ArgumentError, match=r"ess_threshold must be a share .*, got 2"):
            made(kind, ess_threshold=2)
        with pytest.raises(ArgumentError, match="output must be 'sample' or 'best', got 'all'"):
            made(kind, output="all")
        with pytest.raises(ArgumentError, match="num_particles must be at least 1, got 0"):
            made(kind, 0)
    with pytest.raises(ArgumentError, match="potential must be one of difference, max"):
        made(fg.FKSteering, potential="rt")
    with pytest.raises(ArgumentError, match="interval must be at least 1 step, got 0"):
        made(fg.FKSteering, interval=0)
    with pytest.raises(ArgumentError, match=r"replaced must be a share .*, got 1.5"):
        made(fg.SVDDR, replaced=1.5)
    with pytest.raises(ArgumentError, match="block must be at least 1 step, got 0"):
        fg.BlockwiseBestOfN(exact.diffusion(), exact.reward, block=0)


def half_invalid(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x[:, 0] == 1, torch.nan, exact.reward(x))


def test_rejected_particles_have_no_weight() -> None:
    for kind in (fg.SMC, fg.NestedSMC, fg.FKSteering):
        how = {"alpha": ALPHA, "num_particles": 8, "on_invalid": "reject"}
        result = run(kind(exact.diffusion(), half_invalid, **how), 300)
        assert bool((result.samples[:, 0] == 0).all())
        bad = result.particles[..., 0] == 1
        assert bool((result.log_weights[bad] == -torch.inf).all())


def test_a_group_without_a_valid_particle_is_an_error_in_the_end() -> None:
    def invalid(x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x),), torch.nan)

    sampler = fg.SMC(exact.diffusion(), invalid, num_particles=4, on_invalid="reject")
    with pytest.raises(NonFiniteError, match="every candidate of chain 0 was invalid at the last"):
        run(sampler, 3)
    with pytest.raises(NonFiniteError, match="reward returned nan at step 0 for chain 0"):
        run(fg.SMC(exact.diffusion(), invalid, num_particles=4), 3)
