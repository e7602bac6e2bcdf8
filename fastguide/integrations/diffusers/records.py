"""What a guided call is told, and what it returns besides images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastguide.integrations.diffusers.scores import PipelineCost
from fastguide.integrations.diffusers.trajectory import Trajectory
from fastguide.result import Trace

Tensor = torch.Tensor


@dataclass(frozen=True)
class Settings:
    """How a pipeline is guided, whatever the method; see `guide`."""

    eta: float | None
    window: tuple[float, float]
    interval: int
    seed: int
    first_chain: int
    max_rows: int | None
    record: bool

    def guides(self, step: int, total: int) -> bool:
        """Whether transition `step` of `total` lies in the window."""
        return self.window[0] <= step / total < self.window[1]


@dataclass
class Candidates:
    """The last candidates of each image, among which the winner was.

    Attributes:
        latents: [N, C, ...] float32 final latents.   rewards: [N, C] float32, or None.
        log_weights: [N, P] float64 normalised, of particle methods.   log_z: [N] float64, nats.
    """

    latents: Tensor
    rewards: Tensor | None
    log_weights: Tensor | None
    log_z: Tensor | None


@dataclass
class GuidedResult:
    """What is known of one call besides its images.

    Attributes:
        chains: [N] int64 global ids of the images.   rewards: [N] float32 of the winners, or None.
        candidates: of the last step, or None if the call did not get there.
        trace: per transition.   cost: rows and seconds.
        stopped: None, or why the call ended before its last step.
        trajectory: of the winners, if record=True.
    """

    chains: Tensor
    rewards: Tensor | None
    candidates: Candidates | None
    trace: Trace
    cost: PipelineCost
    stopped: str | None
    trajectory: Trajectory | None
