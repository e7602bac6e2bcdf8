"""Device functions that masked_propose and masked_posterior share."""

from __future__ import annotations

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
def logits_row(index_ptr, n, num_logit_rows, step, fault_ptr):
    """Row of logits of state n; one out of range is noted and read as row 0."""
    row = n
    if index_ptr is not None:
        row = tl.load(index_ptr + n)
        if (row < 0) | (row >= num_logit_rows):
            note_fault(fault_ptr, n, 0, row, step, INDEX_FAULT)
            row = row * 0
    return row


@triton.jit
def note_tokens(x, unmasked, vocab_size, n, sites, step, fault_ptr):
    """Note the first of the unmasked entries of x [B] that is no token in [0, V)."""
    bad = unmasked & ((x < 0) | (x >= vocab_size))
    note_first_fault(fault_ptr, bad, n, sites, x, step, TOKEN_FAULT)
