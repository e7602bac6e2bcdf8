"""Pictures small enough for fast tests: 8 by 8 pixels, random weights, rewards that differ."""

from __future__ import annotations

import torch

import fastguide as fg
from fastguide.zoo import PictureTask

Tensor = torch.Tensor
SIDE = 8


class Lines:
    """Weighs neighbouring columns against each other; differentiable."""

    deterministic = True

    def __init__(self, tilt: float) -> None:
        self.tilt = tilt

    def __call__(self, samples: Tensor) -> Tensor:
        x = samples.float().clamp(-1, 1)
        return (x[..., ::2] - self.tilt * x[..., 1::2]).mean((1, 2, 3)) + self.tilt


def ink(samples: Tensor) -> Tensor:
    """Share of the page in per cent; guides and judges."""
    return 50 * (samples.float().clamp(-1, 1).mean((1, 2, 3)) + 1)


def denoiser(x: Tensor, t: Tensor) -> Tensor:
    """Half of the state as noise, less a fixed pattern."""
    pattern = torch.linspace(-1, 1, SIDE * SIDE).view(SIDE, SIDE).sin()
    return 0.5 * x - 0.25 * pattern


def decode(samples: Tensor) -> Tensor:
    """Images [B, 8, 8] uint8."""
    return ((samples[:, 0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


REFERENCES = torch.arange(40 * SIDE * SIDE).view(40, SIDE, SIDE).mul(37).remainder(256).byte()


def nearest_distance(samples: Tensor) -> Tensor:
    """[B] float32, Euclidean, ink in 0..1."""
    here, there = (each.flatten(1).float() / 255 for each in (decode(samples), REFERENCES))
    return torch.cdist(here, there).amin(1)


def task() -> PictureTask:
    """The task, with a card of the zoo's form."""
    facts = {"parameters": 20, "mflop_per_row": 0.1, "bytes": 2000, "sha256": "0" * 64}
    distances = {"quantiles": [0.05, 0.5, 0.95], "held_out_characters": [2.5, 3.0, 3.5]}
    table = torch.linspace(0.98, 0.01, 50, dtype=torch.float64)
    return PictureTask(
        name="dots",
        diffusion=fg.GaussianDiffusion(denoiser, (1, SIDE, SIDE), alphas_cumprod=table),
        rewards={"aesthetic": Lines(1.0), "ink": ink},
        oracles={"aesthetic": Lines(0.75), "ink": ink},
        default="aesthetic",
        encode=lambda images: images[:, None].float() / 127.5 - 1,
        decode=decode,
        references=REFERENCES,
        nearest_distance=nearest_distance,
        card={
            "summary": "dots for tests",
            "data": {"publication": "<b>none</b>"},
            "models": {"denoiser": facts},
            "metrics": {"nearest_distance": distances},
        },
    )
