"""Uniforms of the random stream on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels import device_faults
from fastguide.kernels.philox import uniform_at, word
from fastguide.kernels.triton_runtime import (
    OPTIONS,
    chain_and_first,
    integer,
    integer_argument,
    interpreting,
)

OP = "philox_uniform"


@triton.jit(do_not_specialize=["seed", "counter", "num_candidates", "num_elements"])
def _philox_uniform_kernel(
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
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(num_elements, BLOCK)
    row = tl.program_id(0).to(tl.int64) // blocks
    n = row // num_candidates
    counter = integer_argument(counter, counter_ptr)
    chain, first = chain_and_first(
        chains_ptr, first_ptr, n, num_candidates, counter >> 8, fault_ptr
    )
    candidate = first + row - n * num_candidates
    block = tl.program_id(0) - row * blocks
    element = block * BLOCK + tl.arange(0, BLOCK)
    seed = integer_argument(seed, seed_ptr)
    u = uniform_at(word(element), word(candidate), word(chain), word(counter), seed)
    o_out = row * num_elements + element
    tl.store(out_ptr + o_out, u, mask=element < num_elements)


def launch_philox_uniform(
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    counter: int | torch.Tensor,
    first_candidate: torch.Tensor | None,
    out: torch.Tensor,
) -> device_faults.Fault | None:
    """chains [N] int64, counter = step << 8 | purpose -> out [N, K, E] float64."""
    num_chains, num_candidates, num_elements = out.shape
    if not out.numel():
        return None
    block = 32 if interpreting() else 256
    _philox_uniform_kernel[(num_chains * num_candidates * triton.cdiv(num_elements, block),)](
        chains,
        first_candidate,
        out,
        device_faults.record(OP, out.device),
        *integer(seed),
        *integer(counter),
        num_candidates,
        num_elements,
        BLOCK=block,
        num_warps=4,
        **OPTIONS,
    )
    return device_faults.outcome(out.device)
