"""Lookahead against the enumerated law of its paths, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import exact
import numpy as np
import pytest
import torch
from evaluating import STATES, evaluator, rows_of, values_of
from quarter_model import STEPS, Denoiser, L, V, reward, sample
from torch._subclasses.fake_tensor import FakeTensorMode

import fastguide as fg
from fastguide.diffusion import Step
from fastguide.errors import ArgumentError, NonFiniteError
from fastguide.evaluation import resident, savings

MASKED = [row for row, state in enumerate(exact.STATES) if exact.MASK in state]
FULL = exact.INDEX[(exact.MASK,) * 3]


def path_law(num_steps: int, x0: str = "mode") -> np.ndarray:
    """Law of the end of a path from each state, [27, 27]."""
    law = np.eye(27)
    for step in range(num_steps):
        law = law @ exact.kernel(1 / (num_steps + 1 - step))
    return law @ (exact.mode_kernel() if x0 == "mode" else exact.kernel(1.0))


def limit(num_steps: int, alpha: float, x0: str = "mode") -> np.ndarray:
    """The value for infinitely many paths, [27]."""
    ends = np.exp(exact.terminal_reward() / alpha)
    return alpha * np.log(path_law(num_steps, x0) @ ends)


def soft_values(num_steps: int, alpha: float) -> np.ndarray:
    """The exact soft values of a chain of `num_steps` at half its way, [27]."""
    grid = np.linspace(1, 1e-5, num_steps + 1)
    twist = exact.kernel(1.0) @ np.exp(exact.terminal_reward() / alpha)
    for step in reversed(range(num_steps // 2, num_steps)):
        twist = exact.kernel(1 - grid[step + 1] / grid[step]) @ twist
    return alpha * np.log(twist)


# -- the value ---------------------------------------------------------------------------------


def test_no_step_is_the_posterior_mean() -> None:
    diffusion = exact.diffusion()
    results = [
        fg.SVDD(diffusion, exact.reward, value, num_candidates=4, alpha=0.5).sample(
            100, num_steps=4, progress=False
        )
        for value in ("posterior_mean", fg.values.Lookahead(exact.reward, 0))
    ]
    assert torch.equal(results[0].samples, results[1].samples)
    assert torch.equal(results[0].trace.values, results[1].trace.values)
    costs = [
        (r.cost.denoiser_rows, r.cost.denoiser_rows_requested, r.cost.reward_rows_requested)
        for r in results
    ]
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ("num_steps", "x0"), [(1, "mode"), (2, "mode"), (5, "mode"), (0, "sample"), (2, "sample")]
)
@pytest.mark.parametrize("saved", [(), savings.ALL], ids=["none", "all"])
def test_paths_have_the_enumerated_law(num_steps: int, x0: str, saved: Any) -> None:
    """Paths of a state are independent draws of a chain that reveals an equal share each step."""
    draws = 5_000
    value = fg.values.Lookahead(exact.clean_index, num_steps, draws, x0=x0, tau=1)
    ends: list[torch.Tensor] = []
    value.average = lambda r: (ends.append(r), r[::draws])[1]  # type: ignore[assignment]
    values_of(value, savings=saved)
    found = ends[0].view(27, draws).long().numpy()
    law = path_law(num_steps, x0)[:, [exact.INDEX[clean] for clean in exact.CLEAN]]
    for state in range(27):
        counts = np.bincount(found[state], minlength=8)
        assert exact.chi_square_p(counts, law[state]) > 1e-6
    near = num_steps // 2 if num_steps else 3
    other = path_law(near, x0)[:, [exact.INDEX[clean] for clean in exact.CLEAN]]
    assert exact.chi_square_p(np.bincount(found[FULL], minlength=8), other[FULL]) < 1e-6
    # neighbouring paths do not depend on one another
    joint = np.histogram2d(found[FULL][::2], found[FULL][1::2], bins=8, range=[[0, 8], [0, 8]])[0]
    assert exact.chi_square_p(joint.ravel(), np.outer(law[FULL], law[FULL]).ravel()) > 1e-6


@pytest.mark.parametrize("num_steps", [1, 3])
def test_many_paths_give_the_soft_value_of_their_law(num_steps: int) -> None:
    alpha, draws = 2.0, 20_000
    found = values_of(fg.values.Lookahead(exact.reward, num_steps, draws, alpha=alpha))
    law, ends = path_law(num_steps), np.exp(exact.terminal_reward() / alpha)
    mean = law @ ends
    error = np.sqrt((law @ ends**2 - mean**2).clip(0) / draws)
    assert (np.abs(np.exp(found.numpy() / alpha) - mean) <= 5 * error + 1e-9).all()
    assert np.abs(found.numpy() - limit(num_steps, alpha)).max() < 0.03


# mean error over masked states for k = 0, 1, 3, 7, 15, as docs/values.md shows it
BIAS = {
    ("mode", 0.5): (0.828, 0.195, 0.083, 0.039, 0.019),
    ("mode", 2.0): (0.562, 0.242, 0.113, 0.056, 0.028),
    ("sample", 0.5): (0.038, 0.021, 0.011, 0.006, 0.003),
    ("sample", 2.0): (0.033, 0.017, 0.009, 0.004, 0.002),
}


@pytest.mark.parametrize(("x0", "alpha"), BIAS)
def test_bias_shrinks_with_the_steps(x0: str, alpha: float) -> None:
    """Against the soft value of a chain of 512 steps at half its way."""
    due = soft_values(512, alpha)
    errors = [np.abs(limit(k, alpha, x0) - due)[MASKED].mean() for k in (0, 1, 3, 7, 15)]
    np.testing.assert_allclose(errors, BIAS[x0, alpha], atol=6e-4)
    assert errors == sorted(errors, reverse=True)


def test_enough_steps_and_paths_come_near_the_soft_value() -> None:
    """15 steps, 20,000 paths: mean error 0.003 of steps, and what is left of the draws."""
    value = fg.values.Lookahead(exact.reward, 15, 20_000, x0="sample", alpha=2.0)
    found = values_of(value, savings=savings.ALL).numpy()
    errors = np.abs(found - soft_values(512, 2.0))
    assert errors[MASKED].mean() < 0.008
    assert errors.max() < 0.04


def test_svdd_follows_its_law() -> None:
    """The draws are keyed by the state, so the value is a table, whenever a state is met."""
    value = fg.values.Lookahead(exact.reward, 1, 2, x0="sample", alpha=0.5)
    table = values_of(value).numpy()
    tables = [table] * (exact.STEPS + 1) + [exact.terminal_reward()]
    law = exact.output_law(tables, 0.5, 4)
    sampler = fg.SVDD(exact.diffusion(), exact.reward, value, num_candidates=4, alpha=0.5)
    result = sampler.sample(20_000, num_steps=4, progress=False)
    assert exact.chi_square_p(exact.counts_of(result.samples), law) > 1e-6
    plain = exact.output_law(exact.mode_values(), 0.5, 4)
    assert exact.chi_square_p(exact.counts_of(result.samples), plain) < 1e-6


def test_smc_stays_unbiased() -> None:
    value = fg.values.Lookahead(exact.reward, 1, 2, alpha=2.0)
    sampler = fg.SMC(exact.diffusion(), exact.reward, value, num_particles=4, alpha=2.0)
    found = sampler.sample(10_000, num_steps=4, progress=False).log_z.exp()
    due = exact.pretrained_law() @ np.exp(exact.REWARD / 2.0)
    assert abs(float(found.mean()) - due) < 5 * float(found.std()) / 10_000**0.5


def test_tau_guards_against_the_worst_path() -> None:
    def value(tau: float) -> torch.Tensor:
        return values_of(fg.values.Lookahead(exact.reward, 2, 8, tau=tau))

    worst, some, mean = value(1e-3), value(0.5), value(1.0)
    assert bool((worst <= some).all() and (some <= mean).all() and (worst < mean)[FULL])
    clean = [row for row in range(27) if row not in MASKED]
    assert torch.equal(worst[clean], mean[clean])


# -- what it costs -------------------------------------------------------------------------------


class Recorder:
    """Keeps the states and times that a denoiser was given."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []
        self.times: list[float] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.states.append(x)
        self.times.append(float(t[0]))
        return exact.denoiser(x, t)


@pytest.mark.parametrize("time_conditioned", [False, True])
@pytest.mark.parametrize("kept", ["all", "none", {"duplicates"}, {"history"}, {"parent", "carry"}])
def test_savings_change_the_cost_alone(kept: Any, time_conditioned: bool) -> None:
    value = fg.values.Lookahead(exact.reward, 2, 3, alpha=0.5)

    def run(saved: Any) -> tuple[fg.Result, Recorder]:
        denoiser = Recorder()
        diffusion = fg.MaskedDiffusion(denoiser, 3, 2, time_conditioned=time_conditioned)
        sampler = fg.SVDD(diffusion, exact.reward, value, num_candidates=4, alpha=0.5)
        made = sampler.sample(60, num_steps=4, progress=False, savings=saved)
        bound = sampler.plan(60, num_steps=4)
        assert made.cost.denoiser_rows <= bound.denoiser_rows
        assert made.cost.reward_rows <= bound.reward_rows
        return made, denoiser

    naive, _ = run("none")
    made, denoiser = run(kept)
    assert torch.equal(made.samples, naive.samples)
    assert made.cost.denoiser_rows == sum(len(x) for x in denoiser.states)
    assert made.cost.denoiser_rows_requested == naive.cost.denoiser_rows_requested
    assert naive.cost.denoiser_rows == naive.cost.denoiser_rows_requested
    if kept == "all" and not time_conditioned:
        states = torch.cat(denoiser.states)
        assert len(states) == len(states.unique(dim=0))


def test_a_path_asks_only_where_it_reveals() -> None:
    """One mask: a path is done after one output, the state's own; no mask: none."""
    denoiser = Recorder()
    value = fg.values.Lookahead(exact.reward, 5, 4, tau=1)
    x = torch.tensor([[1, 0, 2], [1, 0, 1]])
    values_of(value, x, diffusion=fg.MaskedDiffusion(denoiser, 3, 2))
    assert [len(states) for states in denoiser.states] == [1]


def test_time_follows_the_share_of_masks() -> None:
    denoiser = Recorder()
    diffusion = fg.MaskedDiffusion(denoiser, 3, 2, schedule="cosine", time_conditioned=True)
    value = fg.values.Lookahead(exact.reward, 3, 200, tau=1)
    values_of(value, STATES[FULL:], time=0.7, diffusion=diffusion)
    chance = 1 - torch.cos(torch.tensor(denoiser.times) * torch.pi / 2)
    torch.testing.assert_close(chance / chance[0], torch.tensor([1.0, 0.75, 0.5, 0.25]))


def test_outputs_on_the_way_are_given_back() -> None:
    """Memory is that of the states and of one step of their paths, however many steps there are."""
    looking = evaluator(fg.MaskedDiffusion(Denoiser(), L, V, time_conditioned=True), savings.ALL)
    states = torch.where(torch.arange(L) < torch.arange(5)[:, None], 1, V)
    step = Step(0, 0.5, 0.5, clean=False, varies=True, params=())
    looking.values(fg.values.Lookahead(reward, 8, 10, tau=1), rows_of(states), step)
    assert len(looking._store.pinned) <= 5 + 50
    assert len(looking._store.buffer) <= 1 + 2 * (5 + 50)
    assert looking.cost.denoiser_rows > 200


def test_a_lazy_head_runs_where_something_is_revealed() -> None:
    looking = evaluator(fg.MaskedDiffusion(Denoiser(), L, V, head=lambda hidden: hidden))
    states = torch.where(torch.arange(L) < torch.arange(5)[:, None], 1, V)
    step = Step(0, 0.5, 0.5, clean=False, varies=True, params=())
    looking.values(fg.values.Lookahead(reward, 3, 4, tau=1), rows_of(states), step)
    assert 0 < looking.cost.head_rows <= 4 * int((states == V).sum())


def test_few_paths_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    value = fg.values.Lookahead(exact.reward, 2, 3, alpha=0.5)
    due = values_of(value)
    monkeypatch.setattr("fastguide.values.lookahead.PATH_BYTES", 1)
    assert torch.equal(values_of(value), due)


def test_other_masks_heads_and_guidance() -> None:
    """mask_token=0 moves the tokens up by one; a lazy head and a null row change no sample."""

    def shifted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        logits = exact.denoiser(torch.where(x == 0, 2, x - 1), t)
        return torch.cat([torch.zeros_like(logits[..., :1]), logits], dim=-1)

    def shifted_reward(x: torch.Tensor) -> torch.Tensor:
        return exact.reward(x - 1)

    def guided(x: torch.Tensor, t: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
        return exact.denoiser(x, t) * on[:, None, None]

    def law(diffusion: fg.MaskedDiffusion, r: Callable[..., Any], x: torch.Tensor, **how: Any):
        value = fg.values.Lookahead(r, 2, 5_000, tau=1)
        return values_of(value, x, diffusion=diffusion, **how).numpy()

    due = path_law(2) @ exact.terminal_reward()
    masked = fg.MaskedDiffusion(shifted, 3, 3, mask_token=0)
    found = law(masked, shifted_reward, torch.where(STATES == 2, 0, STATES + 1))
    np.testing.assert_allclose(found, due, atol=0.07)
    lazy = fg.MaskedDiffusion(exact.denoiser, 3, 2, head=lambda hidden: hidden)
    assert np.array_equal(
        law(lazy, exact.reward, STATES), law(exact.diffusion(), exact.reward, STATES)
    )
    free = {"on": torch.zeros(1)}
    pair = fg.MaskedDiffusion(guided, 3, 2, null_cond=free, guidance_scale=1.0 + 1e-9)
    found = law(pair, exact.reward, STATES, cond={"on": torch.ones(1)})
    np.testing.assert_allclose(found, due, atol=0.07)


# -- what is not finite ------------------------------------------------------------------------


def broken(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """No output for states that begin with token 1."""
    return torch.where((x[:, :1] == 1)[..., None], torch.nan, exact.denoiser(x, t))


def test_a_bad_output_on_the_way_is_named() -> None:
    diffusion = fg.MaskedDiffusion(broken, 3, 2)
    sampler = fg.SVDD(diffusion, exact.reward, fg.values.Lookahead(exact.reward, 3, 9, tau=1))
    with pytest.raises(NonFiniteError, match=r"denoiser returned NaN.* at step 0 for chain 0, can"):
        sampler.sample(50, num_steps=20, progress=False)


@pytest.mark.parametrize("saved", [(), savings.ALL], ids=["none", "all"])
def test_a_rejected_output_on_the_way_is_worth_nothing(saved: Any) -> None:
    diffusion = fg.MaskedDiffusion(broken, 3, 2)
    how = {"diffusion": diffusion, "reject": True, "savings": saved}
    mean = values_of(fg.values.Lookahead(exact.reward, 3, 64, tau=1), STATES[FULL:], **how)
    assert float(mean) == float("-inf")
    best = values_of(fg.values.Lookahead(exact.reward, 3, 64, alpha=0.5), STATES[FULL:], **how)
    assert bool(best.isfinite().all())


def test_bad_arguments() -> None:
    look = fg.values.Lookahead
    with pytest.raises(ArgumentError, match="num_steps must not be negative, got -1"):
        look(exact.reward, -1)
    with pytest.raises(ArgumentError, match=r"num_samples=2 must be averaged: give alpha=, .* tau"):
        look(exact.reward, 1, 2)
    with pytest.raises(ArgumentError, match="x0 must be 'mode' or 'sample', got 'soft'"):
        look(exact.reward, x0="soft")
    with pytest.raises(ArgumentError, match="give one"):
        look(exact.reward, 1, 2, alpha=1.0, tau=0.5)
    with pytest.raises(ArgumentError, match=r"tau must be a share in \(0, 1\]"):
        look(exact.reward, 1, 2, tau=0)
    assert look(exact.reward, 2, 3, tau=0.5).__name__ == (
        "Lookahead(num_steps=2, num_samples=3, tau=0.5)"
    )


# -- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(savings, "RESIDENT_DEVICES", {"cpu", "cuda"})
    return monkeypatch


def quarter_sampler(denoiser: Any = None, **how: Any) -> fg.SVDD:
    diffusion = fg.MaskedDiffusion(denoiser or Denoiser(), L, V)
    value = fg.values.Lookahead(reward, 2, 3, alpha=0.1)
    return fg.SVDD(diffusion, reward, value, num_candidates=4, alpha=0.1, **how)


@pytest.mark.parametrize("kept", ["all", "none", {"carry"}, {"duplicates"}], ids=str)
def test_resident_samples_are_the_same(kept: Any, as_if_on_a_gpu: pytest.MonkeyPatch) -> None:
    assert quarter_sampler().start(1, num_steps=2, savings=kept).resident
    denoiser = Denoiser()
    here = sample(quarter_sampler(denoiser), savings=kept)
    assert here.cost.denoiser_rows == sum(len(x) for x in denoiser.seen)
    as_if_on_a_gpu.setattr(savings, "RESIDENT_DEVICES", {"cuda"})
    assert torch.equal(here.samples, sample(quarter_sampler(), savings=kept).samples)


def test_resident_rejects_what_is_not_finite(as_if_on_a_gpu: pytest.MonkeyPatch) -> None:
    model = Denoiser()

    def bad(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        many = (x == 1).sum(1) > 3
        return torch.where(many[:, None, None], torch.nan, model(x, t))

    for kept in ("all", {"carry"}):
        with pytest.raises(NonFiniteError, match=r"denoiser returned NaN.* at step \d for chain"):
            sample(quarter_sampler(bad), savings=kept)
        here = sample(quarter_sampler(bad, on_invalid="reject"), savings=kept)
        with as_if_on_a_gpu.context() as patch:
            patch.setattr(savings, "RESIDENT_DEVICES", {"cuda"})
            due = sample(quarter_sampler(bad, on_invalid="reject"), savings=kept)
        assert torch.equal(here.samples, due.samples)
        scored = due.trace.values.isfinite()
        assert torch.equal(here.trace.values[scored], due.trace.values[scored])


def test_resident_never_waits_without_dedupe(as_if_on_a_gpu: pytest.MonkeyPatch) -> None:
    """Fake tensors hold no numbers: whatever has to look at one fails."""

    def read(words: torch.Tensor) -> list[int]:
        raise AssertionError("the host waited")

    as_if_on_a_gpu.setattr(resident, "read_words", read)
    steps = quarter_sampler().diffusion.steps(STEPS)
    with FakeTensorMode(), torch.no_grad():
        made = quarter_sampler()
        as_if_on_a_gpu.setattr(made.diffusion, "steps", lambda num_steps: steps)
        for state in made.start(6, num_steps=STEPS, savings={"carry"}):
            assert state.x.shape == (6, L)
            if state.step == STEPS:
                break
