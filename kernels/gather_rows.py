"""Copies of the chosen rows of a tensor, a launch that follows a choice on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from fastguide.kernels.triton_runtime import GATHER_FAULT, OPTIONS, interpreting, note_fault


@triton.jit(do_not_specialize=["num_candidates", "num_source_rows", "inner"])
def _gather_rows_kernel(
    source_ptr,
    index_ptr,
    where_ptr,
    target_ptr,
    fault_ptr,
    row_stride,
    candidate_stride,
    num_candidates,
    num_source_rows,
    inner,
    BLOCK: tl.constexpr,
):
    """target[n] = source[n, index[n]] or source[where[n, index[n]]]; lengths in elements."""
    tiles = tl.cdiv(inner, BLOCK)
    n = tl.program_id(0).to(tl.int64) // tiles
    tile = tl.program_id(0) - n * tiles
    k = tl.load(index_ptr + n)
    if where_ptr is not None:
        row = tl.load(where_ptr + n * num_candidates + k)
        if (row >= 0) & (row < num_source_rows):
            limit = inner
        else:
            note_fault(fault_ptr, n, k + 1, row, n * 0, GATHER_FAULT)
            limit = inner * 0
        start = row * row_stride
    else:
        limit = inner
        start = n * row_stride + k * candidate_stride
    o_unit = tile * BLOCK + tl.arange(0, BLOCK)
    unit = tl.load(source_ptr + start + o_unit, mask=o_unit < limit)
    tl.store(target_ptr + n * inner + o_unit, unit, mask=o_unit < limit)


UNITS = {8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.int8}
"""What memory is copied as, whatever it holds, by size in bytes."""


def _rows_are_blocks(source: torch.Tensor, lead: int) -> bool:
    """What one row takes is one block of memory."""
    due = 1
    for length, stride in zip(
        source.shape[: lead - 1 : -1], source.stride()[: lead - 1 : -1], strict=True
    ):
        if length != 1 and stride != due:
            return False
        due *= length
    return True


def launch_gather_rows(
    items: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    index: torch.Tensor,
    num_candidates: int,
    targets: Sequence[torch.Tensor],
    fault: torch.Tensor,
) -> None:
    """items [N, K, ...] or ([U, ...], [N, K]), index [N] int64 -> targets [N, ...]."""
    for (source, where), target in zip(items, targets, strict=True):
        if not target.numel():
            continue
        lead = 2 if where is None else 1
        source = source if _rows_are_blocks(source, lead) else source.contiguous()
        size = source.element_size()
        strides = [stride * size for stride in (*source.stride()[:lead], 0)[:2]]
        inner = target[0].numel() * size
        aligned = (source.data_ptr(), target.data_ptr(), inner, *strides)
        unit = next(u for u in UNITS if all(number % u == 0 for number in aligned))
        block = 64 if interpreting() else 1024
        inner //= unit
        _gather_rows_kernel[(len(index) * triton.cdiv(inner, block),)](
            triton.reinterpret(source, UNITS[unit]),
            index,
            where,
            triton.reinterpret(target, UNITS[unit]),
            fault,
            strides[0] // unit,
            strides[1] // unit,
            num_candidates,
            source.shape[0],
            inner,
            BLOCK=block,
            num_warps=4,
            **OPTIONS,
        )
