"""TC-B: Gaussian chains, plain, shifted and chosen by SVDD, against their closed-form laws."""

from __future__ import annotations

import exact_gaussian as exact
import exact_mixture as mixture
import numpy as np
import pytest
import torch

import fastguide as fg
from fastguide.testing.statistics import ks_uniform_p

P_MIN, Z_MAX = 1e-6, 5  # with fixed seeds a pass or failure is forever; the bounds are for new ones
ETAS = [0, 0.1, 0.3, 0.5, 1]
SHORT = np.array([1.0, 0.9, 0.6, 0.3, 0.05])
NO_SHIFT = np.zeros(exact.STEPS + 1)


def run(sampler, num_samples: int, **options) -> torch.Tensor:
    return sampler.sample(num_samples, num_steps=exact.STEPS, progress=False, **options).samples


def wide(diffusion, seed: int = 0) -> torch.Tensor:
    """200,000 draws as 2,000 chains of 100 coordinates, which do not know of each other."""
    return run(fg.Unguided(diffusion), 2000, seed=seed)


def agrees(draws: torch.Tensor, mean: float, var: float) -> bool:
    return exact.ks_p(draws, mean, var) > P_MIN and moments_agree(draws, mean, var)


def moments_agree(draws: torch.Tensor, mean: float, var: float) -> bool:
    return max(map(abs, exact.z_scores(draws, mean, var))) < Z_MAX


# -- the closed forms themselves -----------------------------------------------------------------


def test_tables_agree_with_published_figures():
    ddpm, kernel = exact.ddpm(), exact.exact_kernel()
    np.testing.assert_allclose(exact.ABAR[[50, 25, 2]], [7.744766e-6, 0.069088983, 0.987897796])
    for t, due in (
        (50, [0.774595, 0.001006, 0.399998, 0.001781, 0.699997, 0.535298]),
        (25, [0.890531, 0.041467, 0.193354, 0.172513, 0.668259, 0.506448]),
        (2, [0.989310, 0.010986, 0.001673, 0.987210, 0.013147, 0.001666]),
    ):
        row = (ddpm.A, ddpm.b, ddpm.var, ddpm.slope, ddpm.offset, ddpm.spread)
        np.testing.assert_allclose([part[t] for part in row], due, atol=1e-6)
    np.testing.assert_allclose(ddpm.law(), [0.699997, 0.535301], atol=1e-6)
    np.testing.assert_allclose(kernel.law(), [0.699997, 0.64], atol=1e-6)
    np.testing.assert_allclose(exact.linear_target(ddpm), [1.984720, 0.535301, 3.22166], atol=1e-6)
    np.testing.assert_allclose(exact.linear_target(kernel), [2.235997, 0.64, 3.523192], atol=1e-6)
    due = [1.310057, 0.127095, -1.174811]
    np.testing.assert_allclose(exact.quadratic_target(ddpm), due, atol=1e-6)
    due = [1.334710, 0.132231, -1.185155]
    np.testing.assert_allclose(exact.quadratic_target(kernel), due, atol=1e-6)
    dps = ddpm.shifted_law(exact.dps_shifts(ddpm))
    np.testing.assert_allclose(dps, [1.891102, 0.535301], atol=1e-6)


@pytest.mark.parametrize("make", [exact.ddpm, exact.exact_kernel])
def test_optimal_kernels_return_the_target(make):
    chain = make()
    tilt = exact.SLOPE * chain.slope[-1] / exact.ALPHA
    law = chain.shifted_law(exact.optimal_shifts(chain), tilt)
    np.testing.assert_allclose(law, exact.linear_target(chain)[:2], rtol=1e-10)
    law = exact.quadratic_guided(chain).shifted_law(NO_SHIFT, exact.quadratic_prior(chain))
    np.testing.assert_allclose(law, exact.quadratic_target(chain)[:2], rtol=1e-10)
    greedy = exact.quadratic_guided(chain, exact=False)
    law = greedy.shifted_law(NO_SHIFT, exact.quadratic_prior(chain, exact=False))
    due = [1.460124, 0.088560] if make is exact.ddpm else [1.476910, 0.089440]
    np.testing.assert_allclose(law, due, atol=1e-6)


def test_values_satisfy_the_soft_bellman_equation():
    """exp(v_t / alpha) is the mean of exp(v_{t-1} / alpha) over the kernel, by quadrature."""
    xi = np.linspace(-10, 10, 2001)
    normal = np.exp(-(xi**2) / 2)
    for chain in (exact.ddpm(), exact.ddim(0.3)):
        for value in (exact.LinearValue(chain), exact.QuadraticValue(chain)):
            for t in (40, 10, 2):
                after = chain.A[t] * 0.4 + chain.b[t] + np.sqrt(chain.var[t]) * xi
                scores = value(torch.tensor(after)[:, None], torch.full((1,), t - 2)).numpy()
                mean = (normal * np.exp(scores / exact.ALPHA)).sum() / normal.sum()
                found = value(torch.tensor([[0.4]], dtype=torch.float64), torch.full((1,), t - 1))
                assert float(found[0]) == pytest.approx(exact.ALPHA * np.log(mean), abs=1e-10)


def test_moments_of_finite_choices_agree_with_published_figures():
    chain = exact.ddpm()
    np.testing.assert_allclose(exact.argmax_moments(2), [0.564190, 0.681690], atol=2e-6)
    np.testing.assert_allclose(exact.argmax_moments(10), [1.538753, 0.344344], atol=2e-6)
    for num, alpha, due in (
        (2, 0, [2.948350, 0.364911]),
        (10, 0, [6.832084, 0.184330]),
        (4, exact.ALPHA, [1.630946, 0.521290]),
        (10, exact.ALPHA, [1.839454, 0.527889]),
        (1000, exact.ALPHA, [1.983231, 0.535213]),
    ):
        np.testing.assert_allclose(exact.svdd_linear_law(chain, num, alpha), due, atol=1e-5)


# -- plain and shifted chains --------------------------------------------------------------------


@pytest.mark.parametrize("eta", ETAS)
def test_pretrained_law(eta):
    due = [0.588376, 0.587943, 0.584420, 0.577051, 0.535301][ETAS.index(eta)]
    mean, var = exact.ddim(eta).law()
    assert var == pytest.approx(due, abs=1e-6)
    assert agrees(wide(exact.diffusion((100,), eta=eta)), mean, var)


def test_pretrained_law_of_the_exact_kernel():
    draws = wide(exact.diffusion((100,), kind=exact.ExactKernel))
    assert agrees(draws, *exact.exact_kernel().law())
    assert not agrees(draws, *exact.ddpm().law())


TABLE = {  # eta: target mean; exact v without x_T; PM with x_T; PM without x_T
    0: (2.110609, 0.698506, 0.701785, 0.698506),
    0.1: (2.109645, 0.835994, 0.726997, 0.723883),
    0.3: (2.101675, 1.549683, 0.913963, 0.911913),
    0.5: (2.084530, 1.986829, 1.221478, 1.220615),
    1: (1.984720, 1.984712, 1.984720, 1.984712),
}


@pytest.mark.parametrize("eta", ETAS)
def test_shifted_kernels_over_eta(eta):
    chain = exact.ddim(eta)
    optimal, mean_value = exact.optimal_shifts(chain), exact.mean_value_shifts(chain)
    tilts = exact.SLOPE / exact.ALPHA * np.array([chain.slope[-1], exact.gains()[-1]])
    cases = [(optimal, tilts[0]), (optimal, 0), (mean_value, tilts[1]), (mean_value, 0)]
    for seed, ((shifts, tilt), due) in enumerate(zip(cases, TABLE[eta], strict=True)):
        mean, var = chain.shifted_law(shifts, tilt)
        assert mean == pytest.approx(due, abs=1e-6)
        d = exact.diffusion((100,), eta=eta, kind=exact.Shifted)
        d.shifts, d.prior_shift = shifts, tilt
        assert agrees(wide(d, seed), mean, var)


def test_posterior_sampling_guidance_misses_the_target():
    chain = exact.ddpm()
    d = exact.diffusion((100,), kind=exact.Shifted)
    d.shifts = exact.dps_shifts(chain)
    draws = wide(d)
    assert agrees(draws, *chain.shifted_law(d.shifts))
    assert not agrees(draws, *exact.linear_target(chain)[:2])


class Weighted(exact.Shifted):
    """Keeps the sum of log p - log q along each chain."""

    log_weights: torch.Tensor | float = 0.0

    def propose_shifted(self, batch, outputs, step, **draw):
        moved = super().propose_shifted(batch, outputs, step, **draw)
        if moved[2] is not None:
            self.log_weights = self.log_weights + moved[2][:, 0]
        return moved


def test_weights_undo_a_shift():
    chain, count = exact.ddpm(), 20_000
    d = exact.diffusion(kind=Weighted)
    d.shifts = 0.2 * exact.optimal_shifts(chain)
    x = run(fg.Unguided(d), count)[:, 0].double()
    mean, var = chain.law()
    assert not moments_agree(x, mean, var)

    def z(values: torch.Tensor, due: float) -> float:
        return float((values.mean() - due) / values.std() * count**0.5)

    weights = d.log_weights.exp()
    assert abs(z(weights, 1)) < Z_MAX
    assert abs(z(weights * (x - mean), 0)) < Z_MAX
    assert abs(z(weights * (x - mean).square(), var)) < Z_MAX
    # controls: one increment off by 2 %, and the quadratic term left away
    assert abs(z(weights * 1.02, 1)) > Z_MAX
    scaled = d.shifts[2:] / np.sqrt(chain.var[2:])
    assert abs(z(weights * float(np.exp((scaled**2).sum() / 2)), 1)) > Z_MAX


def test_best_of_n_law():
    """Particles draw their own x_T and their own noise: the maximum has the CDF F^N."""
    sampler = fg.BestOfN(exact.diffusion(eta=0.3), exact.linear_reward, 4)
    mean, var = exact.ddim(0.3).law()
    below = torch.special.ndtr((run(sampler, 4_000).double() - mean) / var**0.5)
    assert ks_uniform_p(below**4) > P_MIN
    assert ks_uniform_p(below**3) < P_MIN


# -- SVDD ----------------------------------------------------------------------------------------


def svdd(
    num: int, alpha: float, draws: int, value=None, select_initial: bool = False, **options
) -> torch.Tensor:
    sampler = fg.SVDD(
        exact.diffusion(**options),
        exact.linear_reward,
        value or exact.LinearValue(exact.ddim(options.get("eta", 1))),
        num_candidates=num,
        alpha=alpha,
        select_initial=select_initial,
    )
    return run(sampler, draws)


DRAWS = [8_000, pytest.param(200_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize(("num", "alpha"), [(2, 0), (10, 0), (4, exact.ALPHA), (10, exact.ALPHA)])
def test_svdd_with_the_exact_value(num, alpha, draws):
    found = svdd(num, alpha, draws)
    chain = exact.ddpm()
    assert moments_agree(found, *exact.svdd_linear_law(chain, num, alpha))
    assert not moments_agree(found, *exact.svdd_linear_law(chain, 3 * num, alpha))
    assert not moments_agree(found, *exact.linear_target(chain)[:2])


def test_svdd_on_the_exact_kernel_chooses_clean_candidates_by_their_reward():
    chain = exact.exact_kernel(SHORT)
    sampler = fg.SVDD(
        exact.diffusion(abar=SHORT, kind=exact.ExactKernel),
        exact.linear_reward,
        exact.LinearValue(chain),
        num_candidates=4,
        alpha=exact.ALPHA,
    )
    found = sampler.sample(8_000, num_steps=4, progress=False).samples
    assert moments_agree(found, *exact.svdd_linear_law(chain, 4))
    # control: as if the last step did not choose
    slopes = exact.SLOPE * chain.slope
    slopes[0] = 0
    assert not moments_agree(found, *exact.svdd_linear_law(chain, 4, slopes=slopes))


def test_svdd_with_posterior_means():
    """The denoiser's prediction of candidates: the exact value at eta = 1, not at eta < 1."""
    slopes = exact.SLOPE * exact.gains()
    found = svdd(4, exact.ALPHA, 4_000, "posterior_mean")
    assert moments_agree(found, *exact.svdd_linear_law(exact.ddpm(), 4))
    found = svdd(4, exact.ALPHA, 4_000, "posterior_mean", eta=0.3)
    chain = exact.ddim(0.3)
    assert moments_agree(found, *exact.svdd_linear_law(chain, 4, slopes=slopes))
    assert not moments_agree(found, *exact.svdd_linear_law(chain, 4))


@pytest.mark.parametrize("value", [None, "posterior_mean"])
def test_choosing_the_initial_state(value):
    """At eta = 0.3 it makes 0.7 standard deviations of the prior."""
    chain = exact.ddim(0.3)
    slopes = None if value is None else exact.SLOPE * exact.gains()
    law = exact.svdd_linear_law(chain, 4, slopes=slopes, select_initial=True)
    found = svdd(4, exact.ALPHA, 4_000, value, select_initial=True, eta=0.3)
    assert moments_agree(found, *law)
    if value is None:  # the slope of the posterior mean at T is too small to tell
        assert not moments_agree(found, *exact.svdd_linear_law(chain, 4))


def quadratic_law(chain: exact.Chain, num: int, score) -> np.ndarray:
    """Masses on the grid of x_1, of a chain from N(0, 1), whose last step is affine."""
    grid = mixture.GRID
    state = np.exp(-(grid**2) / 2)
    state /= state.sum()
    for t in range(4, 1, -1):
        z = (grid[:, None] - chain.A[t] * grid - chain.b[t]) / np.sqrt(chain.var[t])
        masses = np.exp(-(z**2) / 2)
        values = score(torch.tensor(grid)[:, None], torch.full((1,), t - 2)).numpy()
        state = mixture.chosen(masses / masses.sum(0), values, exact.ALPHA, num) @ state
    return state


@pytest.mark.parametrize("kind", ["exact", "posterior_mean"])
@pytest.mark.parametrize("num", [4, 10])
def test_svdd_with_a_quadratic_reward(num, kind):
    chain, d = exact.ddpm(SHORT), exact.diffusion(abar=SHORT)
    scores = {
        "exact": exact.QuadraticValue(chain),
        "posterior_mean": lambda x, t: exact.quadratic_reward(exact.prediction(SHORT)(x, t)),
    }
    value = scores["exact"] if kind == "exact" else kind
    sampler = fg.SVDD(d, exact.quadratic_reward, value, num_candidates=num, alpha=exact.ALPHA)
    draws = sampler.sample(20_000, num_steps=4, progress=False).samples[:, 0].double()
    before = (draws - chain.b[1]) / chain.A[1]
    for name, score in scores.items():
        law = quadratic_law(chain, num, score)
        assert (mixture.ks_p(before, law) > P_MIN) == (name == kind)


def test_backends_agree_on_the_law():
    with fg.use_backend("reference"):
        draws = run(fg.Unguided(exact.diffusion((100,))), 200)
    assert ks_uniform_p(torch.special.ndtr((draws.double() - 0.699997) / 0.535301**0.5)) > P_MIN
    assert torch.allclose(draws, wide(exact.diffusion((100,)))[:200], rtol=0, atol=1e-5)
