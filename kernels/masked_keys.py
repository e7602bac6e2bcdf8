"""128-bit keys of whole token rows on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels.philox import zobrist
from fastguide.kernels.triton_runtime import OPTIONS, interpreting

OP = "masked_keys"


@triton.jit(do_not_specialize=["length"])
def _masked_keys_kernel(x_ptr, out_ptr, row_stride, site_stride, length, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    low = tl.zeros([BLOCK], tl.int64)
    high = tl.zeros([BLOCK], tl.int64)
    for start in range(0, length, BLOCK):
        site = start + tl.arange(0, BLOCK).to(tl.int64)
        valid = site < length
        token = tl.load(x_ptr + row * row_stride + site * site_stride, mask=valid, other=0)
        word_low, word_high = zobrist(site, token)
        low ^= tl.where(valid, word_low, 0)
        high ^= tl.where(valid, word_high, 0)
    tl.store(out_ptr + 2 * row, tl.xor_sum(low, axis=0))
    tl.store(out_ptr + 2 * row + 1, tl.xor_sum(high, axis=0))


def launch_masked_keys(x: torch.Tensor, out: torch.Tensor) -> None:
    """x [R, L] int64 -> out [R, 2] int64."""
    num_rows, length = x.shape
    if num_rows:
        _masked_keys_kernel[(num_rows,)](
            x,
            out,
            *x.stride(),
            length,
            BLOCK=16 if interpreting() else 128,
            num_warps=4,
            **OPTIONS,
        )
