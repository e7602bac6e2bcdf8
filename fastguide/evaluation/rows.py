"""The rows a run carries: states with everything known about them, and names for error messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastguide.diffusion import Batch

Tensor = torch.Tensor


@dataclass
class Rows:
    """R states and what is known of each.

    Attributes:
        batch: the states.
        chain: [R] int64 global chain id.   candidate: [R] int64 candidate number in its chain.
        cond_row: [R] int64 row of the conditioning.
        slot: [R] int64 slot of the denoiser output, -1 if not known.
        value: [R] float64 value of the state, NaN if not known.
        gradient: [R, ...] of the value in the state, for proposals that follow it, or None.
    """

    batch: Batch
    chain: Tensor
    candidate: Tensor
    cond_row: Tensor
    slot: Tensor
    value: Tensor
    gradient: Tensor | None = None

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, index: Tensor) -> Rows:
        """Rows `index` [S]."""
        return Rows(
            self.batch.take(index),
            self.chain.index_select(0, index),
            self.candidate.index_select(0, index),
            self.cond_row.index_select(0, index),
            self.slot.index_select(0, index),
            self.value.index_select(0, index),
            None if self.gradient is None else self.gradient.index_select(0, index),
        )

    def name(self, row: int) -> str:
        """How error messages name a row."""
        return f"chain {int(self.chain[row])}, candidate {int(self.candidate[row])}"


def row_bytes(rows: Tensor, tags: Tensor | None) -> list[bytes]:
    """Each row of integers [R, L], with its tag [R] if any, as bytes: an exact dictionary key."""
    tagged = rows if tags is None else torch.cat([rows, tags[:, None]], dim=1)
    tagged = tagged.to("cpu", torch.int32).contiguous()
    names: list[bytes] = tagged.numpy().view(f"V{4 * tagged.shape[1]}")[:, 0].tolist()
    return names


def place_numbers(numbers: list[int], device: torch.device) -> Tensor:
    """Numbers as [N] int64 on the device; several times as fast as `torch.tensor`."""
    return torch.from_numpy(np.array(numbers, dtype=np.int64)).to(device)


def mix_tag(keys: Tensor, tags: Tensor) -> Tensor:
    """State keys [R, 2] that also depend on a tag [R] (an odd multiplier spreads its bits)."""
    return keys ^ (tags * -7046029254386353131)[:, None]


def unique_conditions(cond: dict[str, Tensor], num_chains: int) -> tuple[dict[str, Tensor], Tensor]:
    """Merge equal conditioning rows: ({name: [C, ...]}, row of each chain [N] int64)."""
    if not cond:
        return {}, torch.zeros(num_chains, dtype=torch.int64)
    fingerprints: Sequence[bytes] = [
        b"".join(
            value[chain if value.shape[0] > 1 else 0].detach().cpu().contiguous()
            .flatten().view(torch.uint8).numpy().tobytes()
            for value in cond.values()
        )
        for chain in range(num_chains if any(v.shape[0] > 1 for v in cond.values()) else 1)
    ]  # fmt: skip
    seen: dict[bytes, int] = {}
    first: list[int] = []
    row = []
    for chain, fingerprint in enumerate(fingerprints):
        if fingerprint not in seen:
            seen[fingerprint] = len(first)
            first.append(chain)
        row.append(seen[fingerprint])
    if len(row) < num_chains:
        row = row * num_chains
    kept = torch.tensor(first)
    merged = {
        name: value[kept.to(value.device) if value.shape[0] > 1 else slice(None)]
        for name, value in cond.items()
    }
    merged = {name: value.expand(len(first), *value.shape[1:]) for name, value in merged.items()}
    return merged, torch.tensor(row, dtype=torch.int64)
