"""gaussian_propose against torch.randn with arithmetic, and against what bounds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from harness import RECORDS, at_level, num_bytes

from fastguide import ops
from fastguide.kernels import cpu
from fastguide.testing import ks_uniform_p

A, B, S = 0.98, -0.1, 0.17


@dataclass
class Setting:
    """Inputs of one comparison."""

    n: int
    k: int
    d: int
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.x, self.output, self.shift = torch.randn(
            3, self.n, self.d, generator=g, dtype=self.dtype
        )
        self.chains = torch.arange(self.n)
        shape = (self.n, self.k, self.d)
        # One output for each who writes into one, so that nobody finds it warm from another.
        self.noise, self.filled = torch.empty(2, *shape, dtype=self.dtype)
        self.plain, self.without = self.propose(None), self.propose(None, s=0.0)
        self.shifted = self.propose(None, shift=self.shift)

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"N={self.n} K={self.k} D={self.d}, {name}"

    def propose(self, out: ops.GaussianProposal | None, **changes: Any) -> ops.GaussianProposal:
        arguments = dict(a=A, b=B, s=S, seed=1, chains=self.chains, step=3, num_candidates=self.k)
        return ops.gaussian_propose(self.x, self.output, **{**arguments, **changes}, out=out)

    def bytes_moved(self, *others: Any) -> int:
        return num_bytes(self.x, self.output, *others)

    def ours(self) -> torch.Tensor:
        return self.propose(self.plain).candidates

    def ours_shifted(self) -> ops.GaussianProposal:
        return self.propose(self.shifted, shift=self.shift)

    def out_of_place(self) -> torch.Tensor:
        mean = A * self.x + B * self.output
        return mean[:, None] + S * torch.randn(self.n, self.k, self.d, dtype=self.dtype)

    def in_place(self) -> torch.Tensor:
        torch.randn(self.n, self.k, self.d, dtype=self.dtype, out=self.noise)
        mean = torch.add(A * self.x, self.output, alpha=B)
        return self.noise.mul_(S).add_(mean[:, None])

    def shifted_in_place(self) -> tuple[torch.Tensor, torch.Tensor]:
        torch.randn(self.n, self.k, self.d, dtype=self.dtype, out=self.noise)
        scaled = self.shift / S
        products = torch.bmm(self.noise, scaled[..., None]).squeeze(-1)
        log_ratio = -products - 0.5 * scaled.square().sum(-1, keepdim=True)
        mean = torch.add(A * self.x, self.output, alpha=B).add_(self.shift)
        return self.noise.mul_(S).add_(mean[:, None]), log_ratio

    def compiled(self) -> Callable[[], torch.Tensor]:
        n, k, d = self.n, self.k, self.d

        def step(x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            return (A * x + B * output)[:, None] + S * torch.randn(n, k, d)

        run = torch.compile(step, dynamic=False)
        return lambda: run(self.x, self.output)

    def without_noise(self) -> torch.Tensor:
        """The same loads and stores, and the arithmetic, without the random numbers."""
        return self.propose(self.without, s=0.0).candidates

    def fill(self) -> torch.Tensor:
        return self.filled.fill_(1.0)

    def assert_law(self, candidates: torch.Tensor) -> None:
        mean = A * self.x.double() + B * self.output.double()
        z = (candidates.double() - mean[:, None]) / S
        assert ks_uniform_p(0.5 * torch.erfc(-z[:2, :2].flatten() / math.sqrt(2))) > 1e-6


USUAL = Setting(16, 8, 12_288)


def comparison() -> dict[str, Any]:
    """What `harness.measured` takes at the usual size."""
    torch.manual_seed(0)
    rivals = {
        "eager, in place": USUAL.in_place,
        "eager, out of place": USUAL.out_of_place,
        "torch.compile": USUAL.compiled(),
    }
    for draw in (USUAL.ours, *rivals.values()):
        USUAL.assert_law(draw())
    due = {"avx512": 4.0, "avx2": 2.5}.get(cpu.cpu_level())
    return dict(
        op="gaussian_propose",
        setting=str(USUAL),
        ours=USUAL.ours,
        rivals={
            **rivals,
            "ours without noise (memory bound)": USUAL.without_noise,
            "fill of the output (bound)": USUAL.fill,
        },
        bytes_moved=USUAL.bytes_moved(USUAL.plain),
        due={"eager, in place": due, "eager, out of place": due} if due else None,
    )


def bench_gaussian_propose(compare: Callable[..., None]) -> None:
    """Bound by the generator, not by memory: without noise the same loads and stores take 37 % of
    the time with AVX-512 and 26 % with AVX2 (EPYC of the Zen 4 generation)."""
    compare(**comparison())


@pytest.mark.skipif("avx2" not in cpu.supported_levels(), reason="needs AVX2")
def bench_gaussian_propose_avx2() -> None:
    RECORDS.append(at_level("avx2", "bench_gaussian_propose"))


@pytest.mark.parametrize(
    ("n", "k", "d", "dtype"),
    [
        (1, 1, 12_288, torch.float32),
        (16, 1, 12_288, torch.float32),
        (64, 8, 64, torch.float32),
        (1, 8, 196_608, torch.float32),
        (16, 8, 12_288, torch.float64),
    ],
)
def bench_gaussian_propose_other_shapes(
    compare: Callable[..., None], n: int, k: int, d: int, dtype: torch.dtype
) -> None:
    setting = Setting(n, k, d, dtype)
    for draw in (setting.ours, setting.in_place, setting.out_of_place):
        setting.assert_law(draw())
    compare(
        "gaussian_propose",
        str(setting),
        setting.ours,
        {"eager, in place": setting.in_place, "eager, out of place": setting.out_of_place},
        bytes_moved=setting.bytes_moved(setting.plain),
    )


def bench_gaussian_propose_shifted(compare: Callable[..., None]) -> None:
    """With a shift of the mean and its log-ratio."""
    candidates, log_ratio = USUAL.shifted_in_place()
    USUAL.assert_law(candidates - USUAL.shift[:, None])
    USUAL.assert_law(USUAL.ours_shifted().candidates - USUAL.shift[:, None])
    drift = -0.5 * (USUAL.shift.double() / S).square().sum(-1, keepdim=True)
    for each in (log_ratio.double(), USUAL.ours_shifted().log_ratio):
        z = (each - drift) / (-2 * drift).sqrt()
        assert float(z.abs().max()) < 6
    compare(
        "gaussian_propose",
        f"{USUAL}, shift and log-ratio",
        USUAL.ours_shifted,
        {"eager, in place": USUAL.shifted_in_place},
        bytes_moved=USUAL.bytes_moved(USUAL.shift, USUAL.shifted),
    )
