"""Denoiser outputs by slot: one buffer, addressed by index, remembered by state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

import torch

from fastguide.evaluation.rows import place_numbers

Tensor = torch.Tensor


class OutputStore:
    """Rows of denoiser output in one buffer, so that outputs are never copied, only indexed.

    A slot is either *transient* (dropped at the next `advance` unless a live state holds it) or
    *remembered* under the bytes of its state, least recently used first, up to `capacity_bytes`.
    Live and just used slots are never dropped, whatever the capacity.
    """

    def __init__(self, shape: tuple[int, ...], capacity_bytes: int, device: torch.device) -> None:
        self._shape = shape
        self._capacity_bytes = capacity_bytes
        self._device = device
        self._free: list[int] = []
        self._transient: set[int] = set()
        self._remembered: OrderedDict[bytes, int] = OrderedDict()
        self._pinned: set[int] = set()
        # slot 0 is blank: clean states point there, and nothing reads it
        self.buffer = torch.zeros((1, *shape), device=device)

    def advance(self, live: list[int]) -> None:
        """Begin a step: only the slots in `live` (those of the current states) are pinned."""
        self._pinned = set(live)
        for slot in self._transient - self._pinned:
            self._free.append(slot)
        self._transient &= self._pinned

    @property
    def pinned(self) -> frozenset[int]:
        """Slots that are read in this step."""
        return frozenset(self._pinned)

    def release(self, slots: Collection[int]) -> None:
        """Unpin slots that this step has read and will not read again."""
        self._pinned.difference_update(slots)
        self._free.extend(self._transient.intersection(slots))
        self._transient.difference_update(slots)

    def find(self, state: bytes) -> int:
        """The slot remembered for `state`, pinned for this step, or -1."""
        slot = self._remembered.get(state, -1)
        if slot >= 0:
            self._remembered.move_to_end(state)
            self._pinned.add(slot)
        return slot

    def put(self, outputs: Tensor, states: list[bytes] | None) -> list[int]:
        """Store rows [B, ...] and return their slots; remember them under `states` if given."""
        if outputs.dtype != self.buffer.dtype:
            self.buffer = self.buffer.to(outputs.dtype)
        if outputs.shape[1:] != self._shape:  # hidden states, whose shape the first call shows
            self._shape = outputs.shape[1:]
            self.buffer = self.buffer.new_zeros((1, *self._shape))
        slots = self._allocate(outputs.shape[0])
        self._pinned.update(slots)
        self.buffer.index_copy_(0, place_numbers(slots, self._device), outputs)
        for row, slot in enumerate(slots):
            # two equal states in one call (duplicates not merged): the first is remembered
            if states is not None and states[row] not in self._remembered:
                self._remembered[states[row]] = slot
            else:
                self._transient.add(slot)
        return slots

    def _allocate(self, count: int) -> list[int]:
        room = self._capacity_bytes // max(self._row_bytes, 1) - self.buffer.shape[0]
        short = count - len(self._free)
        if short > max(room, 0):
            self._evict(short - max(room, 0))
            short = count - len(self._free)
        if short > 0:
            self._grow(short, max(room, 0))
        return [self._free.pop() for _ in range(count)]

    def _evict(self, count: int) -> None:
        victims: list[bytes] = []
        for state, slot in self._remembered.items():
            if len(victims) == count:
                break
            if slot not in self._pinned:
                victims.append(state)
        self._free.extend(self._remembered.pop(state) for state in victims)

    def _grow(self, least: int, room: int) -> None:
        """Enlarge by at least `least` rows; double while that stays inside the capacity."""
        size = self.buffer.shape[0]
        extra = max(least, min(size, room))
        grown = torch.empty(
            (size + extra, *self._shape), dtype=self.buffer.dtype, device=self._device
        )
        grown[:size] = self.buffer
        self.buffer = grown
        self._free.extend(range(size + extra - 1, size - 1, -1))

    @property
    def _row_bytes(self) -> int:
        return self.buffer.element_size() * int(torch.Size(self._shape).numel())
