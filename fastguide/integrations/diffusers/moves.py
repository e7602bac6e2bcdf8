"""The Gaussian that a step draws from: found, drawn from K times, and its log-probability."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion.universal import Kernel
from fastguide.errors import ArgumentError
from fastguide.integrations.diffusers import levels
from fastguide.integrations.diffusers.noise import drawn_from
from fastguide.integrations.diffusers.transition import ConstantNoise, find_transition
from fastguide.rng import Purpose

Tensor = torch.Tensor


@dataclass
class Move:
    """x' = a x + b x0 + s z of S states.

    Attributes:
        x, x0: [S, ...] float32; where the scheduler itself said where it goes, both are its mean.
        kernel: (a, b, s).   deviations: [S, ...] in place of s where it differs among elements.
        result: what the scheduler returned for noise 0.
    """

    x: Tensor
    x0: Tensor
    kernel: Kernel
    deviations: Tensor | None
    result: Any

    @property
    def varies(self) -> bool:
        """Some noise is added."""
        return self.deviations is not None or self.kernel.s > 0

    def mean(self) -> Tensor:
        """[S, ...] float32."""
        if self.kernel.b == 0:
            return self.kernel.a * self.x
        return self.kernel.a * self.x + self.kernel.b * self.x0

    def log_prob(self, moved: Tensor) -> Tensor:
        """Log-density [S] float64 of next states [S, ...] in nats, summed over the elements.

        0 for a step without noise, which has no density. Differentiable in the model's output.
        """
        if not self.varies:
            return torch.zeros(len(moved), dtype=torch.float64, device=moved.device)
        gap = moved - self.mean()
        constant = 0.5 * math.log(2 * math.pi)
        if self.deviations is None:
            scaled, constant = gap / self.kernel.s, constant + math.log(self.kernel.s)
            each = -0.5 * scaled.square() - constant
        else:
            each = -0.5 * (gap / self.deviations).square() - self.deviations.log() - constant
        return each.flatten(1).double().sum(dim=1)


def find_move(
    scheduler: Any,
    run: Callable[..., Any],
    arguments: dict[str, Any],
    at: levels.Place,
    eta: float | None,
    probe: ConstantNoise,
    first: bool,
) -> Move:
    """How the scheduler moves `arguments["sample"]`; it stands one step further afterwards.

    Args:
        arguments: of its step, "sample" and "model_output" [S, ...] float32 among them.
        eta: the universal step's noise in place of the scheduler's own transition, or None.
        first: it is the scheduler's first step of a call.
    """
    if eta is None:
        with drawn_from(probe):
            found = find_transition(scheduler, lambda: run(**arguments), probe, first)
        s, mean = found.deviation, found.mean
        if isinstance(s, torch.Tensor):
            return Move(mean, mean, Kernel(1.0, 0.0, 1.0), s, found.result)
        return Move(mean, mean, Kernel(1.0, 0.0, s), None, found.result)
    probe.value = 0.0
    with drawn_from(probe):
        result = run(**arguments)  # its own transition is not used; it moves on by it
    x = arguments["sample"]
    kernel = levels.kernel(scheduler, at, eta)
    x0 = levels.predict_clean(scheduler, at, arguments["model_output"], x)
    return Move(x, x0, kernel, None, result)


def propose(
    move: Move,
    *,
    seed: int,
    chains: Tensor,
    step: int,
    num_candidates: int,
    first_candidate: Tensor,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """K successors of S states, [S * K, ...] float32, and their log-ratios [S, K] under a shift."""
    x = move.x.detach()
    drawing: dict[str, Any] = {
        "chains": chains,
        "step": step,
        "num_candidates": num_candidates,
        "first_candidate": first_candidate,
    }
    if move.deviations is not None:
        if shift is not None:
            raise ArgumentError(
                "the scheduler's noise differs among elements (a learned variance), where a "
                "gradient cannot shift it; pass eta=, or use a method without gradients"
            )
        noise = ops.philox_normal(
            seed, purpose=Purpose.NOISE, num_elements=x[0].numel(), **drawing
        ).view(len(x), num_candidates, *x.shape[1:])
        return (x[:, None] + move.deviations[:, None] * noise).flatten(0, 1), None
    a, b, s = move.kernel
    drawn = ops.gaussian_propose(
        x.contiguous(), move.x0.detach(), a=a, b=b, s=s, seed=seed, shift=shift, **drawing
    )
    return drawn.candidates.flatten(0, 1), None if shift is None else drawn.log_ratio


def keyed_prior(
    seed: int,
    chains: Tensor,
    draw: int,
    shape: tuple[int, ...],
    first_candidate: Tensor,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Prior draw number `draw` of a call, [R, ...], keyed by chain and candidate."""
    noise = ops.philox_normal(
        seed,
        chains,
        draw,
        Purpose.PRIOR,
        num_elements=max(1, torch.Size(shape[1:]).numel()),
        first_candidate=first_candidate,
    )
    return noise.view(shape).to(device, dtype)


def other_noise(seed: int, generator: Any, draw: Callable[..., Tensor]) -> Tensor:
    """What is not drawn per row (an encoder's posterior): by the generator given, or the seed."""
    if generator is None:
        generator = torch.Generator().manual_seed(seed % 2**63)
    return draw(generator)


def halves(arguments: dict[str, Any], rows: int) -> tuple[Tensor, Tensor, bool]:
    """States and outputs [R, ...] of a step, and whether they came twice.

    Raises:
        ArgumentError: the step's arguments are not known, or not of R rows.
    """
    for name in ("sample", "model_output", "timestep"):
        if name not in arguments:
            raise ArgumentError(
                f"the scheduler's step takes no {name!r}, so it cannot be guided; use one of the "
                "schedulers that docs/pipelines.md lists"
            )
    sample, output = arguments["sample"], arguments["model_output"]
    if sample.shape[0] == 2 * rows:  # a classifier-free pair of the same states
        return sample[:rows], output[:rows], True
    if sample.shape[0] != rows:
        raise ArgumentError(
            f"the scheduler was given {sample.shape[0]} rows where {rows} are due: the pipeline "
            "changes the number of rows between its denoiser and its scheduler"
        )
    return sample, output, False
