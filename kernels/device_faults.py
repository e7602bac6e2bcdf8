"""Where GPU kernels note a bad input, and when the host looks: at once, or together with others.

A record is four int64 words on the device (csrc/cuda/device.cuh, FaultRecord): key = row << 28 |
min(column + 1, 2^20 - 1) << 8 | code, of which a kernel keeps the smallest; value; step; a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastguide.errors import BackendError

EMPTY = 2**63 - 1
MOST_OPS = 16
Fault = tuple[int, int, int, int]


class DeviceFaults:
    """The records of all ops on one device.

    Attributes:
        records: [MOST_OPS, 4] int64; copy it with whatever else the host waits for.
    """

    def __init__(self, device: torch.device) -> None:
        clean = torch.tensor([EMPTY, 0, 0, 0], dtype=torch.int64)
        self.records = clean.repeat(MOST_OPS, 1).to(device)
        self._rows: dict[str, int] = {}

    def record(self, op: str) -> torch.Tensor:
        """The four words that a launch of `op` writes to."""
        return self.records[self._rows.setdefault(op, len(self._rows))]

    def read(self) -> list[tuple[str, Fault, int]]:
        """(op, (code, row, column, value), step) of every op that noted a fault, and forget them.

        Waits for the current stream.
        """
        host = self.records.tolist()
        found = []
        for op, row in self._rows.items():
            key, value, step, _ = host[row]
            if key != EMPTY:
                place = (key & 0xFF, key >> 28, (key >> 8 & 0xFFFFF) - 1, value)
                found.append((op, place, step))
                self.records[row].copy_(torch.tensor([EMPTY, 0, 0, 0], dtype=torch.int64))
        return found


class _State(threading.local):
    def __init__(self) -> None:
        self.deferred: DeviceFaults | None = None
        self.immediate: dict[torch.device, DeviceFaults] = {}


_STATE = _State()


@contextmanager
def deferred(faults: DeviceFaults) -> Iterator[None]:
    """Inside, launches on this thread note their faults in `faults` and do not wait."""
    before, _STATE.deferred = _STATE.deferred, faults
    try:
        yield
    finally:
        _STATE.deferred = before


def record(op: str, device: torch.device) -> torch.Tensor:
    """The record for the next launch of `op` on `device`.

    Raises:
        BackendError: the launch is being captured into a graph and nobody would look.
    """
    if _STATE.deferred is not None:
        return _STATE.deferred.record(op)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise BackendError(
            f"{op}: a captured launch cannot wait for its fault flag; capture inside "
            "`with fastguide.ops.deferred_faults(device) as faults:` and call faults.check() after "
            "a replay"
        )
    if device not in _STATE.immediate:
        _STATE.immediate[device] = DeviceFaults(device)
    return _STATE.immediate[device].record(op)


def outcome(device: torch.device) -> Fault | None:
    """The fault of the launches since the last call, or None; also None while deferred.

    Waits for the current stream, unless deferred.
    """
    if _STATE.deferred is not None:
        return None
    found = _STATE.immediate[device].read()
    return found[0][1] if found else None
