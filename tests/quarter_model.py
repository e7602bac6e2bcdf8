"""A small masked model whose outputs have the same bits at any batch shape and on any device."""

from __future__ import annotations

from typing import Any

import torch

import fastguide as fg

L, V, STEPS = 12, 4, 10


class Denoiser(torch.nn.Module):
    """Logits in quarters: the same bits at any batch shape. Keeps the rows it was given."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        table = torch.randint(-4, 5, (V + 1, L * V), generator=g).float() / 4
        self.register_buffer("table", table)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        logits = self.table[x].sum(1).view(-1, L, V)
        return logits + cond["shift"][:, None, None] if cond else logits


def reward(x: torch.Tensor) -> torch.Tensor:
    return (x == 2).double().mean(1)


def state_value(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (x == 2).double().mean(1) + t.double()


def sampler(denoiser: Any = None, value: Any = "posterior_mean", **how: Any) -> fg.SVDD:
    diffusion = fg.MaskedDiffusion(denoiser or Denoiser(), L, V)
    return fg.SVDD(diffusion, reward, value=value, **{"num_candidates": 4, "alpha": 0.1, **how})


def sample(made: fg.SVDD, **how: Any) -> fg.Result:
    return made.sample(**{"num_samples": 6, "num_steps": STEPS, "progress": False, **how})
