"""The states of one scheduler during a call: what it was given, what it gave back, its history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fastguide.integrations.diffusers.transition import gather_history, snapshot

Tensor = torch.Tensor

STREAM = 2**20
"""Step counters of a second scheduler start here, so that its noise is its own."""


@dataclass
class Stream:
    """One scheduler of a call.

    Attributes:
        number: 0 for the one whose states are valued; others follow its choices.
        steps: done.
        states: [R, ...] float32 as computed, before they were cast for the pipeline.
        history: rows of what the scheduler remembers.   parent: [R] the one of each state.
        fresh: the scheduler before its first step.
    """

    number: int
    steps: int = 0
    states: Tensor | None = None
    history: int = 0
    parent: Tensor | None = None
    fresh: dict[str, Any] = field(default_factory=dict)

    def enter(self, scheduler: Any) -> None:
        """Called before the first step."""
        if self.steps == 0:
            self.fresh = snapshot(scheduler)

    def exact(self, sample: Tensor) -> Tensor:
        """The states [R, ...] in float32: those computed here, unless the pipeline changed them."""
        if sample.dtype == torch.float32:
            return sample
        kept = self.states
        same = kept is not None and kept.shape == sample.shape
        if kept is not None and same and torch.equal(kept.to(sample.dtype), sample):
            return kept
        return sample.float()

    def follow(self, scheduler: Any, index: Tensor) -> None:
        """Give the scheduler the history of rows `index` [S]."""
        if self.parent is not None:
            gather_history(scheduler, self.history, self.parent[index])
        self.history = len(index)

    @property
    def counter(self) -> int:
        """The step of the random stream."""
        return self.number * STREAM + self.steps
