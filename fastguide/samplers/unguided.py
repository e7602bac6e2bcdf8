"""Plain sampling from the pre-trained model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastguide.diffusion import Diffusion
from fastguide.samplers.base import Sampler


class Unguided(Sampler):
    """The pre-trained chain; with a reward the samples are scored, never chosen by it.

    Args:
        diffusion: what is sampled.   reward: optional, fills `result.rewards`.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any] | None = None,
        *,
        on_invalid: str = "raise",
    ) -> None:
        super().__init__(diffusion, reward, on_invalid=on_invalid)
