"""What every Triton launcher shares: compile options, scalar arguments, the report of a fault."""

from __future__ import annotations

import struct
from typing import Any

import torch
import triton
import triton.language as tl

# Contraction is off so that the bits agree with the C++ kernels; wanted FMAs are written tl.fma.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}

# The numbers of FaultCode in fastguide/reference/faults.py.
INDEX_FAULT = tl.constexpr(1)
TOKEN_FAULT = tl.constexpr(2)
CHAIN_FAULT = tl.constexpr(3)
CANDIDATE_FAULT = tl.constexpr(4)
LOGIT_FAULT = tl.constexpr(5)
NO_TOKEN_FAULT = tl.constexpr(6)
VALUE_FAULT = tl.constexpr(7)
GATHER_FAULT = tl.constexpr(8)
SCALAR_FAULT = tl.constexpr(10)


def interpreting() -> bool:
    """The kernels run in Triton's interpreter: CPU tensors are served, and blocks are small."""
    return bool(triton.knobs.runtime.interpret)


def integer(value: int | torch.Tensor) -> tuple[int, torch.Tensor | None]:
    """A 64-bit scalar as kernels take it: (bits as a signed integer, device tensor or None)."""
    if isinstance(value, torch.Tensor):
        return 0, value
    return value - 2**64 if value >= 2**63 else value, None


def double(value: float | torch.Tensor) -> tuple[int, torch.Tensor | None]:
    """A float64 scalar as kernels take it: (its bit pattern, device tensor or None)."""
    if isinstance(value, torch.Tensor):
        return 0, value
    return int(struct.unpack("<q", struct.pack("<d", value))[0]), None


def is_tempered(temperature: float | torch.Tensor) -> bool:
    """Whether a kernel has to divide by the temperature."""
    return isinstance(temperature, torch.Tensor) or temperature != 1.0


@triton.jit
def integer_argument(value, pointer):
    """A 64-bit scalar argument: `value`, or where `pointer` is given what lies there."""
    if pointer is not None:
        value = tl.load(pointer)
    return value.to(tl.int64)


@triton.jit
def double_argument(bits, pointer):
    """A float64 scalar argument from its bit pattern, or from device memory.

    Launches carry Python floats as float32, so a double travels as an integer.
    """
    if pointer is not None:
        value = tl.load(pointer)
    else:
        value = bits.to(tl.int64).to(tl.float64, bitcast=True)
    return value


@triton.jit
def note_fault(fault_ptr, row, place, value, step, CODE: tl.constexpr):
    """Keep a fault in the record of kernels/device_faults.py if it is the first by row and column.

    row, value, step: int64 scalars.   place: column + 1, or 0 for an input without columns.
    """
    key = (row << 28) | (place << 8) | CODE
    lock_ptr = fault_ptr + 3
    free = tl.full([], 0, tl.int64)
    held = tl.full([], 1, tl.int64)
    # An atomic gives every warp the same answer. Plain loads might not while other programs write,
    # and warps that part here would never meet at the barriers inside.
    if key < tl.atomic_add(fault_ptr, free):
        while tl.atomic_cas(lock_ptr, free, held) != 0:
            pass
        if key < tl.atomic_add(fault_ptr, free):
            tl.store(fault_ptr, key)
            tl.store(fault_ptr + 1, value)
            tl.store(fault_ptr + 2, step)
        tl.debug_barrier()
        tl.atomic_xchg(lock_ptr, free)


@triton.jit
def note_first_row(fault_ptr, bad, rows, places, values, step, CODE: tl.constexpr):
    """`note_fault` for the first True of `bad` [B] in ascending rows [B]; places, values: [B]."""
    if tl.max(bad.to(tl.int32), axis=0) > 0:
        row = tl.min(tl.where(bad, rows, 0x7FFFFFFFFFFFFFFF), axis=0)
        here = rows == row
        place = tl.max(tl.where(here, places, 0).to(tl.int64), axis=0)
        value = tl.max(tl.where(here, values, -0x8000000000000000), axis=0)
        note_fault(fault_ptr, row, tl.minimum(place, 0xFFFFF), value, step, CODE)


@triton.jit
def note_first_fault(fault_ptr, bad, row, columns, values, step, CODE: tl.constexpr):
    """`note_fault` for the first True of `bad` [B] in ascending columns [B]; values [B] int64."""
    if tl.max(bad.to(tl.int32), axis=0) > 0:
        first = tl.min(tl.where(bad, columns.to(tl.int64), 0xFFFFE), axis=0)
        value = tl.max(tl.where(columns == first, values, -0x8000000000000000), axis=0)
        note_fault(fault_ptr, row, tl.minimum(first, 0xFFFFE) + 1, value, step, CODE)


@triton.jit
def is_counter(value):
    """An id fits a 32-bit counter word."""
    return (value >= 0) & (value <= 0xFFFFFFFF)


@triton.jit
def chain_and_first(chains_ptr, first_ptr, n, num_candidates, step, fault_ptr):
    """Chain id and first candidate id of chain n, int64, after checking them."""
    chain = tl.load(chains_ptr + n)
    if is_counter(chain) == 0:
        note_fault(fault_ptr, n, 0, chain, step, CHAIN_FAULT)
    if first_ptr is not None:
        first = tl.load(first_ptr + n)
        if (is_counter(first) & is_counter(first + num_candidates - 1)) == 0:
            note_fault(fault_ptr, n, 0, first, step, CANDIDATE_FAULT)
    else:
        first = n * 0
    return chain, first


@triton.jit
def tie_margin(count):
    """Share of the total by which fast and sequential sums of `count` weights may differ.

    In units of 2**-53 of the total: each order of addition errs by at most count - 1; a weight
    exp(x) taken another way, perhaps as a product of two, by twice 7100 for the polynomial and
    512 + 3 |x| for its argument, |x| being below 300 where weight matters. This is more than four
    times their sum.
    """
    return (8.0 * count + 65536.0) * 1.1102230246251565e-16
