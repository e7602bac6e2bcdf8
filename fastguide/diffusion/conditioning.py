"""Calling a user's denoiser: conditioning by name, and the two halves of classifier-free guidance.

A guided pair costs two rows: the conditional ones come first in the batch, then as many with
`null_cond` in the place of `cond`. Source: Ho and Salimans 2022 (arXiv 2207.12598).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.errors import ArgumentError

Tensor = torch.Tensor


def check_guidance(null_cond: dict[str, Tensor] | None, guidance_scale: float) -> None:
    """Raise ArgumentError if guidance is wanted and its unconditional rows are not described."""
    if guidance_scale != 1.0 and null_cond is None:
        raise ArgumentError(
            f"guidance_scale={guidance_scale} needs null_cond, the conditioning of the "
            "unconditional rows; give null_cond={...} with the keys of cond"
        )


def device_of(denoiser: Any) -> torch.device:
    """Where a module's parameters are; the CPU for other callables."""
    if isinstance(denoiser, torch.nn.Module):
        for parameter in denoiser.parameters():
            return parameter.device
    return torch.device("cpu")


def call_denoiser(
    denoiser: Callable[..., Any],
    x: Tensor,
    t: Tensor,
    cond: dict[str, Tensor] | None,
    null_cond: dict[str, Tensor] | None,
) -> Any:
    """What the denoiser returns for x [B, ...] at t [B]; with `null_cond`, for 2B rows.

    Of an output with a field `sample`, as models of diffusers have, that field.

    Raises:
        ArgumentError: cond and null_cond have different keys.
    """
    cond = cond or {}
    if null_cond is None:
        return _sample(denoiser(x, t, **cond))
    differing = sorted(set(cond) ^ set(null_cond))
    if differing:
        raise ArgumentError(
            f"null_cond and cond must have the same keys; they differ in {differing}"
        )
    both = {
        name: torch.cat([value, null.to(value.device).expand(len(x), *null.shape[1:])])
        for name, value, null in ((name, cond[name], null_cond[name]) for name in cond)
    }
    return _sample(denoiser(torch.cat([x, x]), torch.cat([t, t]), **both))


def _sample(output: Any) -> Any:
    return getattr(output, "sample", output)
