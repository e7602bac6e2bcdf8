"""The arithmetic under the kernels: the generator's known answers, exp and log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels are compiled where there is a GPU"
)

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from fastguide.kernels.doubles import exp_double, exp_fused, log_double  # noqa: E402
from fastguide.kernels.philox import philox  # noqa: E402


@triton.jit
def _philox_kernel(counter_ptr, out_ptr, seed: tl.int64):  # type: ignore[no-untyped-def]
    w = tl.arange(0, 1)
    c0 = tl.load(counter_ptr + w).to(tl.uint32)
    c1 = tl.load(counter_ptr + 1 + w).to(tl.uint32)
    c2 = tl.load(counter_ptr + 2 + w).to(tl.uint32)
    c3 = tl.load(counter_ptr + 3 + w).to(tl.uint32)
    words = philox(c0, c1, c2, c3, seed.to(tl.int64))
    for i in tl.static_range(4):
        tl.store(out_ptr + i + w, words[i].to(tl.int64))


# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "due"), KNOWN)
def test_philox_known_answers(counter: list[int], key: list[int], due: list[int]) -> None:
    out = torch.empty(4, dtype=torch.int64)
    seed = key[0] | key[1] << 32
    seed = seed - 2**64 if seed >= 2**63 else seed
    _philox_kernel[(1,)](torch.tensor(counter), out, seed)
    assert out.tolist() == due


@triton.jit
def _exp_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.arange(0, BLOCK)
    tl.store(out_ptr + o, exp_double(tl.load(x_ptr + o)))


@triton.jit
def _exp_fused_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.arange(0, BLOCK)
    tl.store(out_ptr + o, exp_fused(tl.load(x_ptr + o)))


@triton.jit
def _log_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.arange(0, BLOCK)
    tl.store(out_ptr + o, log_double(tl.load(x_ptr + o)))


def ulps(got: torch.Tensor, due: Any) -> float:
    due = np.asarray(due, dtype=np.longdouble)
    spacing = np.spacing(np.abs(due).astype(np.float64))
    return float(np.max(np.abs(got.numpy().astype(np.longdouble) - due) / spacing))


def test_exp() -> None:
    x = torch.linspace(-708, 100, 4096, dtype=torch.float64)
    out = torch.empty_like(x)
    _exp_kernel[(1,)](x, out, BLOCK=4096)
    assert ulps(out, np.exp(x.numpy().astype(np.longdouble))) < 1.0
    special = torch.tensor([0.0, -torch.inf, -800.0, -745.0], dtype=torch.float64)
    _exp_kernel[(1,)](special, out, BLOCK=4)
    assert out[:4].tolist() == [1.0, 0.0, 0.0, 5e-324]


def test_fused_exp_is_as_close_as_ties_are_told_apart() -> None:
    """Constants that lose their lower half would still pass where no draw comes near a step."""
    x = torch.cat([torch.linspace(-700, 300, 4000), torch.linspace(-1, 0, 96)]).double()
    out = torch.empty_like(x)
    _exp_fused_kernel[(1,)](x, out, BLOCK=4096)
    due = np.exp(x.numpy().astype(np.longdouble))
    assert float(np.max(np.abs(out.numpy() / due - 1))) < 2.0**-40
    _exp_fused_kernel[(1,)](torch.tensor([-torch.inf, -701.0]).double(), out, BLOCK=2)
    assert out[0] == out[1] == pytest.approx(np.exp(-700.0))


def test_log() -> None:
    x = torch.logspace(-300, 300, 4096, dtype=torch.float64)
    x = torch.where((x - 1).abs() < 0.1, 2.0, x)
    out = torch.empty_like(x)
    _log_kernel[(1,)](x, out, BLOCK=4096)
    assert ulps(out, np.log(x.numpy().astype(np.longdouble))) < 1.0
