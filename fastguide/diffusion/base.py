"""What the engine needs of a diffusion: a list of steps, and how to start, propose and predict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Step:
    """One transition of a run.

    Attributes:
        index: position in the run, the `step` of the random stream.
        time: time of the state before the transition (its denoiser output is at this time).
        next_time: time at which the candidates of this transition live.
        clean: the candidates are clean samples, scored by the reward itself.
        varies: False if every candidate of a state would be the same.
        params: the kernel's numbers (masked: (rho,)).
    """

    index: int
    time: float
    next_time: float
    clean: bool
    varies: bool
    params: tuple[float, ...]

    @property
    def counter(self) -> int:
        """Its place in the random stream; the draw of initial states, index -1, takes the last."""
        return self.index % 2**24


@dataclass
class Batch:
    """Rows of chain states.

    Attributes:
        x: [R, ...] states.
        keys: [R, 2] int64 state keys, or None where states are never equal.
    """

    x: Tensor
    keys: Tensor | None

    def __len__(self) -> int:
        return self.x.shape[0]

    def take(self, index: Tensor) -> Batch:
        """Rows `index` [S] of this batch."""
        return Batch(
            self.x.index_select(0, index),
            None if self.keys is None else self.keys.index_select(0, index),
        )


def _call(head: Callable[[Tensor], Tensor], hidden: Tensor, owner: Tensor) -> Tensor:
    return head(hidden)


@dataclass(frozen=True)
class Outputs:
    """Denoiser outputs of R rows.

    Attributes:
        buffer: [slots, ...] outputs.   slots: [R] int64, where the output of each row lies.
        call_head: how a lazy head is run: (head, hidden [S, ...], owner [S], the row that each is
            for) -> logits [S, V].
    """

    buffer: Tensor
    slots: Tensor
    call_head: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor] = _call

    def __getitem__(self, rows: slice) -> Outputs:
        return replace(self, slots=self.slots[rows])


class Diffusion(Protocol):
    """The engine's view of a diffusion. Outputs are kept in a store and addressed by slot."""

    denoiser: Any
    head: Any
    time_conditioned: bool
    device: torch.device
    output_shape: tuple[int, ...]
    row_bytes: int
    rows_per_state: int
    prior_varies: bool
    distinct: bool

    def settings(self) -> dict[str, Any]:
        """What besides the denoiser determines the chain."""

    def steps(self, num_steps: int) -> list[Step]:
        """The transitions of a run, in order."""

    def start(
        self, chains: Tensor, prompt: Tensor | None, seed: int, candidates: Tensor | None = None
    ) -> Batch:
        """Initial states of `chains` [R] and candidate numbers `candidates` [R] (None: zeros)."""

    def batch(self, states: Tensor) -> Batch:
        """Given states [R, ...], checked, to go on from."""

    def denoise(self, x: Tensor, time: float, cond: dict[str, Tensor]) -> Tensor:
        """Checked denoiser output [B, *output_shape] of states [B, ...] at one time."""

    def needs_output(self, x: Tensor) -> Tensor:
        """[R] bool: rows whose denoiser output will be read."""

    def invalid_outputs(self, x: Tensor, outputs: Tensor) -> Tensor:
        """[B] bool: rows whose output cannot be sampled from (NaN, infinity, nothing allowed)."""

    def propose(
        self,
        batch: Batch,
        outputs: Outputs,
        step: Step,
        *,
        seed: int,
        chains: Tensor,
        num_candidates: int,
        first_candidate: Tensor,
    ) -> tuple[Batch, Tensor]:
        """K successors of each row: a batch of R*K rows (row-major), and changed [R, K]."""

    def propose_shifted(
        self,
        batch: Batch,
        outputs: Outputs,
        step: Step,
        *,
        shift: Tensor | None,
        seed: int,
        chains: Tensor,
        num_candidates: int,
        first_candidate: Tensor,
        weigh: bool = True,
    ) -> tuple[Batch, Tensor, Tensor | None]:
        """K successors from a changed kernel.

        Args:
            shift: Gaussian: [R, ...] added to the mean; masked: [R, L, V] added to the
                log-probability of revealing each token, before normalisation; None: `propose`.
            weigh: False if nothing looks at the log-ratio, so that it may be left away.

        Returns:
            the R*K rows; changed [R, K]; log of the plain kernel over the changed one [R, K]
            float64, None without a shift.
        """

    def predict_mode(self, batch: Batch, outputs: Outputs) -> Tensor:
        """The most likely clean sample of each row, [R, ...]."""

    def predict_samples(
        self, batch: Batch, outputs: Outputs, num_samples: int, seed: int
    ) -> Tensor:
        """Clean samples drawn from the factorised prediction, [R, S, ...]."""

    def relax(self, x: Tensor) -> Tensor:
        """States as points of a space in which they can be differentiated."""

    def predict_relaxed(
        self, x: Tensor, t: Tensor, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Denoiser outputs and predicted clean samples of relaxed states, differentiable."""

    def relaxed_reward(self, reward: Any) -> Callable[[Tensor], Tensor]:
        """The reward of what `predict_relaxed` predicts."""

    def relaxed_value(self, value: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """The value of relaxed states and times."""

    def shift_along(self, gradient: Tensor, step: Step, scale: Tensor | float) -> Tensor:
        """What moves a proposal along a gradient, as `propose_shifted` takes it."""

    def predict_soft(self, batch: Batch, outputs: Outputs) -> Tensor:
        """The expected clean sample (tokens: probabilities), [R, ...]."""
