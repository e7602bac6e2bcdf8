"""Soft values: closed forms, limits, errors."""

from __future__ import annotations

import math

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, DtypeError, ShapeError

ROW = torch.tensor([[1.0, 2.0, 4.0, 8.0]], dtype=torch.float64)


def test_log_mean_exp() -> None:
    for alpha in (0.5, 1.0, 3.0):
        due = alpha * math.log(sum(math.exp(v / alpha) for v in ROW[0].tolist()) / 4)
        assert float(ops.soft_value(ROW, alpha)) == pytest.approx(due, rel=1e-14)


def test_limits_of_alpha() -> None:
    """Large alpha: the mean; small alpha: the maximum (less alpha log S); 0: the maximum."""
    assert float(ops.soft_value(ROW, 1e9)) == pytest.approx(3.75, rel=1e-6)
    assert float(ops.soft_value(ROW, 1e-3)) == pytest.approx(8 - 1e-3 * math.log(4), rel=1e-14)
    assert float(ops.soft_value(ROW, 0.0)) == 8.0


def test_a_constant_shifts_the_value() -> None:
    values = torch.randn(20, 6, dtype=torch.float64)
    for kwargs in ({}, {"kind": "mean"}, {"kind": "cvar", "tau": 0.4}):
        base = ops.soft_value(values, 0.2, **kwargs)
        torch.testing.assert_close(ops.soft_value(values + 100, 0.2, **kwargs), base + 100)


@pytest.mark.parametrize(
    ("tau", "due"),
    [(0.25, 1.0), (0.5, 1.5), (0.75, 7 / 3), (1.0, 3.75), (0.375, 4 / 3), (0.1, 1.0)],
)
def test_cvar_is_the_mean_of_the_worst_share(tau: float, due: float) -> None:
    shuffled = ROW[:, torch.tensor([2, 0, 3, 1])]
    assert float(ops.soft_value(shuffled, 1.0, kind="cvar", tau=tau)) == pytest.approx(due)


def test_infinities_and_nan() -> None:
    inf = torch.inf
    values = torch.tensor([[-inf, -inf], [-inf, 0.0], [torch.nan, 0.0], [inf, 0.0]])
    got = ops.soft_value(values, 1.0)
    assert got[0] == -inf
    assert float(got[1]) == pytest.approx(-math.log(2))
    assert bool(torch.isnan(got[2]))
    assert got[3] == inf


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="kind must be one of lme, mean, cvar, got 'median'"):
        ops.soft_value(ROW, 1.0, kind="median")
    with pytest.raises(ArgumentError, match="alpha must be finite and >= 0"):
        ops.soft_value(ROW, -1.0)
    with pytest.raises(ArgumentError, match="tau belongs to kind='cvar' alone, got kind='lme'"):
        ops.soft_value(ROW, 1.0, tau=0.5)
    with pytest.raises(
        ArgumentError, match="tau belongs to kind='cvar' alone, got kind='cvar', tau=No"
    ):
        ops.soft_value(ROW, 1.0, kind="cvar")
    with pytest.raises(ArgumentError, match=r"tau must be a share in \(0, 1\], got 1.5"):
        ops.soft_value(ROW, 1.0, kind="cvar", tau=1.5)
    with pytest.raises(ShapeError, match=r"values must have shape \[R, S\]"):
        ops.soft_value(ROW[0], 1.0)
    with pytest.raises(ArgumentError, match=r"values.shape\[1\] must be at least 1, got 0"):
        ops.soft_value(ROW[:, :0], 1.0)
    with pytest.raises(DtypeError, match="values must be float32 or float64, got int64"):
        ops.soft_value(ROW.long(), 1.0)
