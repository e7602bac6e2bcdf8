"""Variance-exploding diffusion in the form of Karras et al.: x = x0 + sigma noise.

Source: Karras et al. 2022 (EDM, arXiv 2206.00364).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.diffusion.learned import fingerprint
from fastguide.diffusion.universal import (
    Kernel,
    Level,
    ancestral_deviation,
    check_eta,
    check_table,
    spaced,
    universal_step,
)
from fastguide.errors import ArgumentError

Tensor = torch.Tensor


def karras_sigmas(
    num_steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> list[float]:
    """Noise levels from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho).

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5, with its defaults.
    """
    if num_steps < 1 or not 0 < sigma_min < sigma_max or not rho > 0:
        raise ArgumentError(
            "num_steps must be at least 1, 0 < sigma_min < sigma_max and rho > 0; got "
            f"{num_steps}, {sigma_min}, {sigma_max}, {rho}"
        )
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ramp = (i / max(num_steps - 1, 1) for i in range(num_steps))
    return [(top + part * (bottom - top)) ** rho for part in ramp]


class KarrasDiffusion(GaussianChain):
    """A pre-trained denoiser of samples with added noise.

    Args:
        denoiser: callable (x [B, *shape] float32, sigma [B] float32, **cond) -> D(x, sigma), the
            clean sample, [B, *shape], any float dtype.   shape: of one sample.
        sigmas: noise levels [T], strictly decreasing and positive; the clean level 0 is added as
            the end of the last step. See `karras_sigmas`.
        eta: in [0, 1]. 1 is Euler ancestral sampling; 0 is Euler's method on the probability-flow
            ODE, where nothing can be chosen from.
        null_cond: conditioning of the unconditional rows of classifier-free guidance, a dict with
            the keys of `cond`.   guidance_scale: 1 is plain conditional sampling.
        device: where states live; default: the denoiser's parameters' device, else CPU.

    Chains start from N(0, sigmas[0]^2). num_steps = T visits all levels, fewer steps as many of
    them, evenly and from sigmas[0].

    Raises:
        ArgumentError: an argument out of range, by name.
    """

    def __init__(
        self,
        denoiser: Callable[..., Any],
        shape: Sequence[int],
        *,
        sigmas: Tensor | Sequence[float],
        eta: float = 1.0,
        null_cond: dict[str, Tensor] | None = None,
        guidance_scale: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        table = check_table(sigmas, "sigmas")
        if table[-1] <= 0:
            raise ArgumentError(
                f"sigmas must be positive, got {table[-1]:.9g}; the clean level 0 is added as the "
                "end of the last step"
            )
        super().__init__(
            denoiser,
            shape,
            prior_deviation=table[0],
            null_cond=null_cond,
            guidance_scale=guidance_scale,
            device=device,
        )
        self.sigmas = torch.tensor(table, dtype=torch.float64)
        self.eta = check_eta(eta)

    def levels(self, num_steps: int) -> list[Level]:
        """Noise levels at the visited sigmas, which are their times, then the clean one."""
        table = self.sigmas.tolist()[::-1]
        visited = spaced(len(table), num_steps, "trailing", "sigmas")
        return [*(Level(table[i], 1.0, table[i]) for i in visited), Level(0.0, 1.0, 0.0)]

    def _kernel(self, before: Level, after: Level) -> Kernel:
        return universal_step(before, after, self.eta * ancestral_deviation(before, after))

    def _clean(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return output

    def settings(self) -> dict[str, Any]:
        """What besides the denoiser determines the chain, for records and checkpoints."""
        return {**super().settings(), "sigmas": fingerprint(self.sigmas), "eta": self.eta}
