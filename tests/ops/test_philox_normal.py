"""The normal stream: accuracy, law, tails, errors."""

from __future__ import annotations

import math

import pytest
import torch

from fastguide import ops, reference
from fastguide.errors import DtypeError
from fastguide.reference.philox import box_muller
from fastguide.testing import ks_uniform_p, z_score

ONE = torch.zeros(1, dtype=torch.int64)


def cdf(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.erfc(-z.double() / math.sqrt(2))


def test_float32_is_within_two_ulp_of_the_float64_definition() -> None:
    got = ops.philox_normal(3, torch.arange(50), 7, 2, num_elements=4000)
    due = reference.philox_normal(3, torch.arange(50), 7, 2, num_elements=4000, dtype=torch.float64)
    ulp = torch.nextafter(got, torch.tensor(torch.inf)).double() - got.double()
    assert float(((got.double() - due).abs() / ulp).max()) <= 2


def test_float64_is_within_a_few_ulp() -> None:
    size = dict(num_elements=4000, dtype=torch.float64)
    got = ops.philox_normal(3, torch.arange(50), 7, 2, **size)
    due = reference.philox_normal(3, torch.arange(50), 7, 2, **size)
    assert float(((got - due).abs() / due.abs()).max()) < 8 * 2.0**-52


def test_quarter_turns_are_exact() -> None:
    """cos and sin vanish exactly at quarter turns, where 2 pi w 2^-32 in floats would not."""
    quarters = torch.arange(4) * 2**30
    cos, sin = box_muller(torch.zeros(4, dtype=torch.int64), quarters)
    radius = math.sqrt(-2 * math.log(2.0**-33))
    assert [round(float(v) / radius, 12) for v in cos] == [1, 0, -1, 0]
    assert [round(float(v) / radius, 12) for v in sin] == [0, 1, 0, -1]
    assert float(cos[1]) == 0.0
    assert float(sin[2]) == 0.0


def test_elements_share_blocks_of_four() -> None:
    """Any prefix of the elements is the same draw."""
    whole = ops.philox_normal(1, torch.arange(3), 0, 2, num_elements=70)
    for elements in (1, 2, 3, 4, 5, 31, 32, 33, 69):
        part = ops.philox_normal(1, torch.arange(3), 0, 2, num_elements=elements)
        assert torch.equal(part, whole[..., :elements])


@pytest.mark.parametrize("axis", ["element", "candidate", "chain"])
def test_standard_normal_along_every_axis(axis: str) -> None:
    n = 200_000
    if axis == "element":
        z = ops.philox_normal(1, ONE, 0, 2, num_elements=n)
    elif axis == "candidate":
        z = ops.philox_normal(2, ONE, 0, 2, num_elements=4, num_candidates=n // 4)
    else:
        z = ops.philox_normal(3, torch.arange(n // 4), 0, 2, num_elements=4)
    z = z.double().flatten()
    assert ks_uniform_p(cdf(z)) > 1e-6
    assert abs(float(z.mean())) * math.sqrt(n) < 5
    assert abs(float(z.square().mean()) - 1) * math.sqrt(n / 2) < 5
    for threshold in (2.0, 3.0, 4.0):
        tail = math.erfc(threshold / math.sqrt(2))
        assert abs(z_score(int((z.abs() > threshold).sum()), n, tail)) < 5
    for lag in (1, 2, 3, 4):
        assert abs(float((z[:-lag] * z[lag:]).mean())) * math.sqrt(n - lag) < 5
        squares = (z[:-lag].square() - 1) * (z[lag:].square() - 1)
        assert abs(float(squares.mean())) / 2 * math.sqrt(n - lag) < 5


def test_far_tail() -> None:
    z = ops.philox_normal(4, torch.arange(1000), 0, 2, num_elements=4000)
    assert abs(z_score(int((z.abs() > 4.5).sum()), z.numel(), math.erfc(4.5 / math.sqrt(2)))) < 5
    assert float(z.abs().max()) < 6.67


def test_dtype_is_float32_or_float64() -> None:
    with pytest.raises(
        DtypeError, match=r"dtype must be torch.float32 or torch.float64, got torch.f"
    ):
        ops.philox_normal(0, ONE, 0, 2, num_elements=1, dtype=torch.float16)
    double = torch.empty(1, 1, 3, dtype=torch.float64)
    assert ops.philox_normal(0, ONE, 0, 2, num_elements=3, out=double) is double
