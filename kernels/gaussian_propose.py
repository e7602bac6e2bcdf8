"""Candidates of one Gaussian reverse step on a GPU: the noise never leaves the registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels import device_faults
from fastguide.kernels.masked_sites import logits_row
from fastguide.kernels.philox import word
from fastguide.kernels.philox_normal import four_normals
from fastguide.kernels.triton_config import candidates_per_program, noise_block
from fastguide.kernels.triton_runtime import (
    OPTIONS,
    chain_and_first,
    double,
    double_argument,
    integer,
    integer_argument,
)

OP = "gaussian_propose"


@triton.jit(
    do_not_specialize=[
        "num_output_rows",
        "num_candidates",
        "per_program",
        "num_tiles",
        "seed",
        "counter",
        "a_bits",
        "b_bits",
        "s_bits",
    ]
)
def _gaussian_propose_kernel(
    x_ptr,
    output_ptr,
    shift_ptr,
    index_ptr,
    chains_ptr,
    first_ptr,
    out_ptr,
    partial_ptr,
    fault_ptr,
    x_row_stride,
    output_row_stride,
    shift_row_stride,
    num_output_rows,
    num_candidates,
    num_elements,
    per_program,
    num_tiles,
    seed: tl.int64,
    seed_ptr,
    counter: tl.int64,
    counter_ptr,
    a_bits: tl.int64,
    a_ptr,
    b_bits: tl.int64,
    b_ptr,
    s_bits: tl.int64,
    s_ptr,
    SINGLE: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """partial_ptr: [N, K, tiles] float64, the sum of -h z - h^2 / 2 over a tile, h = shift / s."""
    chunks = tl.cdiv(num_candidates, per_program)
    tile = tl.program_id(0) % num_tiles
    chunk = (tl.program_id(0) // num_tiles) % chunks
    n = tl.program_id(0).to(tl.int64) // (num_tiles * chunks)
    seed = integer_argument(seed, seed_ptr)
    counter = integer_argument(counter, counter_ptr)
    a = double_argument(a_bits, a_ptr)
    b = double_argument(b_bits, b_ptr)
    s = double_argument(s_bits, s_ptr)
    chain, first = chain_and_first(
        chains_ptr, first_ptr, n, num_candidates, counter >> 8, fault_ptr
    )
    row = logits_row(index_ptr, n, num_output_rows, counter >> 8, fault_ptr, False)

    element = tile.to(tl.int64) * 4 * BLOCK + tl.arange(0, 4 * BLOCK)
    m_element = element < num_elements
    x = tl.load(x_ptr + n * x_row_stride + element, mask=m_element, other=0.0)
    output = tl.load(output_ptr + row * output_row_stride + element, mask=m_element, other=0.0)
    shift = tl.zeros([4 * BLOCK], x.dtype)
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + n * shift_row_stride + element, mask=m_element, other=0.0)
        h = shift.to(tl.float64) / s
    if SINGLE:
        # Coefficients are rounded first and products fused, as in the C++ kernels.
        mean = tl.fma(a.to(tl.float32), x, tl.fma(b.to(tl.float32), output, shift))
    else:
        mean = a * x + b * output + shift

    block = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    begin = chunk * per_program
    for k in range(begin, tl.minimum(begin + per_program, num_candidates)):
        candidate = mean
        if NOISE:
            z = four_normals(word(block), word(first + k), word(chain), word(counter), seed, SINGLE)
            candidate = tl.fma(s.to(tl.float32), z, mean) if SINGLE else mean + s * z
            if shift_ptr is not None:
                terms = -h * (z.to(tl.float64) + 0.5 * h)
                total = tl.sum(tl.where(m_element, terms, 0.0), axis=0)
                tl.store(partial_ptr + (n * num_candidates + k) * num_tiles + tile, total)
        o_out = (n * num_candidates + k) * num_elements + element
        tl.store(out_ptr + o_out, candidate, mask=m_element)


def launch_gaussian_propose(
    x: torch.Tensor,
    output: torch.Tensor,
    a: float | torch.Tensor,
    b: float | torch.Tensor,
    s: float | torch.Tensor,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    counter: int | torch.Tensor,
    index: torch.Tensor | None,
    first_candidate: torch.Tensor | None,
    shift: torch.Tensor | None,
    candidates: torch.Tensor,
    log_ratio: torch.Tensor,
) -> device_faults.Fault | None:
    """x, shift [N, ...], output [U, ...] -> candidates [N, K, ...], log_ratio [N, K] or [N, 0]."""
    num_chains, num_candidates = candidates.shape[:2]
    if not candidates.numel():
        log_ratio.zero_()
        return None
    x, output = x.flatten(1), output.flatten(1)
    # Rows may lie anywhere, their elements side by side.
    x, output = (t if t.stride(1) == 1 else t.contiguous() for t in (x, output))
    if shift is not None:
        shift = shift.flatten(1)
        shift = shift if shift.stride(1) == 1 else shift.contiguous()
    num_elements = x.shape[1]
    block = noise_block()
    num_tiles = triton.cdiv(num_elements, 4 * block)
    per_program = candidates_per_program(num_chains * num_tiles, num_candidates)
    partial = None
    if shift is not None:
        partial = torch.empty(
            (num_chains, num_candidates, num_tiles), dtype=torch.float64, device=x.device
        )
    chunks = triton.cdiv(num_candidates, per_program)
    _gaussian_propose_kernel[(num_chains * chunks * num_tiles,)](
        x,
        output,
        shift,
        index,
        chains,
        first_candidate,
        candidates,
        partial,
        device_faults.record(OP, x.device),
        x.stride(0),
        output.stride(0),
        0 if shift is None else shift.stride(0),
        output.shape[0],
        num_candidates,
        num_elements,
        per_program,
        num_tiles,
        *integer(seed),
        *integer(counter),
        *double(a),
        *double(b),
        *double(s),
        SINGLE=x.dtype == torch.float32,
        NOISE=isinstance(s, torch.Tensor) or s > 0,
        BLOCK=block,
        num_warps=4,
        **OPTIONS,
    )
    if partial is not None:
        # A second pass in a fixed order, where atomic additions would not repeat their bits.
        torch.sum(partial, dim=2, out=log_ratio)
    return device_faults.outcome(x.device)
