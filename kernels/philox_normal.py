"""Standard normals of the random stream on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels import device_faults
from fastguide.kernels.doubles import normal_pair
from fastguide.kernels.philox import philox, word
from fastguide.kernels.singles import normal_pair_single
from fastguide.kernels.triton_config import noise_block
from fastguide.kernels.triton_runtime import (
    OPTIONS,
    chain_and_first,
    integer,
    integer_argument,
)

OP = "philox_normal"


@triton.jit
def four_normals(block, c1, c2, c3, seed, SINGLE: tl.constexpr):
    """Elements 4b, ..., 4b + 3 of the stream for blocks b [B] uint32: [4 B] in order.

    SINGLE: in float32 arithmetic; else float64.
    """
    w0, w1, w2, w3 = philox(block, c1, c2, c3, seed)
    if SINGLE:
        z0, z1 = normal_pair_single(w0, w1)
        z2, z3 = normal_pair_single(w2, w3)
    else:
        z0, z1 = normal_pair(w0, w1)
        z2, z3 = normal_pair(w2, w3)
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))


@triton.jit(do_not_specialize=["seed", "counter", "num_candidates", "num_elements"])
def _philox_normal_kernel(
    chains_ptr,
    first_ptr,
    out_ptr,
    fault_ptr,
    seed: tl.int64,
    seed_ptr,
    counter: tl.int64,
    counter_ptr,
    num_candidates,
    num_elements,
    SINGLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(num_elements, 4 * BLOCK)
    row = tl.program_id(0).to(tl.int64) // tiles
    tile = tl.program_id(0) - row * tiles
    n = row // num_candidates
    counter = integer_argument(counter, counter_ptr)
    chain, first = chain_and_first(
        chains_ptr, first_ptr, n, num_candidates, counter >> 8, fault_ptr
    )
    candidate = first + row - n * num_candidates
    seed = integer_argument(seed, seed_ptr)
    block = tile * BLOCK + tl.arange(0, BLOCK)
    z = four_normals(word(block), word(candidate), word(chain), word(counter), seed, SINGLE)
    element = tile * 4 * BLOCK + tl.arange(0, 4 * BLOCK)
    o_out = row * num_elements + element
    tl.store(out_ptr + o_out, z, mask=element < num_elements)


def launch_philox_normal(
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    counter: int | torch.Tensor,
    first_candidate: torch.Tensor | None,
    out: torch.Tensor,
) -> device_faults.Fault | None:
    """chains [N] int64, counter = step << 8 | purpose -> out [N, K, E] float32|float64."""
    num_chains, num_candidates, num_elements = out.shape
    if not out.numel():
        return None
    block = noise_block()
    _philox_normal_kernel[(num_chains * num_candidates * triton.cdiv(num_elements, 4 * block),)](
        chains,
        first_candidate,
        out,
        device_faults.record(OP, out.device),
        *integer(seed),
        *integer(counter),
        num_candidates,
        num_elements,
        SINGLE=out.dtype == torch.float32,
        BLOCK=block,
        num_warps=4,
        **OPTIONS,
    )
    return device_faults.outcome(out.device)
