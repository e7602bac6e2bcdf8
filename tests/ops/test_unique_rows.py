"""Distinct rows: exactness under any keys, order, errors."""

from __future__ import annotations

import pytest
import torch

from fastguide import ops, reference
from fastguide.errors import DtypeError, ShapeError
from fastguide.testing import Case, cases


@pytest.mark.parametrize("case", cases("unique_rows"), ids=str)
def test_the_groups_are_a_partition(case: Case) -> None:
    rows = case.args[0]
    first, inverse, count = case.run()
    groups = int(count)
    opened = first[:groups]
    assert torch.equal(opened, opened.sort().values)
    assert not bool(first[groups:].any())
    assert torch.equal(rows[first[inverse]], rows)
    assert torch.equal(inverse[opened], torch.arange(groups))
    assert groups == len(torch.unique(rows, dim=0)) if rows.numel() else groups <= 1


@pytest.mark.parametrize("key_bits", [0, 1, 3])
def test_exact_whatever_the_keys(key_bits: int) -> None:
    """Keys of few bits, a function of the row, make different rows share keys all the time."""
    for r in range(60):
        x = torch.randint(0, 1 + r % 4, (r, 3))
        keys = ops.masked_keys(x) & ((1 << key_bits) - 1)
        for got, due in zip(ops.unique_rows(x, keys), reference.unique_rows(x), strict=True):
            assert torch.equal(got, due)


def test_many_rows_with_one_key() -> None:
    """The worst case of a hash table is slow, not wrong."""
    x = torch.arange(600)[:, None] % 500
    got = ops.unique_rows(x, torch.full((600, 2), 7))
    assert int(got.count) == 500
    assert torch.equal(got.inverse, x[:, 0])


def test_keys_that_differ_in_high_bits_only() -> None:
    x = torch.arange(1000)[:, None]
    keys = torch.stack([x[:, 0] << 50, torch.zeros(1000, dtype=torch.int64)], dim=1)
    assert int(ops.unique_rows(x, keys).count) == 1000


def test_bad_arguments() -> None:
    with pytest.raises(DtypeError, match=r"rows must hold integers, got torch.float32; convert"):
        ops.unique_rows(torch.zeros(2, 2))
    with pytest.raises(
        ShapeError, match=r"rows must have shape \[R, L\] = \[any, any\], got \[2\]"
    ):
        ops.unique_rows(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"keys must have shape \[R, 2\] = \[2, 2\], got \[2, 1\]"):
        ops.unique_rows(torch.zeros(2, 2).long(), torch.zeros(2, 1).long())
