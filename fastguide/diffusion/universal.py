"""Gaussian reverse steps between two noise levels, each as three numbers.

A level of noise is x = alpha x0 + sigma noise. Whatever a model returns is first turned into its
prediction x0_hat of the clean sample, so that one step covers every family (variance preserving,
variance exploding, flow) and every sampler of first order: DDPM, DDIM, Euler, Euler ancestral,
the flow ODE and its stochastic forms differ in the standard deviation s alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from fastguide.errors import ArgumentError

SPACINGS = ("trailing", "leading", "linspace")


@dataclass(frozen=True)
class Level:
    """A noise level: x = alpha x0 + sigma noise, at a model's own time."""

    time: float
    alpha: float
    sigma: float


class Kernel(NamedTuple):
    """One reverse step: x' = a x + b x0_hat + s z, with z standard normal."""

    a: float
    b: float
    s: float


def universal_step(before: Level, after: Level, s: float) -> Kernel:
    """x' = alpha' x0_hat + sqrt(sigma'^2 - s^2) noise_hat + s z.

    noise_hat = (x - alpha x0_hat) / sigma is what is left of x, so x' has noise level sigma' for
    every s in [0, sigma']. Source: Song et al. 2021 (DDIM, arXiv 2010.02502), eq. 12, with any
    alpha and sigma.
    """
    kept = math.sqrt(max(after.sigma**2 - s**2, 0.0)) / before.sigma
    return Kernel(kept, after.alpha - kept * before.alpha, s)


def forward_deviation(before: Level, after: Level) -> float:
    """Standard deviation of the noise that leads forward, from `after` to the noisier `before`."""
    ratio = before.alpha / after.alpha
    return math.sqrt(max(before.sigma**2 - (ratio * after.sigma) ** 2, 0.0))


def ancestral_deviation(before: Level, after: Level) -> float:
    """Standard deviation of q(x' | x, x0), the s of ancestral sampling.

    DDPM's posterior variance (Ho et al. 2020, arXiv 2006.11239, eq. 7) and, at alpha = 1, the
    sigma_up of Karras et al. 2022 (arXiv 2206.00364) as ancestral samplers use it.
    """
    return after.sigma / before.sigma * forward_deviation(before, after)


def spaced(size: int, num_steps: int, spacing: str, name: str) -> list[int]:
    """The indices, descending, of `num_steps` out of `size` trained levels; size visits them all.

    trailing: from the last one down, evenly.   leading: multiples of size // num_steps, from 0 up.
    linspace: evenly, with both ends. Source: Lin et al. 2024 (arXiv 2305.08891), table 2.

    Raises:
        ArgumentError: more steps than levels.
    """
    if num_steps < 1 or num_steps > size:
        raise ArgumentError(
            f"num_steps must lie in [1, {size}], the number of {name}, got {num_steps}"
        )
    steps = range(num_steps)
    if spacing == "leading":
        return [(num_steps - 1 - i) * (size // num_steps) for i in steps]
    if spacing == "linspace" and num_steps > 1:
        return [round(Fraction((size - 1) * (num_steps - 1 - i), num_steps - 1)) for i in steps]
    return [round(Fraction(size * (num_steps - i), num_steps)) - 1 for i in steps]


def check_eta(eta: float) -> float:
    """Return eta as a float in [0, 1], or raise ArgumentError."""
    if not 0 <= eta <= 1:
        raise ArgumentError(
            f"eta must lie in [0, 1] (0: no noise is added, 1: the most that fits), got {eta}"
        )
    return float(eta)


def check_table(values: Iterable[Any], name: str) -> list[float]:
    """Return a table of levels as floats, or raise ArgumentError unless it strictly decreases."""
    table = [float(value) for value in values]
    if not table:
        raise ArgumentError(f"{name} must hold at least one level, got none")
    if not all(math.isfinite(value) for value in table):
        raise ArgumentError(f"{name} must be finite, got {table}")
    for i in range(len(table) - 1):
        if not table[i + 1] < table[i]:
            raise ArgumentError(
                f"{name} must decrease strictly, but entry {i + 1} is {table[i + 1]:.9g} after "
                f"{table[i]:.9g}"
            )
    return table
