"""Device functions of PPO terms: what csrc/include/fastguide/ppo_terms.cuh has."""

from __future__ import annotations

import triton
import triton.language as tl

from fastguide.kernels.doubles import exp_double


@triton.jit
def write_terms(
    row,
    log_prob,
    kl,
    old_ptr,
    advantage_ptr,
    low,
    high,
    surrogate_ptr,
    kl_ptr,
    log_prob_ptr,
    ratio_ptr,
    clipped_ptr,
    slope_ptr,
):
    """Terms of rows [B] from their log_prob and kl [B] float64; low, high: float64 scalars."""
    advantage = tl.load(advantage_ptr + row)
    ratio = exp_double(log_prob - tl.load(old_ptr + row))
    inside = tl.where(ratio < low, low, tl.where(ratio > high, high, ratio))
    plain = ratio * advantage
    held = inside * advantage
    # NaN on either side goes through.
    least = tl.where((plain < held) | (plain != plain), plain, held)
    above = (advantage > 0.0) & (ratio > high)
    clipped = above | ((advantage < 0.0) & (ratio < low))
    tl.store(surrogate_ptr + row, -least)
    tl.store(kl_ptr + row, kl)
    tl.store(log_prob_ptr + row, log_prob)
    tl.store(ratio_ptr + row, ratio)
    tl.store(clipped_ptr + row, clipped)
    tl.store(slope_ptr + row, tl.where(clipped, 0.0, -plain))
