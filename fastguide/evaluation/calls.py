"""Calling a user's model on many rows: in chunks, at a fixed batch shape, with useful errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastguide.errors import ArgumentError, FastguideError, OutOfMemoryError
from fastguide.evaluation.cost import Cost

Tensor = torch.Tensor


@dataclass(frozen=True)
class Limits:
    """Batch shape of model calls.

    Attributes:
        max_rows: most rows of one call, or None for all at once.
        fixed_rows: pad every call to exactly this many rows, or None.
    """

    max_rows: int | None = None
    fixed_rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_rows", "fixed_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name} must be at least 1 or None, got {value}")
        if self.max_rows and self.fixed_rows and self.fixed_rows > self.max_rows:
            raise ArgumentError(
                f"fixed_rows={self.fixed_rows} is more than max_rows={self.max_rows}; "
                "every call has exactly fixed_rows rows, so max_rows can be left out"
            )


def call_in_chunks(
    model: Callable[[Tensor], Tensor],
    num_rows: int,
    limits: Limits,
    cost: Cost,
    *,
    name: str,
    rows_per_item: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """Run `model` on row indices 0..num_rows-1 and return its rows in order.

    Args:
        model: maps row indices [B] int64 to a tensor [B, ...]; gathers its own inputs.
        rows_per_item: model rows that one index costs (2 for a guided pair); limits count those.
        name: of the model, for the out-of-memory message.
    Raises:
        OutOfMemoryError: names the largest halving of the call that fits.
    """
    limit = limits.fixed_rows or limits.max_rows or num_rows * rows_per_item
    chunk = limit // rows_per_item
    if chunk < 1:
        raise ArgumentError(
            f"{'fixed_rows' if limits.fixed_rows else 'max_rows'}={limit} is too small: a "
            f"conditional and a null row go together, so give at least {rows_per_item}"
        )
    parts = []
    for index in torch.arange(num_rows, device=device).split(chunk):
        count = index.shape[0]
        if limits.fixed_rows and count < chunk:
            cost.padding_rows += (chunk - count) * rows_per_item
            index = torch.cat([index, index[-1:].expand(chunk - count)])
        try:
            parts.append(model(index)[:count])
        except FastguideError:
            raise
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            fits = _largest_that_fits(model, index) * rows_per_item
            raise OutOfMemoryError(
                f"{name} ran out of memory on {index.shape[0] * rows_per_item} rows; "
                + (f"pass max_rows={fits}, which fits" if fits else "a single row does not fit")
            ) from error
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error) or "out of memory" in str(error)


def _largest_that_fits(model: Callable[[Tensor], Tensor], index: Tensor) -> int:
    rows = index.shape[0] // 2
    while rows >= 1:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            model(index[:rows])
            return rows
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        rows //= 2
    return 0
