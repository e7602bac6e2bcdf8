"""Device functions that masked_propose and masked_posterior share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels.triton_runtime import (
    INDEX_FAULT,
    TOKEN_FAULT,
    note_fault,
    note_first_fault,
)

# Low bytes of the counter word c3; the numbers of fastguide.rng.Purpose.
REVEAL = tl.constexpr(3)
TOKEN = tl.constexpr(4)


@triton.jit
def reveal_threshold(threshold, rho_ptr):
    """Smallest word that does not reveal: floor(rho 2**32), int64."""
    if rho_ptr is not None:
        threshold = (tl.load(rho_ptr) * 4294967296.0).to(tl.int64)
    return threshold.to(tl.int64)


@triton.jit
def logits_row(index_ptr, n, num_logit_rows, step, fault_ptr, PER_SITE: tl.constexpr):
    """Row of logits of state n; one out of range is noted and read as row 0.

    With an index per site there is none: `site_address` and `sites_address` look it up.
    """
    row = n
    if index_ptr is not None and not PER_SITE:
        row = tl.load(index_ptr + n)
        if (row < 0) | (row >= num_logit_rows):
            note_fault(fault_ptr, n, 0, row, step, INDEX_FAULT)
            row = row * 0
    return row


@triton.jit
def site_address(
    logits_ptr,
    index_ptr,
    n,
    u_row,
    site,
    row_stride,
    site_stride,
    num_logit_rows,
    length,
    step,
    fault_ptr,
    PER_SITE: tl.constexpr,
):
    """Address of the logits of one site of state n; a row out of range is noted, read as row 0."""
    if PER_SITE:
        row = tl.load(index_ptr + n * length + site)
        if (row < 0) | (row >= num_logit_rows):
            note_fault(fault_ptr, n, site + 1, row, step, INDEX_FAULT)
            row = row * 0
        address = logits_ptr + row * row_stride
    else:
        address = logits_ptr + u_row * row_stride + site * site_stride
    return address


@triton.jit
def sites_address(
    logits_ptr,
    index_ptr,
    n,
    u_row,
    sites,
    wanted,
    row_stride,
    site_stride,
    num_logit_rows,
    length,
    step,
    fault_ptr,
    PER_SITE: tl.constexpr,
):
    """`site_address` of sites [B], of which only the `wanted` are read."""
    if PER_SITE:
        row = tl.load(index_ptr + n * length + sites, mask=wanted, other=0)
        bad = wanted & ((row < 0) | (row >= num_logit_rows))
        note_first_fault(fault_ptr, bad, n, sites, row, step, INDEX_FAULT)
        address = logits_ptr + tl.where(bad, 0, row) * row_stride
    else:
        address = logits_ptr + u_row * row_stride + sites * site_stride
    return address


@triton.jit
def note_tokens(x, unmasked, vocab_size, n, sites, step, fault_ptr):
    """Note the first of the unmasked entries of x [B] that is no token in [0, V)."""
    bad = unmasked & ((x < 0) | (x >= vocab_size))
    note_first_fault(fault_ptr, bad, n, sites, x, step, TOKEN_FAULT)


def site_rows(logits: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Logits [U, L, V] or [S, V] and their strides (row, site, token), with a row to point at.

    A kernel reads row 0 where an index is out of range, and [0, V] has none.
    """
    if logits.dim() == 3:
        row, site, token = logits.stride()
        return logits, (row, site, token)
    if not logits.shape[0]:
        logits = logits.new_zeros(1, logits.shape[1])
    return logits, (logits.stride(0), 0, logits.stride(1))
