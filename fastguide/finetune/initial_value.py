"""The soft value of initial states, fitted to pairs of a state and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from fastguide.errors import ArgumentError, ShapeError
from fastguide.finetune.update import cosine

Tensor = torch.Tensor

ROWS = 256
"""Pairs of one update of a value network."""
EPOCHS = 30


class QuadraticValue(nn.Module):
    """c + sum of a x + b x^2 over the elements, in float64.

    Args:
        shape: of x.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(1 + 2 * math.prod(shape)).double())

    @staticmethod
    def features(x: Tensor) -> Tensor:
        """[B, 1 + 2 D] float64."""
        flat = x.flatten(1).double()
        return torch.cat([torch.ones_like(flat[:, :1]), flat, flat.square()], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B] float64."""
        return self.features(x) @ self.coefficients


def fit_value(
    value: nn.Module, x: Tensor, outcome: Tensor, alpha: float, estimate: str, learning_rate: float
) -> float:
    """Fit value(x), reward units, in place; its variance as a share of the outcomes'.

    Args:
        x: [P, *shape] initial states.   outcome: [P] float64.
        estimate: "controlled": outcomes are returns of the optimum, and the value their mean.
            "reference": they are rewards of the reference, the value is alpha log E exp(r / alpha);
            minimised is log mean exp((r - a) / alpha) + mean a / alpha, whose minimum is at it up
            to a constant (a network keeps it), and which no large reward makes overflow.
        learning_rate: of a network; `QuadraticValue` is solved instead.

    Raises:
        ArgumentError: too few pairs for the coefficients.   ShapeError: value(x) is not [P].
    """
    if isinstance(value, QuadraticValue):
        count = len(value.coefficients)
        if len(x) < 4 * count:
            raise ArgumentError(
                f"num_pairs={len(x)} are too few for the {count} coefficients of the quadratic "
                f"value; give value=, a network (x) -> [B], or num_pairs of at least {4 * count}"
            )
        # solvers for singular systems are the CPU's
        _solve(value, value.features(x).cpu(), outcome.cpu(), alpha, estimate)
    else:
        _descend(value, x, outcome, alpha, estimate, learning_rate)
    with torch.no_grad():
        found = torch.cat([value(rows).double() for rows in x.split(ROWS)])
        return float(found.var() / outcome.var().clamp_min(1e-30))


def _objective(found: Tensor, outcome: Tensor, alpha: float, estimate: str) -> Tensor:
    if estimate == "controlled":
        return 0.5 * (outcome - found).square().mean()
    surplus = (outcome - found) / alpha
    return surplus.logsumexp(dim=0) - math.log(len(found)) + found.mean() / alpha


@torch.no_grad()
def _solve(
    value: QuadraticValue, features: Tensor, outcome: Tensor, alpha: float, estimate: str
) -> None:
    coefficients = torch.linalg.lstsq(features, outcome[:, None]).solution[:, 0]
    if estimate == "reference":
        # Newton's method: the objective is convex, with the weights' covariance as its curvature
        coefficients = torch.zeros_like(coefficients)
        for _ in range(100):
            weight = ((outcome - features @ coefficients) / alpha).softmax(dim=0)
            mean = weight @ features
            slope = (features.mean(dim=0) - mean) / alpha
            spread = (features * weight[:, None]).T @ features - mean.outer(mean)
            step = alpha**2 * torch.linalg.lstsq(spread, slope[:, None], driver="gelsd").solution
            here = _objective(features @ coefficients, outcome, alpha, estimate)
            factor = 1.0
            while factor > 1e-6:
                tried = coefficients - factor * step[:, 0]
                if _objective(features @ tried, outcome, alpha, estimate) <= here:
                    break
                factor /= 2
            coefficients = coefficients - factor * step[:, 0]
            if float((factor * step).abs().max()) < 1e-9:
                break
        left = (outcome - features @ coefficients) / alpha
        coefficients[0] += alpha * (left.logsumexp(dim=0) - math.log(len(left)))
    value.coefficients.copy_(coefficients)


def _descend(
    value: nn.Module, x: Tensor, outcome: Tensor, alpha: float, estimate: str, learning_rate: float
) -> None:
    optimizer = torch.optim.AdamW(value.parameters(), lr=learning_rate)
    rate: Callable[[float], float] = cosine(learning_rate, 0.0)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        optimizer.param_groups[0]["lr"] = rate(epoch / EPOCHS)
        for rows in order.split(ROWS):
            found = value(x[rows])
            if found.shape != (len(rows),):
                raise ShapeError(f"value must return [{len(rows)}], got {list(found.shape)}")
            loss = _objective(found.double(), outcome[rows], alpha, estimate)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
