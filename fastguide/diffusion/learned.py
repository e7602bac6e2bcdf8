"""What fine-tuning may learn of a Gaussian chain besides its denoiser: noise and initial states."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import nn

from fastguide import ops
from fastguide.errors import ArgumentError
from fastguide.rng import Purpose

Tensor = torch.Tensor


@dataclass(frozen=True)
class LearnedNoise:
    """Factors on the noise of each of T steps.

    Attributes:
        factors: numbers [T], or lower triangles [T, D, D] on the D elements of a state.
    """

    factors: Tensor

    def numbers(self, num_steps: int) -> list[float]:
        """The factor on the deviation of each step; 1 where triangles do the work.

        Raises:
            ArgumentError: another number of steps than they were learned for.
        """
        if len(self.factors) != num_steps:
            raise ArgumentError(
                f"num_steps must be {len(self.factors)}, the number that the deviations were "
                f"learned for, got {num_steps}"
            )
        numbers: list[float] = self.factors.tolist()
        return numbers if self.factors.dim() == 1 else [1.0] * num_steps

    def triangle(self, number: int) -> Tensor | None:
        """The lower triangle [D, D] of step `number`, or None."""
        return None if self.factors.dim() == 1 else self.factors[number]

    def after(self, earlier: LearnedNoise | None) -> LearnedNoise:
        """These factors on noise that had the numbers of `earlier` on it already."""
        if earlier is None:
            return self
        numbers = earlier.factors.view(-1, *[1] * (self.factors.dim() - 1))
        return LearnedNoise(self.factors * numbers)

    def __getitem__(self, steps: slice) -> LearnedNoise:
        return LearnedNoise(self.factors[steps])


class LearnedStart:
    """Initial states drawn by J controlled steps from 0, in the place of normal ones.

    Step i takes x to x + d (network(x, i / J) + z) with d = deviation / sqrt(J); with a network
    that returns 0 that is the normal law with `deviation`.

    Args:
        network: (x [B, *shape], t [B] in [0, 1)) -> [B, *shape], in units of the noise.
        noise: learned factors on z, of J steps, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        num_steps: int,
        deviation: float,
        noise: LearnedNoise | None = None,
    ) -> None:
        self.network = network
        self.shape = shape
        self.num_steps = num_steps
        self.step_deviation = deviation / math.sqrt(num_steps)
        self.noise = noise

    @torch.no_grad()
    def __call__(self, chains: Tensor, seed: int, candidates: Tensor | None = None) -> Tensor:
        """States [R, *shape] of `chains` [R] and candidate numbers `candidates` [R]."""
        size = math.prod(self.shape)
        x = torch.zeros(len(chains), *self.shape, device=chains.device)
        for i in range(self.num_steps):
            z = ops.philox_normal(
                seed, chains, i, Purpose.PRIOR, num_elements=size, first_candidate=candidates
            ).view(x.shape)
            t = torch.full((len(x),), i / self.num_steps, device=x.device)
            if self.noise is not None:
                triangle = self.noise.triangle(i)
                factor = self.noise.numbers(self.num_steps)[i]
                z = factor * z if triangle is None else multiplied(z, triangle)
            x = x + self.step_deviation * (self.network(x, t) + z)
        return x

    def numbers(self) -> Tensor:
        """Everything that was learned, as one vector."""
        learned = [p.detach().double().flatten() for p in self.network.parameters()]
        if self.noise is not None:
            learned.append(self.noise.factors.double().flatten())
        return torch.cat(learned)


def multiplied(noise: Tensor, triangle: Tensor) -> Tensor:
    """Noise [R, *shape] with its D elements multiplied by a triangle [D, D] or [R, D, D]."""
    return (triangle.to(noise.dtype) @ noise.flatten(1)[..., None])[..., 0].view(noise.shape)


def fingerprint(table: Tensor) -> str:
    """Short SHA-256 of a table of numbers, for settings."""
    data = table.detach().cpu().double().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]
