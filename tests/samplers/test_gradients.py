"""DPS, ClassifierGuidance, TDS and DAS against closed forms, on Gaussian and masked chains."""

from __future__ import annotations

from typing import Any

import exact
import exact_gaussian as eg
import numpy as np
import pytest
import torch
from exact_particles import ALPHA, run, worst_score

import fastguide as fg
from fastguide import ops
from fastguide.diffusion.masked_shift import propose_tilted
from fastguide.errors import ArgumentError, GradientError, NonFiniteError
from fastguide.policy import Choice, Selection

CHAIN = eg.ddpm()
LINEAR, QUADRATIC = eg.linear_target(CHAIN), eg.quadratic_target(CHAIN)


def sample(sampler: Any, draws: int, **how: Any) -> fg.Result:
    return sampler.sample(draws, num_steps=eg.STEPS, progress=False, **how)


def scores(result: fg.Result, target: tuple[float, float, float]) -> list[float]:
    """z-scores of the unbiased estimates of Z, Z E[x] and Z E[x^2], in units of Z."""
    mean, var, log_z = target
    x = result.particles[..., 0].double()
    weight = result.log_weights.exp() * (result.log_z - log_z).exp()[:, None]
    found = []
    for power, due in ((0, 1.0), (1, mean), (2, var + mean**2)):
        terms = (weight * x**power).sum(1)
        found.append(float((terms.mean() - due) / (terms.std() / len(terms) ** 0.5)))
    return found


# -- Gaussian chains -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["DPS", "classifier"])
def test_shifts_move_the_mean_as_computed(how: str) -> None:
    """Both use the slope at the state, g k_t / alpha, one step early: the law is known."""
    d, alpha = eg.diffusion(), eg.ALPHA
    sampler: Any = fg.DPS(d, eg.linear_reward, alpha=alpha)
    if how == "classifier":
        sampler = fg.ClassifierGuidance(d, eg.LinearValue(CHAIN), eg.linear_reward, alpha=alpha)
    draws = 20_000
    x = sample(sampler, draws).samples[:, 0].double()
    assert abs(float(x.mean()) - 1.891102) < 5 * (LINEAR[1] / draws) ** 0.5
    assert abs(float(x.var()) / LINEAR[1] - 1) < 5 * (2 / draws) ** 0.5


def test_the_scale_is_in_units_of_one_over_alpha() -> None:
    one = sample(fg.DPS(eg.diffusion(), eg.linear_reward, alpha=0.5, guidance_scale=2.0), 20)
    other = sample(fg.DPS(eg.diffusion(), eg.linear_reward, alpha=0.25), 20)
    torch.testing.assert_close(one.samples, other.samples)
    none = sample(fg.DPS(eg.diffusion(), eg.linear_reward, guidance_scale=0.0), 20)
    plain = sample(fg.Unguided(eg.diffusion()), 20)
    assert torch.equal(none.samples, plain.samples)


def test_the_gradient_is_of_each_row_by_itself() -> None:
    """A batch mean instead of a sum would make the pull depend on the batch."""
    sampler = fg.DPS(eg.diffusion(), eg.linear_reward, alpha=0.5)
    whole = sample(sampler, 32).samples
    assert torch.equal(whole[:3], sample(sampler, 3).samples)
    torch.testing.assert_close(whole, sample(sampler, 32, max_rows=5).samples)


@pytest.mark.parametrize("guidance_scale", [0.0, 0.5, 1.0])
def test_tds_is_unbiased_for_any_shift(guidance_scale: float) -> None:
    sampler = fg.TDS(
        eg.diffusion(), eg.linear_reward, 8, eg.ALPHA, guidance_scale, ess_threshold=1.0
    )
    assert max(map(abs, scores(sample(sampler, 20_000), LINEAR))) < 5


@pytest.mark.parametrize("tempering", ["linear", 0.05, "adaptive"])
def test_das_is_unbiased(tempering: Any) -> None:
    sampler = fg.DAS(
        eg.diffusion(),
        eg.quadratic_reward,
        8,
        eg.ALPHA,
        0.5,
        num_steps=eg.STEPS,
        tempering=tempering,
    )
    assert max(map(abs, scores(sample(sampler, 10_000), QUADRATIC))) < 5


def test_smc_and_nested_smc_weigh_the_initial_state_of_a_gaussian_chain() -> None:
    d = eg.diffusion()
    smc = fg.SMC(d, eg.quadratic_reward, num_particles=16, alpha=eg.ALPHA)
    nested = fg.NestedSMC(d, eg.quadratic_reward, num_particles=4, num_candidates=4, alpha=eg.ALPHA)
    for sampler in (smc, nested):
        assert max(map(abs, scores(sample(sampler, 5_000), QUADRATIC))) < 5


def test_the_shift_pays() -> None:
    """At equal particles the estimate of Z varies ten times less with it than without."""
    spread = {}
    for scale in (0.0, 1.0):
        sampler = fg.TDS(eg.diffusion(), eg.linear_reward, 8, eg.ALPHA, scale)
        spread[scale] = float(sample(sampler, 2_000).log_z.std())
    assert spread[1.0] < 0.1 * spread[0.0]


class Unpaid(fg.TDS):
    """The weights forget that the proposal was shifted."""

    def select(self, selection: Selection) -> Choice:
        return super().select(Selection(**{**vars(selection), "log_ratio": None}))


def test_the_test_sees_a_dropped_proposal_ratio() -> None:
    sampler = Unpaid(eg.diffusion(), eg.linear_reward, 8, eg.ALPHA)
    assert max(map(abs, scores(sample(sampler, 2_000), LINEAR))) > 5


def test_one_forward_pass_a_step() -> None:
    sampler = fg.TDS(eg.diffusion(), eg.linear_reward, 4, eg.ALPHA)
    cost = sample(sampler, 10).cost
    assert cost.denoiser_rows == 4 * 10 * eg.STEPS


def test_select_initial_tilts_the_prior() -> None:
    """DDIM with little noise: most of the target is decided by the first state."""
    chain, value = eg.ddim(0.3), eg.LinearValue(eg.ddim(0.3))
    due = {False: 1.549683, True: eg.linear_target(chain)[0]}
    for select_initial, mean in due.items():
        sampler = fg.SVDD(
            eg.diffusion(eta=0.3),
            eg.linear_reward,
            value,
            num_candidates=200,
            alpha=eg.ALPHA,
            select_initial=select_initial,
        )
        x = sample(sampler, 2_000).samples[:, 0].double()
        # 200 candidates leave a bias of about 1/200 of the way
        assert abs(float(x.mean()) - mean) < 5 * float(x.std()) / 2_000**0.5 + 0.02


# -- masked chains -----------------------------------------------------------------------------


class SoftDenoiser:
    """TC-A's denoiser, extended to the simplex by its own multilinear form."""

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return exact.denoiser(x, t)

    def soft(self, onehot: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        weight = torch.ones(len(onehot), 1, dtype=torch.float64)
        for site in range(exact.LENGTH):
            weight = (weight[:, :, None] * onehot[:, site, None, :].double()).flatten(1)
        return torch.einsum("bs,slk->blk", weight, torch.tensor(exact.PROBS)).clamp_min(1e-6).log()


class SoftReward:
    """TC-A's reward and its expectation under independent sites."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return exact.reward(x)

    def soft(self, probs: torch.Tensor) -> torch.Tensor:
        weight = torch.ones(len(probs), 1, dtype=torch.float64)
        for site in range(exact.LENGTH):
            weight = (weight[:, :, None] * probs[:, site, None, :].double()).flatten(1)
        return weight @ torch.tensor(exact.REWARD)


def masked(mask_token: int | None = None) -> fg.MaskedDiffusion:
    if mask_token is None:
        return fg.MaskedDiffusion(SoftDenoiser(), exact.LENGTH, 2)
    denoiser = SoftDenoiser()

    class Renamed:
        soft = staticmethod(denoiser.soft)

        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return denoiser(torch.where(x == mask_token, exact.MASK, x), t)

    return fg.MaskedDiffusion(Renamed(), exact.LENGTH, 2, mask_token=mask_token)


@pytest.mark.parametrize("mask_token", [None, 9])
@pytest.mark.parametrize("guidance_scale", [0.5, 1.5])
def test_masked_tds_is_unbiased(guidance_scale: float, mask_token: int | None) -> None:
    sampler = fg.TDS(masked(mask_token), SoftReward(), 4, ALPHA, guidance_scale)
    assert worst_score(run(sampler)) < 5


def test_masked_das_is_unbiased() -> None:
    sampler = fg.DAS(masked(), SoftReward(), 4, ALPHA, num_steps=exact.STEPS, tempering="adaptive")
    assert worst_score(run(sampler)) < 5


def test_the_test_sees_a_missing_normaliser() -> None:
    """Dividing by h alone, without the H of each masked site."""

    class Unnormalised(fg.TDS):
        def select(self, selection: Selection) -> Choice:
            if selection.log_ratio is not None:
                ratio = selection.log_ratio.clamp_max(0.0)
                selection = Selection(**{**vars(selection), "log_ratio": ratio})
            return super().select(selection)

    assert worst_score(run(Unnormalised(masked(), SoftReward(), 4, ALPHA))) > 5


def test_tilted_reveals_follow_their_law() -> None:
    """From all masks, each site keeps its mask or reveals a token with the tilted probabilities."""
    draws, rho = 50_000, 0.4
    x = torch.full((1, exact.LENGTH), exact.MASK)
    tilt = torch.tensor([[[0.3, -1.0], [2.0, 0.0], [0.0, 0.0]]])
    logits = exact.denoiser(x, torch.zeros(1))
    tokens, keys, changed, log_ratio = propose_tilted(
        logits,
        x,
        ops.masked_keys(x),
        tilt,
        mask_token=exact.MASK,
        rho=rho,
        temperature=1.0,
        seed=3,
        chains=torch.zeros(1, dtype=torch.int64),
        step=0,
        num_candidates=draws,
        first_candidate=torch.zeros(1, dtype=torch.int64),
    )
    assert torch.equal(ops.masked_keys(tokens[0]), keys[0])
    assert torch.equal(changed[0], (tokens[0] != exact.MASK).sum(-1, dtype=torch.int32))
    p = torch.cat([rho * logits[0].softmax(-1), torch.full((exact.LENGTH, 1), 1 - rho)], dim=1)
    h = torch.cat([tilt[0].exp(), torch.ones(exact.LENGTH, 1)], dim=1)
    q = p * h / (p * h).sum(1, keepdim=True)
    for site in range(exact.LENGTH):
        counts = np.bincount(tokens[0, :, site].numpy(), minlength=3)
        assert exact.chi_square_p(counts, q[site].numpy()) > 1e-6
    due = (p / q).log()[torch.arange(exact.LENGTH), tokens[0]].sum(1)
    torch.testing.assert_close(log_ratio[0], due)
    assert abs(float(log_ratio.exp().mean()) - 1) < 0.02


def test_masked_guidance_raises_the_reward() -> None:
    """First-order tilts are no exact method: held to a gain, and to the plain chain at scale 0."""
    plain = run(fg.Unguided(exact.diffusion())).samples
    mean = float(exact.reward(plain).mean())
    guided = run(fg.DPS(masked(), SoftReward(), alpha=1.0))
    assert float(guided.rewards.mean()) > mean + 0.2
    none = run(fg.DPS(masked(), SoftReward(), alpha=1.0, guidance_scale=0.0))
    assert exact.chi_square_p(exact.counts_of(none.samples), exact.pretrained_law()) > 1e-6


# -- bad input -----------------------------------------------------------------------------------


def test_what_cannot_be_differentiated_is_refused_before_any_work() -> None:
    with pytest.raises(
        GradientError, match=r"denoiser \(function\) cannot be differentiated in to"
    ):
        run(fg.TDS(exact.diffusion(), SoftReward()), 2)
    for kind in (fg.DPS, fg.TDS):
        with pytest.raises(
            GradientError, match=r"reward .* soft\(probs \[B, L, V\]\) -> \[B\], or"
        ):
            kind(masked(), exact.reward)
    with pytest.raises(GradientError, match=r"value .* soft\(onehot \[B, L, V \+ 1\], t \[B\]\)"):
        fg.ClassifierGuidance(masked(), lambda x, t: x)
    with pytest.raises(GradientError, match="reward must return a tensor that torch can differen"):
        sample(fg.DPS(eg.diffusion(), lambda x: [0.0] * len(x)), 2)
    with pytest.raises(GradientError, match="has no gradient in the state"):
        sample(fg.DPS(eg.diffusion(), lambda x: x.detach()[:, 0]), 2)


def test_a_lazy_head_has_no_logits_to_differentiate() -> None:
    lazy = fg.MaskedDiffusion(SoftDenoiser(), exact.LENGTH, 2, head=lambda hidden: hidden)
    for kind in (fg.DPS, fg.TDS, fg.DAS):
        how = {"num_steps": exact.STEPS} if kind is fg.DAS else {}
        with pytest.raises(GradientError, match="a diffusion with head= has none of"):
            kind(lazy, SoftReward(), **how)


def test_a_shifted_proposal_counts_its_head() -> None:
    class Value:
        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return exact.reward(x.clamp_max(1))

        def soft(self, onehot: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return onehot[:, :, 1].double().sum(1)

    sites = []

    def head(hidden: torch.Tensor) -> torch.Tensor:
        sites.append(len(hidden))
        return hidden

    dense = run(fg.ClassifierGuidance(masked(), Value(), exact.reward), 40)
    lazy = fg.MaskedDiffusion(SoftDenoiser(), exact.LENGTH, 2, head=head)
    result = run(fg.ClassifierGuidance(lazy, Value(), exact.reward), 40)
    assert torch.equal(result.samples, dense.samples)
    assert result.cost.head_rows == sum(sites)


def test_runs_of_another_length_are_refused() -> None:
    sampler = fg.DAS(masked(), SoftReward(), num_steps=exact.STEPS)
    with pytest.raises(ArgumentError, match="DAS was made for num_steps=4, got 5; make it again"):
        run(sampler, 2, num_steps=5)


def test_bad_arguments() -> None:
    d = eg.diffusion()
    for kind in (fg.DPS, fg.TDS):
        with pytest.raises(ArgumentError, match="alpha must be positive"):
            kind(d, eg.linear_reward, alpha=0.0)
        with pytest.raises(ArgumentError, match="guidance_scale must be finite and not negative"):
            kind(d, eg.linear_reward, guidance_scale=-1.0)
    with pytest.raises(ArgumentError, match="tempering must be 'linear', 'adaptive' or a positive"):
        fg.DAS(d, eg.linear_reward, num_steps=5, tempering="late")
    with pytest.raises(ArgumentError, match="ess_target must be a share"):
        fg.DAS(d, eg.linear_reward, num_steps=5, ess_target=1.0)


def test_a_broken_gradient_names_its_chain() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        return (x[:, 0] - x[:, 0]).sqrt()

    with pytest.raises(
        NonFiniteError, match="the value or its gradient returned NaN or infinity at"
    ):
        sample(fg.DPS(eg.diffusion(), broken), 2)
