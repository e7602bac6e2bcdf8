"""TC-B: Gaussian chains whose guided laws are known in closed form.

Data N(.7, .8^2) in one dimension with the exact denoiser. Every chain is affine,
x_{t-1} = A_t x_t + b_t + sigma_t xi for t = T..1, so x_0 | x_t ~ N(Phi_t x_t + c_t, Sigma_t). Times
are t here; the model's index is t - 1. The reference instance has T = 50, x_T ~ N(0, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

import fastguide as fg
from fastguide.diffusion import Step

STEPS = 50
DATA_MEAN, DATA_SD = 0.7, 0.8
ALPHA = 0.5
SLOPE = 1.2  # of the linear reward g x
CURVATURE, CENTRE = 3.0, 1.5  # of the quadratic reward -(nu / 2) (x - y)^2
BETA = np.append(0.0, 20 * np.linspace(1e-4, 0.02, STEPS))
ABAR = np.cumprod(1 - BETA)  # [T + 1], ABAR[0] = 1

Array = np.ndarray


# -- the chains ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """An affine chain from x_T ~ N(0, prior_var); arrays are [T + 1], entry 0 of A, b, var unused.

    x_0 | x_t ~ N(slope[t] x_t + offset[t], spread[t]): Phi, c and Sigma.
    """

    A: Array
    b: Array
    var: Array
    prior_var: float = 1.0
    slope: Array = field(init=False)
    offset: Array = field(init=False)
    spread: Array = field(init=False)

    def __post_init__(self) -> None:
        slope, offset, spread = np.ones_like(self.A), np.zeros_like(self.A), np.zeros_like(self.A)
        for t in range(1, len(self.A)):
            slope[t] = slope[t - 1] * self.A[t]
            offset[t] = slope[t - 1] * self.b[t] + offset[t - 1]
            spread[t] = slope[t - 1] ** 2 * self.var[t] + spread[t - 1]
        for name, value in (("slope", slope), ("offset", offset), ("spread", spread)):
            object.__setattr__(self, name, value)

    def law(self) -> tuple[float, float]:
        """Mean and variance of x_0: p_pre."""
        return float(self.offset[-1]), float(self.slope[-1] ** 2 * self.prior_var + self.spread[-1])

    def shifted_law(self, shifts: Array, prior_shift: float = 0.0) -> tuple[float, float]:
        """p_pre with shifts[t] added to the mean of the kernel from t, and one to that of x_T."""
        mean, var = self.law()
        moved = float((self.slope[:-1] * shifts[1:]).sum() + self.slope[-1] * prior_shift)
        return mean + moved, var


def gains(abar: Array = ABAR) -> Array:
    """k_t of the exact denoiser x0_hat = m + k_t (x - sqrt(abar_t) m), [T + 1] with k_0 = 1."""
    return np.sqrt(abar) * DATA_SD**2 / (abar * DATA_SD**2 + 1 - abar)


def ddpm(abar: Array = ABAR) -> Chain:
    """Ancestral sampling with the posterior variance."""
    A, b, var = (np.zeros_like(abar) for _ in range(3))
    k = gains(abar)
    for t in range(1, len(abar)):
        beta = 1 - abar[t] / abar[t - 1]
        c0 = np.sqrt(abar[t - 1]) * beta / (1 - abar[t])
        c1 = np.sqrt(1 - beta) * (1 - abar[t - 1]) / (1 - abar[t])
        A[t] = c0 * k[t] + c1
        b[t] = c0 * DATA_MEAN * (1 - k[t] * np.sqrt(abar[t]))
        var[t] = beta * (1 - abar[t - 1]) / (1 - abar[t])
    return Chain(A, b, var)


def exact_kernel(abar: Array = ABAR) -> Chain:
    """The reverse kernel of the data itself: the posterior variance plus that of x_0 given x_t."""
    chain = ddpm(abar)
    var = chain.var.copy()
    for t in range(1, len(abar)):
        c0 = np.sqrt(abar[t - 1]) * (1 - abar[t] / abar[t - 1]) / (1 - abar[t])
        var[t] += c0**2 * DATA_SD**2 * (1 - abar[t]) / (abar[t] * DATA_SD**2 + 1 - abar[t])
    return Chain(chain.A, chain.b, var)


def ddim(eta: float) -> Chain:
    """DDIM; eta = 1 is `ddpm`."""
    A, b, var = np.zeros_like(ABAR), np.zeros_like(ABAR), eta**2 * ddpm().var
    k = gains()
    for t in range(1, STEPS + 1):
        after, before, noise = np.sqrt(ABAR[t - 1]), np.sqrt(ABAR[t]), np.sqrt(1 - ABAR[t])
        c2 = np.sqrt(max(1 - ABAR[t - 1] - var[t], 0.0))
        A[t] = after * k[t] + c2 * (1 - before * k[t]) / noise
        b[t] = DATA_MEAN * (1 - k[t] * before) * (after - c2 * before / noise)
    return Chain(A, b, var)


# -- the chains as fastguide has them ------------------------------------------------------------


def prediction(abar: Array = ABAR) -> Callable[..., torch.Tensor]:
    """The exact x0_hat(x, index), in float64."""
    a = torch.tensor(abar[1:])
    k = torch.tensor(gains(abar)[1:])

    def x0_hat(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        column = (-1, *[1] * (x.dim() - 1))
        centred = x.double() - a[t].sqrt().view(column) * DATA_MEAN
        return DATA_MEAN + k[t].view(column) * centred

    return x0_hat


def diffusion(
    shape: tuple[int, ...] = (1,), abar: Array = ABAR, kind: type | None = None, **options
) -> fg.GaussianDiffusion:
    """The chain `ddpm(abar)`, or with `eta` that of `ddim`."""
    given = {"alphas_cumprod": abar[1:], "prediction_type": "sample", **options}
    return (kind or fg.GaussianDiffusion)(prediction(abar), shape, **given)


class ExactKernel(fg.GaussianDiffusion):
    """The chain `exact_kernel`: wider steps, the last one included."""

    def steps(self, num_steps: int) -> list[Step]:
        deviations = np.sqrt(exact_kernel(np.append(1.0, self.alphas_cumprod)).var)
        return [
            replace(step, varies=True, params=(*step.params[:2], float(deviations[num_steps - i])))
            for i, step in enumerate(super().steps(num_steps))
        ]


class Shifted(fg.GaussianDiffusion):
    """A chain whose kernels from t, and x_T, have a constant added to their means."""

    shifts: Array = np.zeros(STEPS + 1)
    prior_shift = 0.0

    def start(self, chains, prompt, seed, candidates=None):
        batch = super().start(chains, prompt, seed, candidates)
        batch.x += self.prior_shift
        return batch

    def propose_shifted(self, batch, outputs, step, *, shift, **draw):
        by = float(self.shifts[int(step.time) + 1])
        shift = torch.full_like(batch.x, by) if step.varies else None
        return super().propose_shifted(batch, outputs, step, shift=shift, **draw)


def linear_reward(x: torch.Tensor) -> torch.Tensor:
    """g x of the first coordinate."""
    return SLOPE * x[:, 0].double()


def quadratic_reward(x: torch.Tensor) -> torch.Tensor:
    """-(nu / 2) (x - y)^2 of the first coordinate."""
    return -(CURVATURE / 2) * (x[:, 0].double() - CENTRE).square()


# -- values and targets --------------------------------------------------------------------------


class LinearValue:
    """The exact soft value of the linear reward: callable(x [B, 1], index [B]) -> [B] float64."""

    def __init__(self, chain: Chain, alpha: float = ALPHA) -> None:
        self._chain, self._alpha = chain, alpha

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        chain, at = self._chain, int(t[0]) + 1
        constant = SLOPE**2 * chain.spread[at] / (2 * self._alpha)
        return SLOPE * (chain.slope[at] * x[:, 0].double() + chain.offset[at]) + constant


class QuadraticValue:
    """The exact soft value of the quadratic reward: callable(x [B, 1], index [B]) -> [B]."""

    def __init__(self, chain: Chain, alpha: float = ALPHA) -> None:
        self._chain, self._alpha = chain, alpha

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        chain, at = self._chain, int(t[0]) + 1
        widened = 1 + CURVATURE * chain.spread[at] / self._alpha
        miss = chain.slope[at] * x[:, 0].double() + chain.offset[at] - CENTRE
        return -(self._alpha / 2) * np.log(widened) - (CURVATURE / 2) * miss.square() / widened


def linear_target(chain: Chain, alpha: float = ALPHA) -> tuple[float, float, float]:
    """Mean, variance and log Z of p_pre exp(g x / alpha)."""
    mean, var = chain.law()
    log_z = SLOPE * mean / alpha + SLOPE**2 * var / (2 * alpha**2)
    return mean + SLOPE * var / alpha, var, log_z


def quadratic_target(chain: Chain, alpha: float = ALPHA) -> tuple[float, float, float]:
    """Mean, variance and log Z of p_pre exp(-(nu / 2 alpha) (x - y)^2)."""
    mean, var = chain.law()
    widened = 1 + CURVATURE * var / alpha
    log_z = -0.5 * np.log(widened) - CURVATURE / (2 * alpha) * (mean - CENTRE) ** 2 / widened
    precision = 1 / var + CURVATURE / alpha
    return (mean / var + CURVATURE * CENTRE / alpha) / precision, 1 / precision, float(log_z)


def optimal_shifts(chain: Chain, alpha: float = ALPHA) -> Array:
    """Mean shifts [T + 1] of the optimal kernels for the linear reward; of x_T: g Phi_T / alpha."""
    return np.append(0.0, chain.var[1:] * SLOPE * chain.slope[:-1] / alpha)


def mean_value_shifts(chain: Chain, alpha: float = ALPHA) -> Array:
    """The same with the value g x0_hat(x), whose slope at t is g k_t; of x_T: g k_T / alpha."""
    return np.append(0.0, chain.var[1:] * SLOPE * gains()[:-1] / alpha)


def dps_shifts(chain: Chain, alpha: float = ALPHA) -> Array:
    """The same with the gradient of g x0_hat taken at the state before the step."""
    return np.append(0.0, chain.var[1:] * SLOPE * gains()[1:] / alpha)


def quadratic_guided(chain: Chain, alpha: float = ALPHA, *, exact: bool = True) -> Chain:
    """The chain of kernels weighted by exp(v / alpha) for the quadratic reward, M to infinity.

    exact=False: v is E[r | x] instead, or r of the conditional mean. x_T is weighted too; the
    result's law is taken with a prior shift of `quadratic_prior`.
    """
    kappa = CURVATURE / (alpha + CURVATURE * chain.spread * exact)
    A, b, var = chain.A.copy(), chain.b.copy(), chain.var.copy()
    for t in range(1, len(A)):
        if var[t] == 0:
            continue
        pull = kappa[t - 1] * chain.slope[t - 1]
        precision = 1 / var[t] + pull * chain.slope[t - 1]
        A[t] = chain.A[t] / var[t] / precision
        b[t] = (chain.b[t] / var[t] + pull * (CENTRE - chain.offset[t - 1])) / precision
        var[t] = 1 / precision
    last = 1 + kappa[-1] * chain.slope[-1] ** 2
    return Chain(A, b, var, prior_var=1 / last)


def quadratic_prior(chain: Chain, alpha: float = ALPHA, *, exact: bool = True) -> float:
    """Mean of the weighted x_T that goes with `quadratic_guided`."""
    kappa = CURVATURE / (alpha + CURVATURE * chain.spread[-1] * exact)
    pull = kappa * chain.slope[-1]
    return float(pull * (CENTRE - chain.offset[-1]) / (1 + pull * chain.slope[-1]))


# -- SVDD at finite M ----------------------------------------------------------------------------

_XI = np.linspace(-9, 9, 601)
_NORMAL = np.exp(-(_XI**2) / 2) / np.sqrt(2 * np.pi)
_U = np.linspace(-35, 25, 601)


def _moments(density: Array) -> tuple[float, float]:
    density = density / density.sum()
    mean = density @ _XI
    return float(mean), float(density @ (_XI - mean) ** 2)


def softmax_moments(theta: float, num: int) -> tuple[float, float]:
    """Mean and variance of one of `num` normals chosen with probability ~ exp(theta xi)."""
    z = np.exp(_U)[:, None]
    decay = np.exp(-z * np.exp(theta * _XI))
    phi = decay @ _NORMAL * (_XI[1] - _XI[0])
    chosen = (decay * (phi ** (num - 1))[:, None] * z).sum(0) * np.exp(theta * _XI)
    return _moments(_NORMAL * chosen)


def argmax_moments(num: int) -> tuple[float, float]:
    """Mean and variance of the largest of `num` normals."""
    below = torch.special.ndtr(torch.tensor(_XI)).numpy()
    return _moments(_NORMAL * below ** (num - 1))


def svdd_linear_law(
    chain: Chain,
    num: int,
    alpha: float = ALPHA,
    slopes: Array | None = None,
    select_initial: bool = False,
) -> tuple[float, float]:
    """Mean and variance of SVDD's output for a value linear in x.

    slopes: [T + 1] of the value at each t, default those of the exact value; alpha = 0: argmax.
    The chosen noise does not depend on x, so that the moments of the steps add up.
    """
    mean, var = chain.law()[0], 0.0
    slopes = SLOPE * chain.slope if slopes is None else slopes
    # what each draw adds to x_0 per unit of its noise, and where its candidates stand
    scales = [*(np.sqrt(chain.var[1:]) * chain.slope[:-1]), chain.slope[-1]]
    deviations = [*np.sqrt(chain.var[1:]), 1.0]
    for t, (scale, deviation) in enumerate(zip(scales, deviations, strict=True)):
        if deviation == 0:
            continue
        e, v = 0.0, 1.0
        if t < len(chain.A) - 1 or select_initial:
            e, v = argmax_moments(num)
            if alpha > 0:
                e, v = softmax_moments(slopes[t] * deviation / alpha, num)
        mean += float(scale * e)
        var += float(scale**2 * v)
    return mean, var


# -- tests on draws ------------------------------------------------------------------------------


def ks_p(draws: torch.Tensor, mean: float, var: float) -> float:
    """P-value of a Kolmogorov-Smirnov test against N(mean, var)."""
    from fastguide.testing.statistics import ks_uniform_p

    return ks_uniform_p(torch.special.ndtr((draws.double().flatten() - mean) / var**0.5))


def z_scores(draws: torch.Tensor, mean: float, var: float) -> tuple[float, float]:
    """Standard errors by which the sample mean and variance miss what is due."""
    x = draws.double().flatten()
    gap = x - mean
    second = gap.square()
    root = len(x) ** 0.5
    return (
        float(gap.mean() / x.std() * root),
        float((second.mean() - var) / second.std() * root),
    )
