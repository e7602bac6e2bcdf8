"""Values with their gradient in the state: one forward and one backward pass of each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Diffusion
from fastguide.errors import GradientError
from fastguide.evaluation.calls import Limits, call_in_chunks
from fastguide.evaluation.cost import Cost

Tensor = torch.Tensor

ALTERNATIVE = "SVDD, SMC, NestedSMC and FKSteering need no gradient"


def differentiate(
    diffusion: Diffusion,
    value: Callable[[Tensor, Tensor, dict[str, Tensor]], tuple[Tensor, Tensor | None]],
    x: Tensor,
    time: float,
    cond: dict[str, Tensor],
    *,
    limits: Limits,
    cost: Cost,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values of states x [B, ...] at one time, and their gradients.

    Args:
        value: (relaxed states, t [B], cond rows) -> values [B], and the denoiser's outputs [B, ...]
            where it ran. Differentiable in the relaxed states, row by row.
        cond: conditioning rows [B, ...] by name.

    Returns:
        values [B] float64; gradient of each value in its own relaxed state; outputs or None.

    Raises:
        GradientError: the value does not depend on the state in a differentiable way.
    """
    parts: list[tuple[Tensor, ...]] = []

    def model(index: Tensor) -> Tensor:
        with torch.enable_grad():
            relaxed = diffusion.relax(x[index]).requires_grad_()
            t = torch.full((len(index),), time, device=x.device)
            rows = {name: each[index] for name, each in cond.items()}
            values, outputs = value(relaxed, t, rows)
            if not values.requires_grad:
                raise GradientError(
                    "the value has no gradient in the state: it must be computed by "
                    f"differentiable torch operations throughout; {ALTERNATIVE}"
                )
            # rows are independent, so the gradient of the sum holds each row's own
            (gradient,) = torch.autograd.grad(values.sum(), relaxed)
        parts.append((gradient, *(() if outputs is None else (outputs.detach(),))))
        return values.detach().double()

    values = call_in_chunks(model, len(x), limits, cost, name="denoiser", device=x.device)
    joined = [torch.cat(part)[: len(x)] for part in zip(*parts, strict=True)]
    return values, joined[0], joined[1] if len(joined) > 1 else None


def posterior_mean_value(diffusion: Diffusion, reward: Any) -> Any:
    """r(x0_hat(x)) for `differentiate`, through the denoiser."""
    score = diffusion.relaxed_reward(reward)

    def value(relaxed: Tensor, t: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        outputs, x0 = diffusion.predict_relaxed(relaxed, t, cond)
        return score(x0), outputs

    return value


def state_value(diffusion: Diffusion, function: Any) -> Any:
    """value(x, t) for `differentiate`: a network that knows noisy states."""
    score = diffusion.relaxed_value(function)

    def value(relaxed: Tensor, t: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        return score(relaxed, t), None

    return value
