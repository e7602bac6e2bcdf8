"""What lets a graph capture GPU ops: scalars in device tensors, faults that are read later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from fastguide.errors import BackendError
from fastguide.kernels import device_faults
from fastguide.ops import _backend, _check

INTEGER_SCALARS = frozenset({"seed", "step"})


class DeferredFaults:
    """Faults that launches noted on a device since the last check.

    Args:
        device: where the tensors live.

    Attributes:
        records: int64 tensor on the device; a host that waits for another number anyway may copy it
            along, and call `check` only if `noted` says so.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._faults = device_faults.DeviceFaults(torch.device(device))
        self.records = self._faults.records

    def collect(self) -> AbstractContextManager[None]:
        """Inside, CUDA kernels on this thread note a bad input here and the host does not wait."""
        return device_faults.deferred(self._faults)

    def noted(self, words: Sequence[int]) -> bool:
        """Whether `records`, flattened and copied to the host, hold a fault."""
        return any(word != device_faults.EMPTY for word in words[::4])

    def check(self) -> None:
        """Wait for the current stream, then raise the first fault that an op noted, if any."""
        for op, fault, step in self._faults.read():
            _check.raise_fault(op, fault, step=step)


@contextmanager
def deferred_faults(device: torch.device | str) -> Iterator[DeferredFaults]:
    """Inside, CUDA kernels on this thread do not make the host wait for their fault flag.

    Each op then notes a bad input on the device and goes on; its outputs are unspecified. Leaving
    without an error checks once. Needed around the capture of a graph; keep the object, and call
    `check()` after replays.

    Args:
        device: where the tensors live.

    Raises:
        FastguideError: at `check()` or on leaving, what an op would have raised at once.
    """
    found = DeferredFaults(device)
    with found.collect():
        yield found
    capturing = found.records.is_cuda and torch.cuda.is_current_stream_capturing()
    if not capturing:
        found.check()


def check_scalars(op: str, like: torch.Tensor, **values: object) -> bool:
    """Whether any of `values` is a device tensor; those that are hold one element, beside `like`.

    Raises:
        BackendError: the backend that serves `like` reads scalars from the host only.
    """
    found = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    for name, tensor in found.items():
        _check.dtype(name, tensor, (torch.int64 if name in INTEGER_SCALARS else torch.float64,))
        _check.shape(name, tensor.reshape(-1), [1], "[1]")
    _check.same_device(op, like, **found)
    if found and _backend.chosen(op, like.device.type) not in {"cuda", "triton"}:
        name = next(iter(found))
        raise BackendError(
            f"{op}: {name} came as a tensor, which only GPU kernels read; pass {name}.item()"
        )
    return bool(found)


def signed_seed(seed: int | torch.Tensor) -> int | torch.Tensor:
    """`_check.signed_seed`, or the tensor."""
    return seed if isinstance(seed, torch.Tensor) else _check.signed_seed(seed)


def number(value: float | torch.Tensor) -> float | torch.Tensor:
    """A float, or the tensor."""
    return value if isinstance(value, torch.Tensor) else float(value)


def unsigned_seed(seed: int | torch.Tensor) -> int | torch.Tensor:
    """`_check.unsigned_seed`, or the tensor, whose bits are the seed."""
    return seed if isinstance(seed, torch.Tensor) else _check.unsigned_seed(seed)


def counter(step: int | torch.Tensor, purpose: int) -> int | torch.Tensor:
    """`_check.counter`, or as a tensor: step << 8 | purpose; kernels check its range."""
    if isinstance(step, torch.Tensor):
        return step * 256 + _check.counter(0, purpose)
    return _check.counter(step, purpose)
