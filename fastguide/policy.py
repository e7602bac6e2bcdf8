"""What a sampling method is to the engine: how it chooses, what it keeps, what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from fastguide.diffusion import Batch, Diffusion, Step
from fastguide.evaluation import Rows

Tensor = torch.Tensor


@dataclass(frozen=True)
class Selection:
    """What a policy chooses from: R rows with K candidates each.

    Attributes:
        step: the transition.   seed: of the stream.
        chains, particles: [R] int64, the counters of the draws; the P particles of a chain follow
            each other.
        values: [R, K] float64, -inf for invalid candidates.
        memory: what the policy keeps from choice to choice.
        log_ratio: [R, K] float64 log of the plain kernel over the one proposed from, or None where
            they are the same.
    """

    step: Step
    seed: int
    chains: Tensor
    particles: Tensor
    values: Tensor
    memory: dict[str, Tensor]
    log_ratio: Tensor | None = None


@dataclass(frozen=True)
class Choice:
    """A policy's answer.

    Attributes:
        index: [R] int64 into the R*K candidates (row-major).
        ess: float64, effective number of candidates of each row, or of particles of each chain.
        valid: bool like `ess`, False where every candidate was invalid.
        memory: what to keep; tensors of the policy's own, in the order of the new rows.
    """

    index: Tensor
    ess: Tensor
    valid: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Final:
    """What a policy makes of the P final states of each of N chains.

    Attributes:
        index: [N] int64 into the N*P states (row-major): the samples.
        log_weights: [N, P] float64, normalised, or None.   log_z: [N] float64, or None.
    """

    index: Tensor
    log_weights: Tensor | None = None
    log_z: Tensor | None = None


class Policy(Protocol):
    """A sampling method, as the engine sees it: N chains of P particles with K candidates.

    Attributes:
        couples: it chooses among particles too, so it is asked even where no candidate changed.
        select_initial: it chooses among initial states, where the prior has more than one.
        guides: it proposes along gradients, so that initial states must have theirs.
    """

    diffusion: Diffusion
    reward: Any
    value: Any
    num_particles: int
    num_candidates: int
    on_invalid: str
    couples: bool
    select_initial: bool
    guides: bool

    def width(self, step: Step) -> int:
        """Candidates per row at this step, if they can vary; at most `num_candidates`."""

    def memory(self, num_chains: int) -> dict[str, Tensor]:
        """What `select` is given at the first step."""

    def shift(self, rows: Rows, step: Step, memory: dict[str, Tensor]) -> Tensor | None:
        """How to change the proposal of `rows`, as the diffusion's `propose_shifted` takes it."""

    def revise(self, batch: Batch, changed: Tensor, rows: Rows, step: Step) -> tuple[Batch, Tensor]:
        """The candidates that are scored, in place of those proposed; `changed` to match."""

    def scores(self, step: Step, num_candidates: int) -> bool:
        """Whether candidates of this step must be scored."""

    def select(self, selection: Selection) -> Choice:
        """Choose the next states among scored candidates."""

    def finish(self, rewards: Tensor | None, selection: Selection) -> Final:
        """Which of the N*P final states each chain returns.

        rewards: [N*P] float64.   selection: without values; its memory is the last one kept.
        """
