"""The evaluator that keeps everything on the device: same samples, hardly any waiting."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from quarter_model import STEPS, Denoiser, L, V, reward, sample, sampler, state_value
from torch._subclasses.fake_tensor import FakeTensorMode

import fastguide as fg
from fastguide.errors import NonFiniteError
from fastguide.evaluation import resident, savings


@pytest.fixture(autouse=True)
def _as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "RESIDENT_DEVICES", {"cpu", "cuda"})


VALUES: dict[str, Any] = {
    "mode": "posterior_mean",
    "samples": fg.values.PosteriorSamples(reward, 3, alpha=0.1),
    "of the state": state_value,
}
SAVINGS = ["all", "none", {"carry"}, {"duplicates"}, {"duplicates", "carry"}, {"parent", "carry"}]


@pytest.mark.parametrize("kept", SAVINGS, ids=str)
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("num_candidates", [1, 4])
def test_samples_are_those_of_the_other_evaluator(
    value: Any, kept: Any, num_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sampler(value=value, num_candidates=num_candidates)
    assert made.start(1, num_steps=2, savings=kept).resident
    here = sample(made, savings=kept)
    monkeypatch.setattr(savings, "RESIDENT_DEVICES", {"cuda"})
    assert not made.start(1, num_steps=2, savings=kept).resident
    due = sample(made, savings=kept)
    assert torch.equal(here.samples, due.samples)
    assert torch.equal(here.rewards, due.rewards)
    scored = due.trace.values.isfinite()
    assert torch.equal(here.trace.values[scored], due.trace.values[scored])
    chosen = due.trace.ess.isfinite()  # the other evaluator skips choices among equals
    torch.testing.assert_close(here.trace.ess[chosen], due.trace.ess[chosen])


def test_all_means_what_needs_no_host() -> None:
    made = sampler()
    assert made.start(1, num_steps=2).resident
    assert not made.start(1, num_steps=2, savings={"duplicates", "history"}).resident


def test_conditioning_guidance_and_a_lazy_head(monkeypatch: pytest.MonkeyPatch) -> None:
    cond = {"shift": torch.arange(6) % 2 * 1.0}
    guided = fg.MaskedDiffusion(
        Denoiser(), L, V, null_cond={"shift": torch.zeros(1)}, guidance_scale=2.0
    )
    lazy = fg.MaskedDiffusion(Denoiser(), L, V, head=lambda hidden: hidden / 2)
    runs = [(guided, cond), (lazy, None), (lazy, cond)]
    here = [sample(fg.SVDD(d, reward, num_candidates=4), cond=c) for d, c in runs]
    monkeypatch.setattr(savings, "RESIDENT_DEVICES", {"cuda"})
    for (diffusion, c), one in zip(runs, here, strict=True):
        assert torch.equal(one.samples, sample(fg.SVDD(diffusion, reward), cond=c).samples) is False
        due = sample(fg.SVDD(diffusion, reward, num_candidates=4), cond=c)
        assert torch.equal(one.samples, due.samples)


def test_each_distinct_state_of_a_step_is_evaluated_once() -> None:
    """Rows are counted by the denoiser itself; a parent's output is never asked for again."""
    denoiser = Denoiser()
    made = sampler(denoiser)
    met: list[set[tuple[int, ...]]] = []
    before: set[tuple[int, ...]] = set()
    run = made.start(6, num_steps=STEPS)
    for state in run:
        rows = [tuple(row) for x in denoiser.seen for row in x.tolist()]
        assert len(rows) == len(set(rows))
        assert before.isdisjoint(rows) or not met
        met.append(set(rows))
        denoiser.seen.clear()
        before = {tuple(row) for row in state.x.tolist()}
    result = run.result()
    assert result.cost.denoiser_rows == sum(len(rows) for rows in met)
    assert result.cost.denoiser_rows < result.cost.denoiser_rows_requested / 2


def test_a_resumed_run_goes_on() -> None:
    made = sampler()
    due = sample(made)
    run = made.start(6, num_steps=STEPS)
    for state in run:
        if state.step == 4:
            break
    state = pickle.loads(pickle.dumps(state))
    again = made.start(6, num_steps=STEPS, state=state)
    for _ in again:
        pass
    assert torch.equal(again.result().samples, due.samples)
    torch.testing.assert_close(again.result().trace.ess, due.trace.ess, equal_nan=True)


# -- waiting -----------------------------------------------------------------------------------


class Reads:
    """Stands in for the one function that waits, counting its calls."""

    def __init__(self, counts: list[list[int]] | None = None) -> None:
        self.calls = 0
        self.counts = counts

    def __call__(self, words: torch.Tensor) -> list[int]:
        self.calls += 1
        assert self.counts is not None, "the host waited"
        empty = torch.iinfo(torch.int64).max
        counts = self.counts[self.calls - 1]
        return [*counts, *([0] * 6), *([empty, 0, 0, 0] * ((len(words) - len(counts) - 6) // 4))]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What each wait of a run with savings="all" finds out."""
    counts: list[list[int]] = []

    def read(words: torch.Tensor) -> list[int]:
        numbers: list[int] = words.tolist()
        counts.append(numbers[: (len(numbers) - 6) % 4])
        return numbers

    monkeypatch.setattr(resident, "read_words", read)
    return counts


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_no_step_waits_without_dedupe(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors hold no numbers: whatever has to look at one fails."""
    reads = Reads()
    monkeypatch.setattr(resident, "read_words", reads)
    steps = sampler().diffusion.steps(STEPS)
    with FakeTensorMode(), torch.no_grad():
        made = sampler(value=value)
        monkeypatch.setattr(made.diffusion, "steps", lambda num_steps: steps)
        run = made.start(6, num_steps=STEPS, savings={"carry"})
        for state in run:
            assert state.x.shape == (6, L)
            if state.step == STEPS + 1:
                break
    assert reads.calls == 0


def test_one_wait_a_step_with_dedupe(
    recorded: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(sampler())
    # the first states; a count of outputs and of values each step; clean samples; the end
    assert [len(counts) for counts in recorded] == [1, *([2] * STEPS), 1, 0]
    reads = Reads(list(recorded))
    monkeypatch.setattr(resident, "read_words", reads)
    steps = sampler().diffusion.steps(STEPS)
    with FakeTensorMode(), torch.no_grad():
        made = sampler()
        monkeypatch.setattr(made.diffusion, "steps", lambda num_steps: steps)
        run = made.start(6, num_steps=STEPS)
        for state in run:
            assert reads.calls == 1 + state.step
            if state.step == STEPS + 1:
                break


# -- what is not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["all", {"carry"}], ids=str)
def test_non_finite_numbers_are_named_in_the_end(kept: Any) -> None:
    denoiser = Denoiser()

    def broken(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        logits = denoiser(x, t)
        few = ((x == V).sum(1) <= 6)[:, None, None]
        return torch.where(few, torch.nan, logits)

    with pytest.raises(
        NonFiniteError, match=r"denoiser returned NaN.* at step \d for chain \d, can"
    ):
        sample(sampler(broken), savings=kept)

    def bad_reward(x: torch.Tensor) -> torch.Tensor:
        return torch.where((x == 2).sum(1) > 3, torch.nan, reward(x))

    diffusion = fg.MaskedDiffusion(Denoiser(), L, V)
    with pytest.raises(
        NonFiniteError, match=r"reward returned NaN or infinity at step \d for chain"
    ):
        sample(fg.SVDD(diffusion, bad_reward), savings=kept)
    with pytest.raises(
        NonFiniteError, match=r"value returned NaN or infinity at step \d for chain"
    ):
        sample(
            fg.SVDD(diffusion, reward, value=lambda x, t: torch.full((len(x),), torch.inf)),
            savings=kept,
        )


@pytest.mark.parametrize("kept", ["all", {"carry"}], ids=str)
def test_rejected_candidates_are_never_chosen(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = Denoiser()

    def broken(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.where((x[:, :1] == 1)[..., None], torch.nan, denoiser(x, t))

    def bad_reward(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 1] == 1, torch.nan, reward(x))

    def run() -> fg.Result:
        made = fg.SVDD(
            fg.MaskedDiffusion(broken, L, V), bad_reward, num_candidates=8, on_invalid="reject"
        )
        return sample(made, savings=kept)

    here = run()
    assert bool((here.samples[:, :2] != 1).all())
    monkeypatch.setattr(savings, "RESIDENT_DEVICES", {"cuda"})
    assert torch.equal(here.samples, run().samples)


@pytest.mark.parametrize("interval", [2, 3, 20])
def test_outputs_of_steps_that_are_not_scored_are_not_taken_for_others(interval: int) -> None:
    def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.tanh() * (1 + t[:, None] / 8)

    diffusion = fg.GaussianDiffusion(
        denoiser, (3,), alphas_cumprod=torch.linspace(0.95, 0.05, 8), prediction_type="sample"
    )
    results = [
        fg.FKSteering(
            diffusion, lambda x: x.sum(dim=1), num_particles=4, alpha=0.5, interval=interval
        ).sample(5, num_steps=8, seed=3, savings=kept, progress=False)
        for kept in ("all", "none")
    ]
    assert torch.equal(results[0].samples, results[1].samples)
    assert results[0].cost.denoiser_rows < results[1].cost.denoiser_rows
