"""TC-C: a mixture of two Gaussians with its exact reverse kernel, and laws by quadrature.

x_t | x_0 ~ N(sqrt(abar) x_0, 1 - abar) at T = 4 levels. The kernel draws a component by its
responsibility and then a Gaussian, so p_pre is the data law for any T. Times are t = T..0, and x_T
is drawn from the mixture p_T.
"""

from __future__ import annotations

import numpy as np
import torch

from fastguide import ops
from fastguide.diffusion import Batch, Step
from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.rng import Purpose

WEIGHTS = np.array([0.35, 0.65])
MEANS = np.array([-1.2, 0.9])
SDS = np.array([0.3, 0.45])
ABAR = np.array([1.0, 0.9, 0.6, 0.3, 0.05])
STEPS = len(ABAR) - 1
# Slope, or curvature and centre, and alpha of each reward.
SLOPE, LINEAR_ALPHA = 0.8, 0.6
CURVATURE, CENTRE, QUADRATIC_ALPHA = 2.0, 0.2, 0.5
ALPHAS = {"linear": LINEAR_ALPHA, "quadratic": QUADRATIC_ALPHA}

Array = np.ndarray


# -- the model -----------------------------------------------------------------------------------


def components(x: Array, abar: float) -> tuple[Array, Array, Array]:
    """Of x_0 | x_t = x [B]: weights [2, B], means [2, B] and variances [2, 1] of its components."""
    spread = abar * SDS**2 + 1 - abar
    gap = x[None] - np.sqrt(abar) * MEANS[:, None]
    log_w = np.log(WEIGHTS / np.sqrt(spread))[:, None] - gap**2 / (2 * spread[:, None])
    weights = np.exp(log_w - log_w.max(0))
    means = MEANS[:, None] + (np.sqrt(abar) * SDS**2 / spread)[:, None] * gap
    return weights / weights.sum(0), means, (SDS**2 * (1 - abar) / spread)[:, None]


def predicted(x: Array, abar: float) -> Array:
    """The denoiser x0_hat(x), [B]."""
    weights, means, _ = components(x, abar)
    return (weights * means).sum(0)


def kernel_of(x: Array, t: int) -> tuple[Array, Array, Array]:
    """Of x_{t-1} | x_t = x [B]: weights [2, B], means [2, B] and deviations [2, 1]."""
    after, before = ABAR[t - 1], ABAR[t]
    beta = 1 - before / after
    c0 = np.sqrt(after) * beta / (1 - before)
    c1 = np.sqrt(1 - beta) * (1 - after) / (1 - before)
    weights, means, variances = components(x, before)
    posterior = beta * (1 - after) / (1 - before)
    return weights, c0 * means + c1 * x[None], np.sqrt(posterior + c0**2 * variances)


def prior() -> tuple[Array, Array, Array]:
    """Of x_T: weights [2, 1], means [2, 1] and deviations [2, 1]."""
    deviations = np.sqrt(ABAR[-1] * SDS**2 + 1 - ABAR[-1])
    return WEIGHTS[:, None], np.sqrt(ABAR[-1]) * MEANS[:, None], deviations[:, None]


class MixtureDiffusion(GaussianChain):
    """The exact chain, of states [R, 1]."""

    def __init__(self) -> None:
        super().__init__(
            _denoiser, (1,), prior_deviation=1.0, null_cond=None, guidance_scale=1.0, device=None
        )

    def steps(self, num_steps: int) -> list[Step]:
        """The T transitions; `num_steps` must be T."""
        assert num_steps == STEPS
        times = range(STEPS, 0, -1)
        return [Step(i, t, t - 1, t == 1, varies=True, params=()) for i, t in enumerate(times)]

    def _clean(self, x, output, t):
        return output

    def start(self, chains, prompt, seed, candidates=None):
        """Draws of p_T."""
        size = {"first_candidate": candidates, "num_candidates": 1}
        table = prior()
        return Batch(_draw(table, (seed, chains, 0), Purpose.PRIOR, **size).view(-1, 1), None)

    def propose_shifted(self, batch, outputs, step, *, shift, seed, chains, weigh=True, **size):
        """Draws of the kernel."""
        assert shift is None
        table = kernel_of(batch.x[:, 0].double().numpy(), int(step.time))
        candidates = _draw(table, (seed, chains, step.index), Purpose.NOISE, **size)
        changed = torch.ones(candidates.shape, dtype=torch.int32)
        return Batch(candidates.view(-1, 1), None), changed, None


def _draw(table: tuple[Array, ...], key: tuple, purpose: Purpose, **size) -> torch.Tensor:
    """[R, K] float32: a component by its weight, then a Gaussian."""
    weights, means, deviations = (
        torch.tensor(np.broadcast_to(part, (2, len(key[1]))))[..., None] for part in table
    )
    second = ops.philox_uniform(*key, Purpose.TOKEN, num_elements=1, **size)[..., 0] >= weights[0]
    noise = ops.philox_normal(*key, purpose, num_elements=1, dtype=torch.float64, **size)[..., 0]
    mean = torch.where(second, means[1], means[0])
    return (mean + torch.where(second, deviations[1], deviations[0]) * noise).float()


def _denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tensor(predicted(x[:, 0].double().numpy(), ABAR[int(t[0])]))[:, None]


# -- rewards, values, targets --------------------------------------------------------------------


def reward_of(name: str, x: Array) -> Array:
    """The linear or the quadratic reward of clean x [B]."""
    return SLOPE * x if name == "linear" else -(CURVATURE / 2) * (x - CENTRE) ** 2


def value_of(reward: str, kind: str, x: Array, t: int) -> Array:
    """Value [B] at x [B] and time t: kind "exact", "mean" (E[r | x]) or "pm" (r of x0_hat)."""
    if t == 0:
        return reward_of(reward, x)
    if kind == "pm":
        return reward_of(reward, predicted(x, ABAR[t]))
    weights, means, variances = components(x, ABAR[t])
    if kind == "mean":
        extra = 0.0 if reward == "linear" else -(CURVATURE / 2) * variances
        return (weights * (reward_of(reward, means) + extra)).sum(0)
    alpha = ALPHAS[reward]
    if reward == "linear":
        log_factor = SLOPE * means / alpha + SLOPE**2 * variances / (2 * alpha**2)
    else:
        widened = 1 + CURVATURE * variances / alpha
        miss = CURVATURE / (2 * alpha) * (means - CENTRE) ** 2
        log_factor = -0.5 * np.log(widened) - miss / widened
    top = log_factor.max(0)
    return alpha * (top + np.log((weights * np.exp(log_factor - top)).sum(0)))


def reward(name: str):
    """The reward as a sampler takes it."""
    return lambda x: torch.tensor(reward_of(name, x[:, 0].double().numpy()))


def value(reward: str, kind: str):
    """The value as a sampler takes it: "pm" is the package's own."""
    if kind == "pm":
        return "posterior_mean"
    return lambda x, t: torch.tensor(value_of(reward, kind, x[:, 0].double().numpy(), int(t[0])))


def target(reward: str) -> tuple[Array, Array, Array, float]:
    """Weights, means and variances of the components of p_alpha, and log Z."""
    alpha = ALPHAS[reward]
    if reward == "linear":
        log_w = SLOPE * MEANS / alpha + (SLOPE * SDS / alpha) ** 2 / 2
        means, variances = MEANS + SLOPE * SDS**2 / alpha, SDS**2
    else:
        widened = 1 + CURVATURE * SDS**2 / alpha
        miss = CURVATURE / (2 * alpha) * (MEANS - CENTRE) ** 2
        log_w = -0.5 * np.log(widened) - miss / widened
        precision = 1 / SDS**2 + CURVATURE / alpha
        means = (MEANS / SDS**2 + CURVATURE * CENTRE / alpha) / precision
        variances = 1 / precision
    weights = WEIGHTS * np.exp(log_w)
    return weights / weights.sum(), means, variances, float(np.log(weights.sum()))


# -- laws by quadrature --------------------------------------------------------------------------

GRID = np.linspace(-7, 7, 701)
_WIDTH = GRID[1] - GRID[0]
_U = np.linspace(-25, 55, 321)  # log z: the integrands are smooth there, so sums converge fast


def _density(table: tuple[Array, Array, Array]) -> Array:
    """Masses [grid, B] of a mixture, normalised on the grid."""
    weights, means, deviations = (part[:, None] for part in table)
    z = (GRID[None, :, None] - means) / deviations
    mass = (weights * np.exp(-0.5 * z**2) / deviations).sum(0)
    return mass / mass.sum(0)


def chosen(masses: Array, values: Array, alpha: float, num: int) -> Array:
    """Law [grid, B] of one of `num` draws from `masses`, chosen by exp(value / alpha)."""
    w = np.exp((values - values.max()) / alpha)
    z = np.exp(_U)[:, None]
    decay = np.exp(-z * w[None])
    phi = decay @ masses
    law = masses * w[:, None] * (decay.T @ (z * phi ** (num - 1)))
    return law / law.sum(0)


def output_law(reward: str, kind: str, num: int) -> Array:
    """Masses on the grid of SVDD's output, with `num` candidates also for x_T."""
    laws = [_density(prior()), *(_density(kernel_of(GRID, t)) for t in range(STEPS, 0, -1))]
    state = np.ones(1)
    for t, masses in zip(range(STEPS, -1, -1), laws, strict=True):
        values = value_of(reward, kind, GRID, t)
        state = chosen(masses, values, ALPHAS[reward], num) @ state
    return state


def summary(masses: Array) -> tuple[float, float, float]:
    """Mean, variance and P(x < 0) of masses on the grid."""
    mean = masses @ GRID
    below = np.interp(0.0, GRID, np.cumsum(masses) - masses / 2)
    return float(mean), float(masses @ (GRID - mean) ** 2), float(below)


def ks_p(draws: torch.Tensor, masses: Array) -> float:
    """P-value of a Kolmogorov-Smirnov test against masses on the grid."""
    from fastguide.testing.statistics import ks_uniform_p

    x = draws.double().flatten().numpy()
    return ks_uniform_p(torch.tensor(np.interp(x, GRID, np.cumsum(masses) - masses / 2)))
