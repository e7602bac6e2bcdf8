"""Move-chance schedules a(t) of masked (absorbing) diffusion.

a(t) is the probability that a token is masked at time t in [0, 1]: non-decreasing, a(0) about 0.
Only a(t) enters the sampler: one step t -> t' reveals a masked token with probability
(a(t) - a(t')) / a(t), independently per site.

Source: Sahoo et al. 2024 (MDLM, arXiv 2406.07524), section 3 and appendix; Lou et al. 2024 (SEDD,
arXiv 2310.16834) for the geometric schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fastguide.errors import ArgumentError

Schedule = Callable[[torch.Tensor], torch.Tensor]

T_MIN = 1e-5
"""The last time of the grid: x is still masked there with probability a(T_MIN)."""

_GEOMETRIC_MIN, _GEOMETRIC_MAX = 1e-5, 20.0


def _loglinear(t: torch.Tensor) -> torch.Tensor:
    return (1 - 1e-3) * t


def _linear(t: torch.Tensor) -> torch.Tensor:
    return t * 1.0


def _cosine(t: torch.Tensor) -> torch.Tensor:
    return 1 - torch.cos(t * (math.pi / 2))


def _geometric(t: torch.Tensor) -> torch.Tensor:
    return -torch.expm1(-(_GEOMETRIC_MIN ** (1 - t)) * _GEOMETRIC_MAX**t)


SCHEDULES: dict[str, Schedule] = {
    "loglinear": _loglinear,
    "linear": _linear,
    "cosine": _cosine,
    "geometric": _geometric,
}


def resolve_schedule(schedule: str | Schedule) -> Schedule:
    """Return a(t) for a name or a callable, checked on a grid.

    Args:
        schedule: a name in SCHEDULES, or a callable that maps a float64 tensor of times in [0, 1]
            to move chances of the same shape, differentiable by autograd.
    Raises:
        ArgumentError: unknown name; or a callable that leaves [0, 1] or decreases.
    """
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ArgumentError(
                f"schedule must be one of {sorted(SCHEDULES)} or a callable a(t), got {schedule!r}"
            )
        return SCHEDULES[schedule]
    if not callable(schedule):
        raise ArgumentError(
            f"schedule must be a name or a callable a(t), got {type(schedule).__name__}"
        )
    grid = torch.linspace(T_MIN, 1, 257, dtype=torch.float64)
    chance = schedule(grid)
    if not isinstance(chance, torch.Tensor) or chance.shape != grid.shape:
        raise ArgumentError(
            "schedule must map a tensor of times [B] to move chances [B]; "
            f"for a [257] tensor it returned {getattr(chance, 'shape', type(chance).__name__)}"
        )
    if not bool(((chance >= 0) & (chance <= 1)).all()) or bool((chance.diff() < 0).any()):
        raise ArgumentError(
            "schedule must be non-decreasing with values in [0, 1] (the chance that a token is "
            f"masked at time t), got values from {chance.min():.6g} to {chance.max():.6g}"
        )
    return schedule


def time_grid(num_steps: int) -> torch.Tensor:
    """Times linspace(1, 1e-5, num_steps + 1) as [num_steps + 1] float64."""
    if num_steps < 1:
        raise ArgumentError(f"num_steps must be at least 1, got {num_steps}")
    return torch.linspace(1, T_MIN, num_steps + 1, dtype=torch.float64)


def reveal_probabilities(schedule: Schedule, grid: torch.Tensor) -> list[float]:
    """rho_i = (a(t_i) - a(t_{i+1})) / a(t_i) for each transition of the grid, as Python floats."""
    chance = schedule(grid)
    before, after = chance[:-1], chance[1:]
    rho = torch.where(before > 0, (before - after) / before.clamp_min(1e-300), 0.0)
    return [float(value) for value in rho.clamp(0, 1)]


def hazard(schedule: Schedule, t: torch.Tensor) -> torch.Tensor:
    """a'(t)/a(t), the weight of the continuous-time bound, [B] float64 -> [B] float64."""
    with torch.enable_grad():
        time = t.detach().to(torch.float64).requires_grad_(True)
        chance = schedule(time)
        (slope,) = torch.autograd.grad(chance.sum(), time)
    return slope / chance.detach()


def invert(schedule: Schedule, chance: torch.Tensor) -> torch.Tensor:
    """The time t with a(t) = chance, by bisection on [0, 1]; [B] float64 -> [B] float64.

    Chances above a(1) give t = 1.
    """
    low = torch.zeros_like(chance, dtype=torch.float64)
    high = torch.ones_like(low)
    for _ in range(60):
        middle = (low + high) / 2
        below = schedule(middle) < chance
        low = torch.where(below, middle, low)
        high = torch.where(below, high, middle)
    return high
