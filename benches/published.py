"""SVDD as published code runs it, written from its description: the baselines end to end.

Per step: one denoiser call for the current state; then for each of M candidates, one after the
other, a Gumbel-argmax draw over the V + 1 columns of the unnormalised kernel, a denoiser call on
the candidate, its most likely fill, and a reward call. Nothing is shared between candidates, steps
or chains. (Released code takes the best candidate even where the paper draws one by its weight;
here alpha is honoured, so that both sides sample the same law.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensor = torch.Tensor


def gumbel_argmax(weights: Tensor) -> Tensor:
    """One categorical draw per site from unnormalised weights [N, L, V + 1] -> [N, L]."""
    gumbel = 1e-10 - (torch.rand_like(weights) + 1e-10).log()
    return (weights / gumbel).argmax(dim=-1)


def candidate(x: Tensor, probs: Tensor, chance: float, next_chance: float, mask: int) -> Tensor:
    """One successor of x [N, L] under token probabilities [N, L, V]."""
    stay = torch.full((*x.shape, 1), next_chance)
    drawn = gumbel_argmax(torch.cat([probs * (chance - next_chance), stay], dim=-1))
    return torch.where(x == mask, drawn, x)


def published_svdd(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    reward: Callable[[Tensor], Tensor],
    *,
    num_samples: int,
    length: int,
    vocab_size: int,
    num_candidates: int,
    num_steps: int,
    alpha: float,
) -> Tensor:
    """Samples [N, L] with the log-linear schedule, a fill by mode, torch's global generator."""
    mask = vocab_size
    grid = torch.linspace(1, 1e-5, num_steps + 1, dtype=torch.float64)
    chances = ((1 - 1e-3) * grid).tolist()
    x = torch.full((num_samples, length), mask)
    zeros = torch.zeros(num_samples)
    with torch.no_grad():
        for step in range(num_steps):
            probs = denoiser(x, zeros)[..., :vocab_size].float().softmax(dim=-1)
            candidates, scores = [], []
            for _ in range(num_candidates):
                proposed = candidate(x, probs, chances[step], chances[step + 1], mask)
                mode = denoiser(proposed, zeros)[..., :vocab_size].argmax(dim=-1)
                scores.append(reward(torch.where(proposed == mask, mode, proposed)))
                candidates.append(proposed)
            values = torch.stack(scores, dim=1).double()
            if alpha == 0:
                chosen = values.argmax(dim=1)
            else:
                chosen = torch.multinomial((values / alpha).softmax(dim=1), 1)[:, 0]
            x = torch.stack(candidates, dim=1)[torch.arange(num_samples), chosen]
        mode = denoiser(x, zeros)[..., :vocab_size].argmax(dim=-1)
    return torch.where(x == mask, mode, x)


def published_image_svdd(
    unet: Callable[..., Tensor],
    scheduler: Any,
    reward: Callable[[Tensor], Tensor],
    *,
    num_samples: int,
    shape: tuple[int, ...],
    num_candidates: int,
    num_steps: int,
    alpha: float,
) -> Tensor:
    """Samples [N, *shape] by the loop of released image code around a DDPM scheduler.

    Per step: the denoiser on the current state; then for each of M candidates, one after the other,
    a scheduler step with fresh noise, the denoiser on the candidate, the predicted clean image and
    its reward.
    """
    scheduler.set_timesteps(num_steps)
    x = torch.randn(num_samples, *shape)
    steps = list(scheduler.timesteps)
    with torch.no_grad():
        for i, t in enumerate(steps):
            output = unet(x, t)
            if i + 1 == len(steps):
                return scheduler.step(output, t, x).prev_sample
            candidates, scores = [], []
            for _ in range(num_candidates):
                proposed = scheduler.step(output, t, x).prev_sample
                following = unet(proposed, steps[i + 1])
                clean = scheduler.step(following, steps[i + 1], proposed).pred_original_sample
                scores.append(reward(clean))
                candidates.append(proposed)
            values = torch.stack(scores, dim=1).double()
            if alpha == 0:
                chosen = values.argmax(dim=1)
            else:
                chosen = torch.multinomial((values / alpha).softmax(dim=1), 1)[:, 0]
            x = torch.stack(candidates, dim=1)[torch.arange(num_samples), chosen]
    raise AssertionError("a schedule without steps")
