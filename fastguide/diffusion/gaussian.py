"""Variance-preserving Gaussian diffusion: DDPM and DDIM.

x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise on a table of abar. Sources: Ho et al. 2020 (DDPM,
arXiv 2006.11239); Song et al. 2021 (DDIM, arXiv 2010.02502); Salimans and Ho 2022 (v-prediction,
arXiv 2202.00512).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.diffusion.learned import fingerprint
from fastguide.diffusion.universal import (
    SPACINGS,
    Kernel,
    Level,
    ancestral_deviation,
    check_eta,
    check_table,
    forward_deviation,
    spaced,
    universal_step,
)
from fastguide.errors import ArgumentError

Tensor = torch.Tensor

PREDICTIONS = ("epsilon", "sample", "v_prediction")


class GaussianDiffusion(GaussianChain):
    """A pre-trained Gaussian diffusion on a table of noise levels.

    Args:
        denoiser: callable (x [B, *shape] float32, t [B] int64 index into alphas_cumprod, **cond)
            -> [B, *shape], any float dtype.   shape: of one sample.
        alphas_cumprod: abar [T] in [0, 1), strictly decreasing from little noise to much.
        prediction_type: what the denoiser returns. "epsilon": the noise; "sample": x0;
            "v_prediction": sqrt(abar) noise - sqrt(1 - abar) x0.
        eta: in [0, 1]. 1 is ancestral sampling (DDPM), 0 adds no noise (DDIM): then nothing can be
            chosen from.
        variance: of the DDPM step. "posterior": that of q(x_{t-1} | x_t, x0); "beta": that of the
            forward step, with the same mean; needs eta=1. The last step never adds noise.
        timestep_spacing: which indices num_steps < T visits: "trailing", "leading" or "linspace".
            num_steps = T visits all. The last step goes to abar = 1.
        null_cond: conditioning of the unconditional rows of classifier-free guidance, a dict with
            the keys of `cond`.   guidance_scale: 1 is plain conditional sampling.
        device: where states live; default: the denoiser's parameters' device, else CPU.

    Raises:
        ArgumentError: an argument out of range, by name.
    """

    _time_dtype = torch.int64

    def __init__(
        self,
        denoiser: Callable[..., Any],
        shape: Sequence[int],
        *,
        alphas_cumprod: Tensor | Sequence[float],
        prediction_type: str = "epsilon",
        eta: float = 1.0,
        variance: str = "posterior",
        timestep_spacing: str = "trailing",
        null_cond: dict[str, Tensor] | None = None,
        guidance_scale: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            denoiser,
            shape,
            prior_deviation=1.0,
            null_cond=null_cond,
            guidance_scale=guidance_scale,
            device=device,
        )
        for name, value, known in (
            ("prediction_type", prediction_type, PREDICTIONS),
            ("variance", variance, ("posterior", "beta")),
            ("timestep_spacing", timestep_spacing, SPACINGS),
        ):
            if value not in known:
                raise ArgumentError(f"{name} must be one of {list(known)}, got {value!r}")
        self.eta = check_eta(eta)
        if variance == "beta" and self.eta != 1:
            raise ArgumentError(
                f"variance='beta' is a choice of ancestral sampling, eta=1; got eta={eta}"
            )
        table = check_table(alphas_cumprod, "alphas_cumprod")
        if table[0] >= 1 or table[-1] < 0:
            raise ArgumentError(
                "alphas_cumprod must lie in [0, 1) (the clean level, 1, is added as the end of the "
                f"last step), got values from {table[-1]:.9g} to {table[0]:.9g}"
            )
        if table[-1] == 0 and prediction_type == "epsilon":
            raise ArgumentError(
                "alphas_cumprod ends at 0, where the noise says nothing of x0; use a model with "
                "prediction_type='v_prediction' or 'sample', or leave that level away"
            )
        self.alphas_cumprod = torch.tensor(table, dtype=torch.float64)
        self.prediction_type = prediction_type
        self.variance = variance
        self.timestep_spacing = timestep_spacing
        # kept on the device: a copy from the host at every call could not be captured into a graph
        self._alpha = self.alphas_cumprod.sqrt().to(self.device)
        self._sigma = (1 - self.alphas_cumprod).sqrt().to(self.device)

    def levels(self, num_steps: int) -> list[Level]:
        """Noise levels at the visited indices, then the clean one at time -1."""
        size = len(self.alphas_cumprod)
        visited = spaced(size, num_steps, self.timestep_spacing, "alphas_cumprod")
        table = self.alphas_cumprod.tolist()
        levels = [Level(i, math.sqrt(table[i]), math.sqrt(1 - table[i])) for i in visited]
        return [*levels, Level(-1, 1.0, 0.0)]

    def _kernel(self, before: Level, after: Level) -> Kernel:
        posterior = ancestral_deviation(before, after)
        a, b, s = universal_step(before, after, self.eta * posterior)
        if self.variance == "beta" and after.sigma > 0:
            s = forward_deviation(before, after)
        return Kernel(a, b, s)

    def _clean(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        if self.prediction_type == "sample":
            return output
        index = t.to(torch.int64)
        column = (-1, *[1] * len(self.shape))
        alpha = self._alpha[index].to(x.dtype).view(column)
        sigma = self._sigma[index].to(x.dtype).view(column)
        if self.prediction_type == "v_prediction":
            return alpha * x - sigma * output
        return (x - sigma * output) / alpha

    def settings(self) -> dict[str, Any]:
        """What besides the denoiser determines the chain, for records and checkpoints."""
        return {
            **super().settings(),
            "alphas_cumprod": fingerprint(self.alphas_cumprod),
            "prediction_type": self.prediction_type,
            "eta": self.eta,
            "variance": self.variance,
            "timestep_spacing": self.timestep_spacing,
        }
