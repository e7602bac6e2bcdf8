"""Uninitialised memory filled with values that no kernel writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

INTEGER_POISON = 0x7F


def _fill(tensor: torch.Tensor) -> torch.Tensor:
    if type(tensor) is not torch.Tensor:
        return tensor
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(float("nan"))
    if tensor.numel() and tensor.is_contiguous():
        tensor.view(-1).view(torch.uint8).fill_(INTEGER_POISON)
    return tensor


def _poisoning(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate(*args: Any, **kwargs: Any) -> torch.Tensor:
        return _fill(function(*args, **kwargs))

    return allocate


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, torch.empty and its relatives return NaN (floats) or bytes 0x7f (integers).

    An output that a kernel leaves unwritten then shows, instead of holding what was there before.
    """
    places = [(torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")]
    originals = [getattr(owner, name) for owner, name in places]
    for (owner, name), original in zip(places, originals, strict=True):
        setattr(owner, name, _poisoning(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)
