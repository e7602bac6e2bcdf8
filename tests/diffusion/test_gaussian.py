"""GaussianDiffusion: kernels, parameterisations, log-probabilities, shifts, conditioning, runs."""

from __future__ import annotations

import math
from dataclasses import replace

import exact_gaussian as exact
import numpy as np
import pytest
import torch

import fastguide as fg
from fastguide.diffusion import Batch, Outputs
from fastguide.evaluation.savings import ALL
from fastguide.rng import Purpose

STEPS = exact.STEPS


@pytest.mark.parametrize("eta", [0, 0.3, 1])
def test_steps_are_those_of_the_affine_chain(eta):
    chain, k, steps = exact.ddim(eta), exact.gains(), exact.diffusion(eta=eta).steps(STEPS)
    assert [step.time for step in steps] == list(range(STEPS - 1, -1, -1))
    assert [step.next_time for step in steps] == list(range(STEPS - 2, -2, -1))
    assert [step.clean for step in steps] == [False] * (STEPS - 1) + [True]
    assert [step.varies for step in steps] == [eta > 0] * (STEPS - 1) + [False]
    for t, step in zip(range(STEPS, 0, -1), steps, strict=True):
        a, b, s = step.params
        offset = exact.DATA_MEAN * (1 - k[t] * np.sqrt(exact.ABAR[t]))
        assert a + b * k[t] == pytest.approx(chain.A[t], rel=1e-10)
        assert b * offset == pytest.approx(chain.b[t], rel=1e-9, abs=1e-12)
        assert s == pytest.approx(np.sqrt(chain.var[t]), rel=1e-10)
    assert steps[-1].params == (0.0, 1.0, 0.0)


def test_ddim_at_eta_one_is_ddpm():
    one, other = exact.ddim(1), exact.ddpm()
    for name in ("A", "b", "var"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12)


def test_variance_of_the_forward_step():
    posterior = exact.diffusion().steps(STEPS)
    beta = exact.diffusion(variance="beta").steps(STEPS)
    for t, small, large in zip(range(STEPS, 1, -1), posterior, beta, strict=False):
        assert large.params[:2] == small.params[:2]
        assert large.params[2] ** 2 == pytest.approx(exact.BETA[t], rel=1e-10)
    assert beta[-1] == posterior[-1]


@pytest.mark.parametrize(
    ("spacing", "due"),
    [("trailing", [9, 6, 2]), ("leading", [6, 3, 0]), ("linspace", [9, 4, 0])],
)
def test_fewer_steps_visit_some_indices(spacing, due):
    d = exact.diffusion(abar=exact.ABAR[:11], timestep_spacing=spacing)
    assert [step.time for step in d.steps(3)] == due
    assert [step.time for step in d.steps(10)] == list(range(9, -1, -1))
    assert d.steps(3)[-1].params == (0.0, 1.0, 0.0)
    assert [step.time for step in d.steps(1)] == [0 if spacing == "leading" else 9]


# -- parameterisations ---------------------------------------------------------------------------


def as_prediction(kind: str):
    """The exact denoiser in another parameterisation."""
    x0_hat, abar = exact.prediction(), torch.tensor(exact.ABAR[1:])

    def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.dtype == torch.int64
        alpha, sigma = abar[t].sqrt()[:, None], (1 - abar[t]).sqrt()[:, None]
        noise = (x - alpha * x0_hat(x, t)) / sigma
        return noise if kind == "epsilon" else alpha * noise - sigma * x0_hat(x, t)

    return denoiser


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_parameterisations_agree(kind):
    table = {"alphas_cumprod": exact.ABAR[1:], "prediction_type": kind}
    d = fg.GaussianDiffusion(as_prediction(kind), (4,), **table)
    same = exact.diffusion((4,))
    x = torch.randn(STEPS, 4, dtype=torch.float64) * 3
    t = torch.arange(STEPS)
    torch.testing.assert_close(d.predict(x, t), same.predict(x, t), rtol=1e-9, atol=1e-9)
    ours = fg.Unguided(d).sample(100, num_steps=STEPS, progress=False).samples
    due = fg.Unguided(same).sample(100, num_steps=STEPS, progress=False).samples
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, due, rtol=0, atol=2e-5)


def test_v_prediction_starts_from_pure_noise():
    """abar = 0 at the last index: the velocity there is -x0."""
    table = [*exact.ABAR[1:11], 0.0]
    d = fg.GaussianDiffusion(
        lambda x, t: -torch.ones_like(x), (2,), alphas_cumprod=table, prediction_type="v_prediction"
    )
    x = torch.randn(3, 2)
    torch.testing.assert_close(d.predict(x, torch.full((3,), 10)), torch.ones(3, 2))
    (first, *_) = d.steps(11)
    a, b, s = first.params
    assert (a, b) == pytest.approx((0, math.sqrt(table[9])))
    assert s == pytest.approx(math.sqrt(1 - table[9]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_output_gives_float32_states(dtype):
    def denoiser(x, t):
        assert x.dtype == torch.float32
        return exact.prediction()(x, t).to(dtype)

    d = fg.GaussianDiffusion(
        denoiser, (3,), alphas_cumprod=exact.ABAR[1:], prediction_type="sample"
    )
    result = fg.SVDD(d, exact.linear_reward, num_candidates=2, alpha=0.5).sample(
        4, num_steps=5, progress=False
    )
    assert result.samples.dtype == torch.float32


# -- log-probabilities and shifts ----------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.3, 1])
def test_log_prob_is_the_normal_density(eta):
    chain, d = exact.ddim(eta), exact.diffusion((3,), eta=eta)
    for step, t in ((0, STEPS), (20, STEPS - 20), (STEPS - 2, 2)):
        x_t, noise = torch.randn(2, 5, 3, dtype=torch.float64)
        mean, sd = chain.A[t] * x_t + chain.b[t], float(np.sqrt(chain.var[t]))
        due = -0.5 * noise.square() - math.log(sd) - 0.5 * math.log(2 * math.pi)
        found = d.log_prob(x_t, mean + sd * noise, step, STEPS)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, due.sum(1), rtol=1e-8, atol=1e-8)


def test_log_prob_of_a_step_without_noise_is_a_point_mass():
    d = exact.diffusion((3,))
    x_t = torch.randn(4, 3)
    clean = d.predict(x_t, torch.zeros(4))
    assert d.log_prob(x_t, clean, STEPS - 1, STEPS).tolist() == [0.0] * 4
    clean[1, 2] += 1e-3
    assert d.log_prob(x_t, clean, STEPS - 1, STEPS).tolist() == [0.0, -math.inf, 0.0, 0.0]
    ode = exact.diffusion((3,), eta=0)
    batch = fg.Unguided(ode).start(4, num_steps=STEPS)
    states = [None, *(state.x.clone() for state in batch)]
    for step in range(1, STEPS):
        assert ode.log_prob(states[step], states[step + 1], step, STEPS).tolist() == [0.0] * 4


def test_log_prob_has_gradients():
    weight = torch.zeros((), requires_grad=True)
    d = fg.GaussianDiffusion(
        lambda x, t: weight * x, (2,), alphas_cumprod=[0.9, 0.5], prediction_type="sample"
    )
    x_t, x_s = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
    a, b, s = d.steps(2)[0].params
    d.log_prob(x_t, x_s, 0, 2).sum().backward()
    gap = x_s - a * x_t
    torch.testing.assert_close(weight.grad, (gap * b * x_t / s**2).sum())


def test_log_ratio_of_a_shift_is_that_of_the_densities():
    d, index = exact.diffusion((3,)), 30
    step = d.steps(STEPS)[index]
    x, shift = torch.randn(2, 5, 3, dtype=torch.float64)
    time = torch.full((5,), step.time)
    outputs = Outputs(d.predict(x, time).flip(0), torch.arange(4, -1, -1))
    draw = {
        "seed": 3,
        "chains": torch.arange(5),
        "num_candidates": 4,
        "first_candidate": torch.zeros(5, dtype=torch.int64),
    }
    rows, changed, log_ratio = d.propose_shifted(Batch(x, None), outputs, step, shift=shift, **draw)
    assert rows.keys is None
    assert changed.tolist() == [[1] * 4] * 5
    parent = torch.arange(20) // 4
    under_p = d.log_prob(x[parent], rows.x, index, STEPS)
    under_q = d.log_prob(x[parent], rows.x - shift[parent], index, STEPS)
    torch.testing.assert_close(log_ratio.flatten(), under_p - under_q, rtol=1e-8, atol=1e-8)
    # the same noise without the shift
    plain, _ = d.propose(Batch(x, None), outputs, step, **draw)
    torch.testing.assert_close(rows.x, plain.x + shift[parent])
    none = d.propose_shifted(Batch(x, None), outputs, step, shift=None, **draw)[2]
    assert none is None
    still = replace(step, params=(1.0, 0.0, 0.0))
    with pytest.raises(fg.FastguideError, match="shift needs s > 0"):
        d.propose_shifted(Batch(x, None), outputs, still, shift=shift, **draw)


# -- starting, conditioning, running -------------------------------------------------------------


def test_prior_draws_are_keyed_by_chain_and_candidate():
    d = exact.diffusion((2, 3))
    chains, candidates = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    x = d.start(chains, None, 5, candidates).x
    assert x.shape == (12, 2, 3)
    assert x.dtype == torch.float32
    assert len(x.flatten().unique()) == 72
    normals = fg.ops.philox_normal(
        5, chains, 0, Purpose.PRIOR, num_elements=6, first_candidate=candidates
    )
    assert torch.equal(x, normals.view(12, 2, 3))
    torch.testing.assert_close(x[::3], d.start(torch.arange(4), None, 5).x, rtol=0, atol=0)
    torch.testing.assert_close(
        x[7:8], d.start(torch.tensor([2]), None, 5, torch.tensor([1])).x, rtol=0, atol=0
    )
    assert len(d.start(torch.arange(0), None, 5)) == 0
    assert not bool((d.start(torch.arange(4), None, 6).x == x[::3]).any())


def guided(scale: float, **options) -> tuple[fg.GaussianDiffusion, list[int]]:
    calls: list[int] = []

    def denoiser(x, t, label):
        calls.append(len(x))
        return 0.5 * x + label

    d = fg.GaussianDiffusion(
        denoiser,
        (2,),
        alphas_cumprod=exact.ABAR[1:5],
        prediction_type="sample",
        guidance_scale=scale,
        **options,
    )
    return d, calls


def test_classifier_free_guidance():
    null = {"label": torch.zeros(1, 1)}
    d, calls = guided(3.0, null_cond=null)
    cond = {"label": torch.tensor([[1.0], [2.0]])}
    x, t = torch.randn(2, 2), torch.ones(2)
    torch.testing.assert_close(d.predict(x, t, cond), 0.5 * x + 3 * cond["label"])
    assert calls == [4]
    result = fg.Unguided(d).sample(2, num_steps=4, progress=False, cond=cond)
    assert result.cost.denoiser_rows == 2 * 2 * 4
    plain, _ = guided(1.0, null_cond=null)
    same = fg.Unguided(plain).sample(
        2, num_steps=4, progress=False, cond={"label": 3 * cond["label"]}
    )
    torch.testing.assert_close(result.samples, same.samples)
    x_s = torch.zeros(2, 2)
    torch.testing.assert_close(
        d.log_prob(x, x_s, 0, 4, cond=cond),
        plain.log_prob(x, x_s, 0, 4, cond={"label": 3 * cond["label"]}),
    )


def svdd(value="posterior_mean", num_candidates=4, **options) -> fg.SVDD:
    reward = exact.linear_reward
    return fg.SVDD(exact.diffusion((3,)), reward, value, num_candidates=num_candidates, **options)


def samples(sampler, num_samples=24, num_steps=8, **options) -> torch.Tensor:
    return sampler.sample(num_samples, num_steps=num_steps, progress=False, **options).samples


@pytest.mark.parametrize("value", ["posterior_mean", "linear"])
def test_savings_and_splits_give_the_same_bits(value):
    value = value if value == "posterior_mean" else exact.LinearValue(exact.ddpm())
    whole = samples(svdd(value))
    for savings in ["none", *sorted(ALL)]:
        assert torch.equal(whole, samples(svdd(value), savings=savings)), savings
    for limits in ({"max_rows": 7}, {"fixed_rows": 5}, {"cache_bytes": 0}):
        assert torch.equal(whole, samples(svdd(value), **limits)), limits
    parts = [samples(svdd(value), n, first_chain=c) for c, n in ((0, 1), (1, 13), (14, 10))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, samples(svdd(value), seed=1))


def test_one_candidate_is_the_plain_chain():
    d = exact.diffusion((3,))
    plain = samples(fg.Unguided(d))
    assert torch.equal(plain, samples(svdd(num_candidates=1)))
    assert torch.equal(plain, samples(fg.BestOfN(d, exact.linear_reward, 1)))
    # a value that prefers nothing keeps candidate 0 under argmax
    assert torch.equal(plain, samples(svdd(lambda x, t: torch.zeros(len(x)), alpha=0)))


def test_rows_of_a_run():
    """1 + (T - 1) M denoiser rows a chain: candidates' outputs are carried, the last step varies
    no more."""
    result = svdd(num_candidates=4).sample(5, num_steps=8, progress=False)
    assert result.cost.denoiser_rows == 5 * (1 + 7 * 4)
    assert result.cost.reward_rows == 5 * (7 * 4 + 1)
    bound = svdd(num_candidates=4).plan(5, num_steps=8)
    assert bound.denoiser_rows == result.cost.denoiser_rows
    assert bound.reward_rows == result.cost.reward_rows
    torch.testing.assert_close(result.rewards.double(), exact.linear_reward(result.samples))


def test_a_state_that_is_not_finite_is_reported():
    def denoiser(x, t):
        return torch.where((t == 2)[:, None], torch.nan, x)

    d = fg.GaussianDiffusion(
        denoiser, (2,), alphas_cumprod=exact.ABAR[1:5], prediction_type="sample"
    )
    with pytest.raises(fg.FastguideError, match="step 1 for chain 0"):
        samples(fg.Unguided(d), 3, 4)


# -- errors --------------------------------------------------------------------------------------


def make(**options) -> fg.GaussianDiffusion:
    given = {"alphas_cumprod": [0.9, 0.5], **options}
    return fg.GaussianDiffusion(given.pop("denoiser", lambda x, t: x), (2,), **given)


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (lambda: make(denoiser=3), "denoiser must be callable, got int"),
        (lambda: fg.GaussianDiffusion(lambda x, t: x, (), alphas_cumprod=[0.5]), "shape must hold"),
        (lambda: fg.GaussianDiffusion(lambda x, t: x, 4, alphas_cumprod=[0.5]), "shape must hold"),
        (lambda: make(alphas_cumprod=[]), "alphas_cumprod must hold at least one"),
        (lambda: make(alphas_cumprod=[0.5, 0.9]), "entry 1 is 0.9 after 0.5"),
        (lambda: make(alphas_cumprod=[0.5, math.nan]), "must be finite"),
        (lambda: make(alphas_cumprod=[1.0, 0.5]), r"must lie in \[0, 1\)"),
        (lambda: make(alphas_cumprod=[0.5, -0.1]), r"must lie in \[0, 1\)"),
        (lambda: make(alphas_cumprod=[0.5, 0.0]), "use a model with"),
        (lambda: make(prediction_type="eps"), "prediction_type must be one of"),
        (lambda: make(variance="learned"), "variance must be one of"),
        (lambda: make(timestep_spacing="even"), "timestep_spacing must be one of"),
        (lambda: make(eta=1.5), r"eta must lie in \[0, 1\]"),
        (lambda: make(eta=0.5, variance="beta"), "eta=1; got eta=0.5"),
        (lambda: make(guidance_scale=2.0), "needs null_cond"),
        (lambda: make().steps(3), r"num_steps must lie in \[1, 2\]"),
        (lambda: make().log_prob(torch.zeros(1, 2), torch.zeros(1, 2), 2, 2), "step must lie in"),
        (lambda: make().log_prob(torch.zeros(1, 3), torch.zeros(1, 2), 0, 2), "x_t must be"),
        (lambda: make().log_prob(torch.zeros(1, 2), torch.zeros(1, 2).long(), 0, 2), "x_s must be"),
        (lambda: samples(fg.Unguided(make()), 2, 2, prompt=torch.zeros(2)), "prompt fixes tokens"),
        (
            lambda: samples(fg.Unguided(make(denoiser=lambda x, t: [0])), 2, 2),
            r"must return a tensor \[2, 2\], got list",
        ),
        (
            lambda: samples(fg.Unguided(make(denoiser=lambda x, t: torch.cat([x, x], 1))), 2, 2),
            "learned variance",
        ),
        (
            lambda: samples(fg.Unguided(make(denoiser=lambda x, t: x.long())), 2, 2),
            "floating-point tensor, got torch.int64",
        ),
    ],
)
def test_errors_name_the_fix(action, text):
    with pytest.raises(fg.FastguideError, match=text):
        action()


def test_posterior_samples_needs_a_law_of_x0():
    value = fg.values.PosteriorSamples(exact.linear_reward, alpha=0.5)
    with pytest.raises(fg.FastguideError, match="use value='posterior_mean'"):
        samples(svdd(value))


def test_a_checkpoint_of_another_table_is_refused(tmp_path):
    def sampler(**options):
        return fg.Unguided(exact.diffusion(**options))

    samples(sampler(), checkpoint=tmp_path)
    assert torch.equal(samples(sampler()), samples(sampler(), checkpoint=tmp_path))
    for options in ({"abar": exact.ABAR[:-1]}, {"eta": 0.5}, {"timestep_spacing": "leading"}):
        with pytest.raises(fg.FastguideError, match="it differs in diffusion"):
            samples(sampler(**options), checkpoint=tmp_path)
