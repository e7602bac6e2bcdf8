"""Zobrist keys: definition, increments, collisions, errors."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastguide import ops
from fastguide.errors import DtypeError, ShapeError
from fastguide.reference.masked_keys import site_words
from fastguide.testing import chi_square_p

GOLDEN = [
    [415109055450813718, -6827466254105094599],
    [6142008329115135614, 234658323945637964],
    [-8747132520115969987, -6799994557524075802],
]


def test_key_is_the_xor_of_site_words() -> None:
    x = torch.tensor([[5, 2, 2**40 + 3]])
    words = [site_words(torch.tensor(site), x[:, site]) for site in range(3)]
    assert torch.equal(ops.masked_keys(x), words[0] ^ words[1] ^ words[2])


def test_golden_keys() -> None:
    """Frozen with the stream: saved keys stay valid."""
    x = torch.tensor([[0, 1, 2, 3], [4, 4, 4, 4], [-1, 2**33, 0, 7]])
    assert ops.masked_keys(x).tolist() == GOLDEN


def test_one_change_moves_the_key_by_two_words() -> None:
    x = torch.randint(0, 5, (8, 30))
    y = x.clone()
    y[:, 11] = 9
    site = torch.tensor(11)
    change = site_words(site, x[:, 11]) ^ site_words(site, y[:, 11])
    assert torch.equal(ops.masked_keys(y), ops.masked_keys(x) ^ change)


def test_all_small_rows_have_distinct_keys() -> None:
    x = torch.tensor(list(itertools.product(range(6), repeat=6)))
    keys = {tuple(key) for key in ops.masked_keys(x).tolist()}
    assert len(keys) == 6**6


def test_key_bytes_are_uniform() -> None:
    keys = ops.masked_keys(torch.arange(20_000)[:, None])
    for byte in range(8):
        for word in range(2):
            counts = torch.bincount((keys[:, word] >> (8 * byte)) & 0xFF, minlength=256)
            assert chi_square_p(counts, [1] * 256) > 1e-6


def test_bad_arguments() -> None:
    with pytest.raises(
        DtypeError, match=r"x must be int64, got int32; convert it with x.to\(torch.int64\)"
    ):
        ops.masked_keys(torch.zeros(2, 3, dtype=torch.int32))
    with pytest.raises(ShapeError, match=r"x must have shape \[R, L\] = \[any, any\], got \[3\]"):
        ops.masked_keys(torch.zeros(3, dtype=torch.int64))
