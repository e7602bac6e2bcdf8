"""PPO terms of one Gaussian reverse step: log-probability, clipped surrogate, KL to a reference."""

from __future__ import annotations

import math

import torch

from fastguide.reference.faults import FaultCode, require
from fastguide.reference.ppo_terms import Terms, per_row, ppo_terms


def gaussian_ppo(
    output: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    *,
    a: float | torch.Tensor,
    b: float | torch.Tensor,
    s: float | torch.Tensor,
    clip: tuple[float, float],
    output_ref: torch.Tensor | None = None,
) -> Terms:
    """Terms of x_next ~ N(a x + b output, s^2), summed over the dimensions in float64.

    Args:
        output, x, x_next, output_ref: [N, ...] floating point; output_ref None: kl is 0.
        old_log_prob, advantage: [N].   a, b, s: numbers or [N], s > 0.
        clip: least and greatest ratio.

    Returns:
        surrogate, kl, log_prob, ratio [N] float64, clipped [N] bool; kl is
        KL(N(a x + b output, s^2) || N(a x + b output_ref, s^2)) in nats.

    Raises:
        Fault: SCALAR, an s that is not positive.
    """
    dims = output.dim()
    deviations = torch.as_tensor(s).flatten()
    require(deviations > 0, FaultCode.SCALAR)
    each = {"a": a, "b": b, "s": s}
    a, b, s = (per_row(value, output, dims) for value in each.values())
    scaled = (x_next.double() - (a * x.double() + b * output.double())) / s
    num_elements = output.shape[1:].numel()
    constant = num_elements * (torch.log(s.flatten()) + 0.5 * math.log(2 * math.pi))
    log_prob = -0.5 * scaled.square().flatten(1).sum(1) - constant
    if output_ref is None:
        kl = torch.zeros_like(log_prob)
    else:
        control = b * (output.double() - output_ref.double()) / s
        kl = 0.5 * control.square().flatten(1).sum(1)
    return ppo_terms(log_prob, kl, old_log_prob.double(), advantage.double(), clip)


def gaussian_ppo_backward(
    output: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    s: torch.Tensor,
    output_ref: torch.Tensor | None,
    d_log_prob: torch.Tensor,
    d_kl: torch.Tensor,
) -> torch.Tensor:
    """Gradient in output, of its dtype, from those in log_prob and kl [N]."""
    dims = output.dim()
    a, b, s, d_log_prob, d_kl = (per_row(v, output, dims) for v in (a, b, s, d_log_prob, d_kl))
    gap = x_next.double() - (a * x.double() + b * output.double())
    gradient = d_log_prob * (b / s**2) * gap
    if output_ref is not None:
        gradient = gradient + d_kl * (b / s) ** 2 * (output.double() - output_ref.double())
    return gradient.to(output.dtype)
