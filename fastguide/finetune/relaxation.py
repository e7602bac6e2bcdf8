"""Gradients for tokens: of the Gumbel-softmax of a draw that was made, and of relaxed states."""

from __future__ import annotations

import torch

from fastguide import ops
from fastguide.finetune.laws import MaskedLaw
from fastguide.rng import Purpose

Tensor = torch.Tensor


def revealed_softly(
    relaxed: Tensor,
    law: MaskedLaw,
    following: Tensor,
    *,
    key: int,
    chains: Tensor,
    step: int,
    temperature: float,
    drawn: bool,
) -> Tensor:
    """The relaxed states after a step whose tokens are known.

    Args:
        relaxed: [N, L, V + 1] before it.   law: its kernels.   following: [N, L] after it.
        key, chains, step: of the stream.   temperature: of the softmax.
        drawn: False where the tokens are the most likely ones, so that there is no Gumbel noise.

    Returns:
        [N, L, V + 1], one-hot; where a token was revealed the derivative is that of
        softmax((log p + gumbel) / temperature), elsewhere that of `relaxed`.
    Source: Jang et al. 2017 (arXiv 1611.01144); noise given the draw: Paulus et al. 2021 (arXiv
    2010.04838), section 3.
    """
    vocab_size = law.log_probs.shape[-1]
    revealed = law.masked & (following != law.mask_token)
    tokens = following.where(revealed, 0)
    hard = torch.nn.functional.one_hot(tokens, vocab_size).to(law.log_probs.dtype)
    perturbed = law.log_probs
    if drawn:
        with torch.no_grad():
            noise = _gumbel_given(law.log_probs, tokens, key, chains, step)
        perturbed = perturbed + noise
    soft = (perturbed / temperature).softmax(dim=-1)
    point = hard + (soft - soft.detach())
    point = torch.cat([point, torch.zeros_like(point[..., :1])], dim=-1)
    return torch.where(revealed[..., None], point.to(relaxed.dtype), relaxed)


def hard_states(relaxed: Tensor, mask_token: int) -> Tensor:
    """[N, L] int64: the largest entries of relaxed states [N, L, V + 1], tokens or the mask."""
    column = relaxed.argmax(dim=-1)
    return torch.where(column == relaxed.shape[-1] - 1, mask_token, column)


def largest(relaxed: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens [N, L] of relaxed states, and as one-hot rows [N, L, V].

    The rows have the gradient of the relaxed states (straight through).
    """
    soft = relaxed[..., :-1]
    tokens = soft.argmax(dim=-1)
    hard = torch.nn.functional.one_hot(tokens, soft.shape[-1]).to(soft.dtype)
    return tokens, hard + (soft - soft.detach())


def drakes_kl(law: MaskedLaw, natural: MaskedLaw, relaxed: Tensor, chance: float) -> Tensor:
    """What released DRAKES code adds up as the KL of a step, [N] float64.

    Per site (1 - m) sum_v x_v (p_v log(p_v / q_v) - p_v + q_v) / chance, m the mask's share of x,
    where the mask is the largest entry of x; elsewhere its networks agree on the token. So it is 0
    at hard states, and small at relaxed ones; the divergence of the step is
    rho m sum_v p_v log(p_v / q_v).

    Args:
        law, natural: of p and q, at `hard_states`.   relaxed: [N, L, V + 1].
        chance: that a site is still masked before the step.
    Source: the code released with Wang et al. 2025 (arXiv 2410.13643), as of 2025.
    """
    p, q = law.log_probs.exp(), natural.log_probs.exp()
    each = p * (law.log_probs - natural.log_probs) - p + q
    site = (1 - relaxed[..., -1]) * (relaxed[..., :-1] * each).sum(dim=-1)
    return site.masked_fill(~law.masked, 0).sum(dim=-1, dtype=torch.float64) / chance


def _gumbel_given(log_probs: Tensor, tokens: Tensor, key: int, chains: Tensor, step: int) -> Tensor:
    """Gumbel noise [N, L, V] under which log_probs + noise is largest at `tokens` [N, L].

    The largest sum is a Gumbel variable itself, and the others are cut off at it.
    """
    draw = ops.philox_uniform(key, chains, step, Purpose.NOISE, num_elements=log_probs[0].numel())
    exponential = -draw.view(log_probs.shape).clamp_min(2.0**-53).log().to(log_probs.dtype)
    at = tokens[..., None]
    top = exponential.gather(-1, at)
    others = -(exponential * (-log_probs).exp() + top).log()
    largest = (-top.log()).expand_as(others)
    chosen = torch.zeros_like(others, dtype=torch.bool).scatter_(-1, at, True)
    return torch.where(chosen, largest, others) - log_probs
