"""The CUDA sources and their launchers, run on the host, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import sanitize_gpu
import torch

from fastguide import ops, reference
from fastguide.errors import ArgumentError, NonFiniteError
from fastguide.kernels import cuda_launchers
from fastguide.testing import Case, assert_matches, cases

ALL = [case for op in ("unique_rows", "select") for case in cases(op)]
Launched = list[tuple[str, str]]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_emulated_kernels_match_the_reference(case: Case, on_host: Launched) -> None:
    got = case.run()
    assert {op for op, _ in on_host} <= {case.op}
    assert_matches(case.op, got, case.oracle())


def collisions(kind: str, rows: torch.Tensor) -> torch.Tensor:
    """Keys [R, 2] of equal rows are equal; those of different rows collide as `kind` says."""
    if kind == "none":
        return reference.masked_keys(rows)
    if kind == "some":
        return (rows.sum(1, keepdim=True) % 7).expand(-1, 2).contiguous()
    return torch.zeros(len(rows), 2, dtype=torch.int64)


@pytest.mark.parametrize("kind", ["none", "some", "all"])
@pytest.mark.parametrize("fused", [True, False])
def test_unique_rows_under_collisions(
    kind: str, fused: bool, on_host: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(cuda_launchers, "FUSED_ROWS", 0)
    pool = torch.randint(0, 3, (300 if kind == "none" else 40, 20))
    rows = pool[torch.randint(0, len(pool), (5000,))]
    keys = collisions(kind, rows)
    assert_matches("unique_rows", ops.unique_rows(rows, keys), reference.unique_rows(rows, keys))
    assert len(on_host) == (1 if fused else 3)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_unique_rows_compares_by_words(
    dtype: torch.dtype, fused: bool, on_host: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(cuda_launchers, "FUSED_ROWS", 0)
    rows = torch.randint(0, 2, (200, 7)).to(dtype)
    keys = torch.zeros(200, 2, dtype=torch.int64)
    assert_matches("unique_rows", ops.unique_rows(rows, keys), reference.unique_rows(rows, keys))
    assert cuda_launchers.WORDS[min(8, dtype.itemsize)] in on_host[0][1]


def selection(n: int, k: int, **kwargs: Any) -> dict[str, Any]:
    return dict(alpha=0.7, seed=3, chains=torch.arange(n), step=2, **kwargs)


@pytest.mark.parametrize("k", [1, 31, 32, 33, 64, 200])
def test_select_sums_over_any_number_of_candidates(k: int, on_host: Launched) -> None:
    values = torch.randn(40, k, dtype=torch.float64)
    values[:, k // 2 :: 3] = -torch.inf
    arguments = selection(40, k)
    assert_matches("select", ops.select(values, **arguments), reference.select(values, **arguments))


def test_select_of_wide_rows(on_host: Launched) -> None:
    values = torch.randn(3, 4)
    gather = [
        torch.randn(3, 4, 9000),
        torch.randint(0, 9, (3, 4, 5)),
        torch.randn(3, 4, 2049)[..., 1:],
    ]
    arguments = selection(3, 4, gather=gather)
    assert_matches("select", ops.select(values, **arguments), reference.select(values, **arguments))
    assert on_host == [("select", "select<true>")]


def test_select_with_more_items_than_one_launch_takes(on_host: Launched) -> None:
    values = torch.randn(3, 4)
    arguments = selection(3, 4, gather=[torch.randn(3, 4, i) for i in range(1, 20)])
    assert_matches("select", ops.select(values, **arguments), reference.select(values, **arguments))
    assert len(on_host) == 2


def test_the_first_fault_is_named(on_host: Launched) -> None:
    values = torch.randn(50, 40)
    values[9:, 35:] = torch.nan
    with pytest.raises(NonFiniteError, match="row 9, candidate 35"):
        ops.select(values, **selection(50, 40))
    good = torch.randn(50, 40)
    ops.select(good, **selection(50, 40))  # the record is clean again
    index = torch.full((50, 40), 3)
    with pytest.raises(ArgumentError, match="row 0: a gather index of 3 is no row"):
        ops.select(good, **selection(50, 40, gather=[(torch.zeros(3, 2), index)]))
    with pytest.raises(ArgumentError, match=r"chains\[0\] = -1"):
        ops.select(good, **{**selection(50, 40), "chains": torch.arange(-1, 49)})
    log_w = torch.zeros(4, 9)
    log_w[2] = -torch.inf
    arguments = dict(seed=1, step=6, chains=torch.arange(4) + 20)
    with pytest.raises(
        NonFiniteError, match=r"group 2 \(chain 22\) has no finite weight at step 6"
    ):
        ops.resample(log_w, **arguments)
    log_w[1, 5] = torch.inf
    with pytest.raises(NonFiniteError, match="log_w of group 1, particle 5"):
        ops.resample(log_w, **arguments)


def test_faults_wait_until_they_are_asked_for(on_host: Launched) -> None:
    bad = torch.full((2, 3), torch.nan)
    with ops.deferred_faults("cpu") as faults:
        ops.select(bad, **selection(2, 3))
        with pytest.raises(NonFiniteError, match="row 0, candidate 0"):
            faults.check()
        faults.check()
    with pytest.raises(NonFiniteError, match="row 0, candidate 0"), ops.deferred_faults("cpu"):
        ops.select(bad, **selection(2, 3))


def test_scalars_come_from_device_tensors(on_host: Launched) -> None:
    values, chains = torch.randn(60, 10), torch.arange(60)
    seed = torch.tensor([-5])
    step, alpha = torch.tensor([77]), torch.tensor([0.3], dtype=torch.float64)
    got = ops.select(values, alpha=alpha, seed=seed, chains=chains, step=step)
    due = reference.select(values, alpha=0.3, seed=2**64 - 5, chains=chains, step=77)
    assert_matches("select", got, due)
    ancestors = ops.resample(values, seed=seed, chains=chains, step=step).ancestors
    due = reference.resample(values, seed=2**64 - 5, chains=chains, step=77)[0]
    assert torch.equal(ancestors, due)
    step.fill_(2**24)
    with pytest.raises(ArgumentError, match=r"out of range \(step 16777216\)"):
        ops.resample(values, seed=seed, chains=chains, step=step)


def test_what_the_sanitizer_sees_is_every_kernel(on_host: Launched) -> None:
    sanitize_gpu.run_cuda("cpu")
    due = {(source.op, kernel) for source in cuda_launchers.SOURCES for kernel in source.kernels}
    assert set(on_host) == due
