"""The path that led to each image, with its log-probabilities: what policy gradients start from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fastguide.integrations.diffusers.moves import Move

Tensor = torch.Tensor


@dataclass(frozen=True)
class Trajectory:
    """States of N images through T steps.

    Attributes:
        states: [T + 1, N, ...] float32, from noise to clean latents.
        log_probs: [T, N] float64 nats of each step under the pipeline's own transition, summed over
            the elements; 0 for a step without noise.
        prior: what was drawn before the first step, [N, ...] each, in the order of the draws.
        seed, first_chain, eta: of the run, which a replay uses again.
    """

    states: Tensor
    log_probs: Tensor
    prior: tuple[Tensor, ...]
    seed: int
    first_chain: int
    eta: float | None


class Recorder:
    """Keeps the states that went on at each step and where they came from."""

    def __init__(self) -> None:
        self._path: list[tuple[Tensor, Tensor | None, Tensor]] = []
        self._move: Move | None = None
        self._prior: list[Tensor] = []
        self._first: Tensor | None = None

    def drawn(self, noise: Tensor) -> None:
        """Noise [R, ...] was drawn before the first step."""
        self._prior.append(noise.detach())

    def arrived(self, x: Tensor, index: Tensor, ancestors: Tensor | None) -> None:
        """States x [S, ...], rows `index` [S], go on; they came from states `ancestors` [S]."""
        if self._first is None:
            self._first = index
        log_prob = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if self._move is not None and ancestors is not None:
            log_prob = at_rows(self._move, ancestors).log_prob(x)
        self._path.append((x, ancestors, log_prob))

    def left(self, move: Move) -> None:
        """The states were moved."""
        self._move = move

    def trajectory(self, seed: int, first_chain: int, eta: float | None) -> Trajectory:
        """The paths of the states that arrived last."""
        rows = torch.arange(len(self._path[-1][0]), device=self._path[-1][0].device)
        states, log_probs = [], []
        for x, ancestors, log_prob in reversed(self._path):
            states.append(x[rows])
            log_probs.append(log_prob[rows])
            if ancestors is not None:
                rows = ancestors[rows]
        assert self._first is not None
        first = self._first[rows]
        return Trajectory(
            torch.stack(states[::-1]),
            torch.stack(log_probs[::-1][1:]),
            tuple(noise[first.to(noise.device)] for noise in self._prior),
            seed,
            first_chain,
            eta,
        )


def at_rows(move: Move, index: Tensor) -> Move:
    """The move of states `index` [S]."""
    return replace(
        move,
        x=move.x[index],
        x0=move.x0[index],
        deviations=None if move.deviations is None else move.deviations[index],
    )
