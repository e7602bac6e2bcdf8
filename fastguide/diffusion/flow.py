"""Flow matching (rectified flow): x_t = (1 - t) x0 + t noise, with a model of its velocity.

Sources: Liu et al. 2023 (arXiv 2209.03003); Lipman et al. 2023 (arXiv 2210.02747).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.diffusion.universal import Kernel, Level, check_eta, universal_step
from fastguide.errors import ArgumentError

Tensor = torch.Tensor


class FlowMatching(GaussianChain):
    """A pre-trained flow from noise at t = 1 to samples at t = 0.

    Args:
        velocity: callable (x [B, *shape] float32, t [B] float32 in (0, 1], **cond) ->
            E[noise - x0 | x_t = x], [B, *shape], any float dtype.   shape: of one sample.
        eta: in [0, 1]: a step to t' adds noise of standard deviation t' sin(eta pi / 2). 0 is the
            ODE, where nothing can be chosen from; 1 draws all noise anew.
        null_cond: conditioning of the unconditional rows of classifier-free guidance, a dict with
            the keys of `cond`.   guidance_scale: 1 is plain conditional sampling.
        device: where states live; default: the model's parameters' device, else CPU.

    num_steps=T visits the times 1, 1 - 1/T, ..., 0; the last step adds no noise.

    Raises:
        ArgumentError: an argument out of range, by name.
    """

    _name = "velocity"

    def __init__(
        self,
        velocity: Callable[..., Any],
        shape: Sequence[int],
        *,
        eta: float = 1.0,
        null_cond: dict[str, Tensor] | None = None,
        guidance_scale: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            velocity,
            shape,
            prior_deviation=1.0,
            null_cond=null_cond,
            guidance_scale=guidance_scale,
            device=device,
        )
        self.eta = check_eta(eta)

    def levels(self, num_steps: int) -> list[Level]:
        """Noise levels at times 1, 1 - 1/T, ..., 0."""
        if num_steps < 1:
            raise ArgumentError(f"num_steps must be at least 1, got {num_steps}")
        times = [(num_steps - i) / num_steps for i in range(num_steps + 1)]
        return [Level(t, 1 - t, t) for t in times]

    def _kernel(self, before: Level, after: Level) -> Kernel:
        return universal_step(before, after, after.sigma * math.sin(self.eta * math.pi / 2))

    def _clean(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return x - t.to(x.dtype).view(-1, *[1] * len(self.shape)) * output

    def settings(self) -> dict[str, Any]:
        """What besides the model determines the chain, for records and checkpoints."""
        return {**super().settings(), "eta": self.eta}
