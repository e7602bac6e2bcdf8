"""Distinct rows, exactly, in order of first appearance."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastguide import reference
from fastguide.errors import DtypeError
from fastguide.ops import _backend, _check
from fastguide.ops._library import register

OP = "unique_rows"
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


class UniqueRows(NamedTuple):
    """Groups of equal rows: first [R] int64, inverse [R] int64, count [1] int64."""

    first: torch.Tensor
    inverse: torch.Tensor
    count: torch.Tensor  # type: ignore[assignment]  # the name of a tuple method


def unique_rows(
    rows: torch.Tensor,
    keys: torch.Tensor | None = None,
    *,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> UniqueRows:
    """Group equal rows by their 128-bit keys, confirming every match by comparing the rows.

    Args:
        rows: [R, L] of any integer dtype or bool, any strides.
        keys: [R, 2] int64; equal rows must have equal keys. None: `masked_keys(rows)`.
            Different rows may share a key, by accident or by design: the result stays exact.
        out: optional (first, inverse, count), contiguous int64, overwritten.

    Returns:
        UniqueRows: first [R], where first[:count] are the rows that open each group, ascending, and
        the rest is 0; inverse [R], the group of each row, so rows[first[inverse]] == rows;
        count [1].

    Raises:
        ShapeError, DtypeError, ArgumentError: an argument that cannot work, by name.
        BackendError: no backend can serve.

    Determinism: equal integers on every backend.   Gradient: none (integer input).
    Cost: one pass over the keys, and one comparison of L integers per repeated row.
    Oracle: fastguide.reference.unique_rows.
    """
    if out is None:
        return UniqueRows(*torch.ops.fastguide.unique_rows(rows, keys))
    return _run(rows, keys, out)


def _run(
    rows: torch.Tensor,
    keys: torch.Tensor | None,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
) -> UniqueRows:
    if rows.dtype not in INTEGERS:
        raise DtypeError(
            f"rows must hold integers, got {rows.dtype}; convert them with rows.long()"
        )
    _check.shape("rows", rows, [None, None], "[R, L]")
    num_rows = rows.shape[0]
    keys = _check.optional_integers("keys", keys, [num_rows, 2], "[R, 2]")
    _check.same_device(OP, rows, keys=keys)
    if out is None:
        first = torch.empty(num_rows, dtype=torch.int64, device=rows.device)
        result = UniqueRows(first, torch.empty_like(first), first.new_empty(1))
    else:
        result = UniqueRows(*out)
        _check.output("first", result.first, (num_rows,), torch.int64, rows)
        _check.output("inverse", result.inverse, (num_rows,), torch.int64, rows)
        _check.output("count", result.count, (1,), torch.int64, rows)
    if _backend.use_reference(OP, rows):
        for target, source in zip(result, reference.unique_rows(rows, keys), strict=True):
            target.copy_(source)
        return result
    if keys is None:
        keys = torch.empty(num_rows, 2, dtype=torch.int64, device=rows.device)
        _backend.launcher("masked_keys", rows)(rows.to(torch.int64), keys)
    if rows.stride(1) != 1 and rows.shape[1] > 1:
        rows = rows.contiguous()
    _backend.launcher(OP, rows)(rows, keys, *result)
    return result


def _allocate(rows: torch.Tensor, keys: torch.Tensor | None) -> UniqueRows:
    return _run(rows, keys, None)


def _fake(
    rows: torch.Tensor, keys: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    first = rows.new_empty((rows.shape[0],), dtype=torch.int64)
    return first, torch.empty_like(first), rows.new_empty((1,), dtype=torch.int64)


register("unique_rows(Tensor rows, Tensor? keys) -> (Tensor, Tensor, Tensor)", _allocate, _fake)
