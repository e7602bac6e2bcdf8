"""Which row of a wide call belongs to which image, particle and candidate."""

from __future__ import annotations

import torch

from fastguide.diffusion import Batch
from fastguide.evaluation import Cost, Rows
from fastguide.result import Trace

Tensor = torch.Tensor

_ROWS = ("denoiser_rows", "denoiser_rows_requested", "reward_rows", "reward_rows_requested")


class Layout:
    """N images of P particles with K candidates each: R = N P K rows, image by image.

    Attributes:
        place: [R] 0..R-1.   image_first, state_first: [R] first row of each row's image, and of its
            particle.
        chain: [R] global chain id.   particle: [R].   number: [R] candidate number in its chain.
    """

    def __init__(
        self,
        images: int,
        particles: int,
        candidates: int,
        first_chain: int,
        device: torch.device,
    ) -> None:
        each = particles * candidates
        self.images, self.particles, self.candidates = images, particles, candidates
        self.rows = images * each
        self.place = torch.arange(self.rows, device=device)
        self.image_first = self.place // each * each
        self.state_first = self.place // candidates * candidates
        self.chain = self.place // each + first_chain
        self.particle = self.place % each // candidates
        self.number = self.place % each

    def first_candidate(self, index: Tensor) -> Tensor:
        """[S] number of the first candidate of the particles that rows `index` belong to."""
        return self.particle[index] * self.candidates

    def looked_at(self, spread: bool) -> Tensor:
        """Rows that differ: all, or the first of each particle."""
        return self.place if spread else self.place[:: self.candidates]

    def named(self, index: Tensor) -> Rows:
        """Rows `index` [S] as scorers and error messages know them."""
        blank = torch.empty(0, device=index.device)
        return Rows(
            Batch(index, None), self.chain[index], self.number[index], index * 0, index, blank
        )


class Ledger:
    """What happened at each transition of a call."""

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self._seen = dict.fromkeys(_ROWS, 0)
        self._columns: dict[str, list[float]] = {}
        self._values: list[Tensor] = []

    def note(self, values: Tensor, *, time: float, ess: float, invalid: int) -> None:
        """The values [S] of the states that went on."""
        now = {name: getattr(self._cost, name) for name in _ROWS}
        row = {name: now[name] - self._seen[name] for name in _ROWS}
        row |= {"time": time, "ess": ess, "invalid_steps": invalid}
        for name, each in row.items():
            self._columns.setdefault(name, []).append(each)
        self._values.append(values.float().cpu())
        self._seen = now

    def trace(self, winner: Tensor) -> Trace:
        """The trace of states `winner` [N]."""
        if not self._values:
            blank = torch.zeros(0, dtype=torch.int64)
            counts = dict.fromkeys(("invalid_steps", *_ROWS), blank)
            return Trace(blank.double(), torch.zeros(0, len(winner)), blank.double(), **counts)
        columns = {
            name: torch.tensor(
                column, dtype=torch.float64 if name in ("time", "ess") else torch.int64
            )
            for name, column in self._columns.items()
        }
        return Trace(values=torch.stack(self._values)[:, winner.cpu()], **columns)
