"""SVDD against the exact laws of TC-A, with controls that must fail."""

from __future__ import annotations

import exact
import numpy as np
import pytest
import torch

import fastguide as fg
from fastguide.evaluation.savings import ALL

P_MIN = 1e-6  # with fixed seeds a pass or failure is forever; the bound is for new seeds
DRAWS, FEW = 200_000, 20_000
ALPHA = 0.5


def case(name: str) -> tuple[list[np.ndarray], object, float]:
    """(value tables, the value as the sampler takes it, alpha)."""
    kind, _, greedy = name.partition(" ")
    alpha = 0.0 if greedy else ALPHA
    if kind == "posterior_mean":
        return exact.mode_values(), "posterior_mean", alpha
    tables = exact.exact_values(ALPHA) if kind == "exact" else exact.mean_values()
    return tables, exact.TableValue(tables), alpha


CASES = ["exact", "mean", "posterior_mean", "posterior_mean argmax", "exact argmax"]


def draw(name: str, num: int, draws: int, **options) -> np.ndarray:
    _, value, alpha = case(name)
    sampler = fg.SVDD(exact.diffusion(), exact.reward, value, num_candidates=num, alpha=alpha)
    result = sampler.sample(draws, num_steps=exact.STEPS, progress=False, **options)
    np.testing.assert_allclose(result.rewards, exact.reward(result.samples), rtol=1e-6)
    return exact.counts_of(result.samples)


def test_tables_agree_with_published_figures():
    np.testing.assert_allclose(
        exact.pretrained_law(),
        [0.064295, 0.094920, 0.141426, 0.178583, 0.202034, 0.064295, 0.113021, 0.141426],
        atol=1e-6,
    )
    assert exact.exact_values(0.5)[0][exact.INDEX[(2, 2, 2)]] == pytest.approx(1.535441, abs=1e-6)
    law = exact.output_law(exact.mode_values(), 0.5, 10)
    assert law @ exact.REWARD == pytest.approx(1.683475, abs=2e-6)
    one_step = exact.softmax_kernel(np.array([0.5, 0.2, 0.2, 0.1]), np.log([1, 4, 0.5, 9]), 1.0, 5)
    np.testing.assert_allclose(one_step, [0.316355, 0.349017, 0.068857, 0.265772], atol=1e-6)


@pytest.mark.parametrize("num", [4, 10])
@pytest.mark.parametrize("name", CASES)
def test_output_law(name, num):
    tables, _, alpha = case(name)
    law = exact.output_law(tables, alpha, num)
    assert exact.chi_square_p(draw(name, num, DRAWS), law) > P_MIN


@pytest.mark.parametrize("num", [4, 10])
@pytest.mark.parametrize("saving", [*sorted(ALL), "none"])
def test_output_law_with_each_saving_alone(saving, num):
    for name in ("exact", "posterior_mean"):
        tables, _, alpha = case(name)
        law = exact.output_law(tables, alpha, num)
        counts = draw(name, num, FEW, savings=saving, seed=7)
        assert exact.chi_square_p(counts, law) > P_MIN


@pytest.mark.parametrize("name", CASES)
def test_output_law_on_reference(name):
    tables, _, alpha = case(name)
    with fg.use_backend("reference"):
        counts = draw(name, 4, FEW, seed=3)
    assert exact.chi_square_p(counts, exact.output_law(tables, alpha, 4)) > P_MIN


@pytest.mark.parametrize(
    ("name", "num", "other", "other_num"),
    [
        ("posterior_mean", 10, "exact", 10),
        ("mean", 10, "exact", 10),
        ("posterior_mean", 4, "posterior_mean", 10),
        ("posterior_mean argmax", 4, "posterior_mean", 4),
    ],
)
def test_another_law_is_rejected(name, num, other, other_num):
    tables, _, alpha = case(other)
    law = exact.output_law(tables, alpha, other_num)
    assert exact.chi_square_p(draw(name, num, FEW), law) < P_MIN


def test_the_target_itself_is_rejected_at_finite_m():
    counts = draw("exact", 10, FEW)
    assert exact.chi_square_p(counts, exact.target_law(ALPHA)) < P_MIN


def flickering() -> list[np.ndarray]:
    """A value that means little at odd grid times and much at even ones."""
    *tables, terminal = exact.mode_values()
    return [table * (0.1 if step % 2 else 2) for step, table in enumerate(tables)] + [terminal]


def test_a_time_dependent_value_has_its_own_law():
    tables = flickering()
    sampler = fg.SVDD(
        exact.diffusion(), exact.reward, exact.TableValue(tables), num_candidates=10, alpha=ALPHA
    )
    counts = exact.counts_of(sampler.sample(FEW, num_steps=4, progress=False).samples)
    assert exact.chi_square_p(counts, exact.output_law(tables, ALPHA, 10)) > P_MIN


def test_reusing_a_time_dependent_value_across_steps_is_rejected():
    tables = flickering()
    value = exact.TableValue(tables)
    value.time_conditioned = False  # a lie: the value of a state changes from step to step
    sampler = fg.SVDD(exact.diffusion(), exact.reward, value, num_candidates=10, alpha=ALPHA)
    counts = exact.counts_of(sampler.sample(FEW, num_steps=4, progress=False).samples)
    assert exact.chi_square_p(counts, exact.output_law(tables, ALPHA, 10)) < P_MIN


def test_scoring_candidates_at_their_parents_time_is_rejected():
    tables = flickering()
    value = exact.TableValue(tables)

    def late(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return value(x, t + 0.25)

    sampler = fg.SVDD(exact.diffusion(), exact.reward, late, num_candidates=10, alpha=ALPHA)
    counts = exact.counts_of(sampler.sample(FEW, num_steps=4, progress=False).samples)
    assert exact.chi_square_p(counts, exact.output_law(tables, ALPHA, 10)) < P_MIN


MASKED = [state for state in exact.STATES if exact.MASK in state]


@pytest.mark.parametrize("num", [1, 2, 5, 20])
def test_one_step_law_from_every_masked_state(num):
    tables, value, alpha = case("exact")
    sampler = fg.SVDD(exact.diffusion(), exact.reward, value, num_candidates=num, alpha=alpha)
    for state in MASKED:
        with torch.no_grad():
            run = sampler.start(FEW, num_steps=exact.STEPS, prompt=torch.tensor(state))
            after = exact.state_index(next(iter(run)).x)
        p = exact.KERNELS[0][exact.INDEX[state]]
        law = exact.chosen_kernel(p, tables[1], alpha, num)
        counts = np.bincount(after.numpy(), minlength=27)
        assert counts.sum() == FEW
        assert exact.chi_square_p(counts, law) > P_MIN


def test_one_step_argmax_breaks_ties_by_the_kernel():
    # every value equal: the first candidate is taken, whose law is the kernel itself
    sampler = fg.SVDD(
        exact.diffusion(), exact.reward, lambda x, t: torch.zeros(len(x)), num_candidates=5, alpha=0
    )
    with torch.no_grad():
        run = sampler.start(FEW, num_steps=exact.STEPS)
        after = exact.state_index(next(iter(run)).x)
    counts = np.bincount(after.numpy(), minlength=27)
    assert exact.chi_square_p(counts, exact.KERNELS[0][exact.INDEX[(2, 2, 2)]]) > P_MIN


@pytest.mark.parametrize("final", ["sample", "mode"])
def test_fill_of_a_schedule_that_leaves_masks(final):
    """a(0) = 1/2: about half the sites are still masked when the fill comes."""
    diffusion = exact.diffusion(schedule=lambda t: 0.5 + 0.5 * t, final=final)
    chance = 0.5 + 0.5 * np.linspace(1, 1e-5, 3)
    law = np.zeros(27)
    law[exact.INDEX[(2, 2, 2)]] = 1
    for rho in (chance[:-1] - chance[1:]) / chance[:-1]:
        law = law @ exact.kernel(rho)
    fills = {"sample": exact.kernel(1.0), "mode": exact.mode_kernel()}
    counts = exact.counts_of(
        fg.Unguided(diffusion).sample(DRAWS, num_steps=2, progress=False).samples
    )
    for name, fill in fills.items():
        clean = np.array([(law @ fill)[exact.INDEX[state]] for state in exact.CLEAN])
        assert (exact.chi_square_p(counts, clean) > P_MIN) == (name == final)


def test_posterior_samples_value_has_its_own_law():
    """PosteriorSamples averages exp(r/alpha) over draws keyed by the state: law by enumeration."""
    value = fg.values.PosteriorSamples(exact.reward, num_samples=3, alpha=ALPHA)
    sampler = fg.SVDD(exact.diffusion(), exact.reward, value, num_candidates=4, alpha=ALPHA)
    states = torch.tensor(exact.STATES)
    # the draws depend on the state and the seed alone, so the value is a table
    drawn = fg.ops.masked_posterior(
        exact.LOGITS, states, mask_token=2, num_samples=3, keys=fg.ops.masked_keys(states), seed=0
    )
    rewards = exact.reward(drawn.flatten(0, 1)).view(27, 3)
    table = fg.ops.soft_value(rewards, ALPHA).numpy()
    tables = [table] * (exact.STEPS + 1) + [exact.terminal_reward()]
    counts = exact.counts_of(sampler.sample(DRAWS, num_steps=4, progress=False).samples)
    assert exact.chi_square_p(counts, exact.output_law(tables, ALPHA, 4)) > P_MIN


@pytest.mark.parametrize("num", [1, 3, 10])
def test_best_of_n_law(num):
    sampler = fg.BestOfN(exact.diffusion(), exact.reward, num)
    result = sampler.sample(FEW, num_steps=exact.STEPS, progress=False)
    law = exact.argmax_kernel(exact.pretrained_law(), exact.REWARD, num)
    assert exact.chi_square_p(exact.counts_of(result.samples), law) > P_MIN
    torch.testing.assert_close(result.rewards.double(), exact.reward(result.samples))
    assert result.trace.values.shape == (exact.STEPS + 1, FEW)
