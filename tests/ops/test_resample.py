"""Resampling: hand-worked rows, offspring bounds, unbiasedness, edges of the CDF, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, NonFiniteError, ShapeError
from fastguide.reference.resample import SCHEMES, running_sums
from fastguide.rng import Purpose
from fastguide.testing import chi_square_p

INF = torch.inf
EVERY_SCHEME = pytest.mark.parametrize("scheme", list(SCHEMES))
EVERY_BACKEND = pytest.mark.parametrize("backend", ["cpp", "reference"])
STREAM: dict[str, Any] = dict(seed=11, step=3)


def resample(weights: torch.Tensor, **changes: Any) -> ops.Resampling:
    """Of weights [G, N], not their logs."""
    arguments = {**STREAM, "chains": torch.arange(len(weights))}
    return ops.resample(weights.double().log(), **{**arguments, **changes})


def counts(ancestors: torch.Tensor) -> torch.Tensor:
    """Offspring of each particle: [G, N]."""
    zeros = torch.zeros_like(ancestors)
    return zeros.scatter_add(1, ancestors, torch.ones_like(ancestors))


def uniforms(n: int, chain: int = 0) -> list[float]:
    u = ops.philox_uniform(
        STREAM["seed"], torch.tensor([chain]), STREAM["step"], Purpose.RESAMPLE, num_elements=n
    )
    return u.flatten().tolist()


def by_hand(scheme: str, weights: list[float], u: list[float]) -> list[int]:
    """Ancestors of a short row, in loops: the definitions once more, from the text."""
    n, total = len(weights), sum(weights)
    edges = [n * sum(weights[: i + 1]) / total for i in range(n)]

    def below(point: float) -> int:
        return next(i for i in range(n) if edges[i] > point)

    if scheme == "systematic":
        return [below(i + u[0]) for i in range(n)]
    if scheme == "stratified":
        return [below(i + u[i]) for i in range(n)]
    if scheme == "multinomial":
        return [below(n * u[i]) for i in range(n)]
    kept = [i for i in range(n) for _ in range(int(n * weights[i] / total))]
    rest = [n * w / total - int(n * w / total) for w in weights]
    for j in range(n - len(kept)):
        point, i = u[j] * sum(rest), 0
        while sum(rest[: i + 1]) <= point:
            i += 1
        kept.append(i)
    return kept


@EVERY_BACKEND
@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial", "residual"])
@pytest.mark.parametrize(
    "weights",
    [
        [1.0, 1.0, 1.0, 1.0],
        [0.5, 2.0, 1.5, 0.0],
        [0.0, 0.0, 5.0, 0.0],
        [3.0, 0.25, 0.25, 0.5],
        [0.0, 1.0, 0.0, 1.0],
        [8.0, 4.0, 2.0, 2.0],
    ],
)
def test_hand_worked_rows(scheme: str, weights: list[float], backend: str) -> None:
    with ops.use_backend(backend):
        got = resample(torch.tensor([weights]), scheme=scheme)
    assert got.ancestors[0].tolist() == by_hand(scheme, weights, uniforms(4))


@EVERY_BACKEND
@pytest.mark.parametrize(
    ("weights", "due"),
    [
        ([1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5]),
        ([0, 3, 0, 0, 2, 1], [1, 1, 1, 4, 4, 5]),
        ([6, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
        ([0, 0, 0, 0, 0, 6], [5, 5, 5, 5, 5, 5]),
        ([0, 2, 2, 0, 2, 0], [1, 1, 2, 2, 4, 4]),
        ([2, 1, 0, 1, 0, 2], [0, 0, 1, 3, 5, 5]),
    ],
)
def test_whole_shares_leave_nothing_to_chance(
    weights: list[int], due: list[int], backend: str
) -> None:
    """Where N w is whole, the low-variance schemes copy exactly, whatever the draw."""
    rows = torch.tensor([weights] * 200) / 6
    with ops.use_backend(backend):
        for scheme in ("systematic", "stratified", "residual", "ssp"):
            got = resample(rows, scheme=scheme)
            # A share of 3 may round to 2.999...: its last copy is then the residual's only draw.
            assert got.ancestors.sort(1).values.tolist() == [due] * 200, scheme


@EVERY_SCHEME
@pytest.mark.parametrize("n", [2, 5, 64])
def test_unbiased(scheme: str, n: int) -> None:
    groups = 40_000 if n < 64 else 8_000
    row = 0.05 + torch.rand(n, dtype=torch.float64) ** 3
    row[n // 2] = 0
    got = resample(row.expand(groups, n), scheme=scheme)
    offspring = counts(got.ancestors).double()
    due = n * row / row.sum()
    error = (offspring.mean(0) - due).abs()
    # A count that never varies has no standard error, only its rounding.
    assert bool((error <= 5 * offspring.std(0) / math.sqrt(groups) + 1e-12).all())
    assert bool((offspring[:, n // 2] == 0).all())
    assert bool((offspring.sum(1) == n).all())


@EVERY_SCHEME
def test_offspring_bounds(scheme: str) -> None:
    """Hard facts of each scheme, on heavy-tailed weights."""
    for n in (1, 2, 63, 1000, 4097):
        log_w = 3 * torch.randn(6, n, dtype=torch.float64)
        got = ops.resample(log_w, **STREAM, chains=torch.arange(6), scheme=scheme)
        offspring = counts(got.ancestors).double()
        due = n * log_w.softmax(-1)
        slack = 1e-9 * n
        if scheme in ("systematic", "ssp"):
            assert bool(((offspring - due).abs() < 1 + slack).all())
        if scheme == "stratified":
            assert bool(((offspring - due).abs() < 2 + slack).all())
        if scheme in ("residual", "ssp", "systematic"):
            assert bool((offspring > due - 1 - slack).all())
        assert bool((offspring.sum(1) == n).all())


def test_systematic_offspring_of_a_million() -> None:
    n = 1_000_000
    log_w = torch.randn(1, n)
    got = ops.resample(log_w, **STREAM, chains=torch.zeros(1).long())
    error = (counts(got.ancestors).double() - n * log_w.double().softmax(-1)).abs()
    assert float(error.max()) < 1 + 1e-6
    assert bool((got.ancestors.diff() >= 0).all())


def test_multinomial_ancestors_are_independent() -> None:
    groups = 30_000
    row = torch.tensor([0.5, 0.2, 0.3])
    got = resample(row.expand(groups, 3), scheme="multinomial").ancestors
    pair = 3 * got[:, 0] + got[:, 2]
    law = (row[:, None] * row).flatten()
    assert chi_square_p(torch.bincount(pair, minlength=9), law) > 1e-6


def test_killing_keeps_the_best_in_place() -> None:
    row = torch.tensor([0.2, 1.0, 0.5, 0.0])
    got = resample(row.expand(20_000, 4), scheme="killing").ancestors
    assert bool((got[:, 1] == 1).all())
    stays = (got == torch.arange(4)).double().mean(0)
    share = row / row.sum()
    due = row + (1 - row) * share
    assert bool(((stays - due).abs() < 5 * (due * (1 - due) / 20_000).sqrt() + 1e-12).all())


@EVERY_SCHEME
@EVERY_BACKEND
def test_a_zero_weight_is_never_drawn(scheme: str, backend: str) -> None:
    """Leading, inner and trailing zeros, weights that underflow, one live particle."""
    n, groups = 63, 40
    log_w = torch.randn(groups, n)
    log_w[:, :5] = log_w[:, 20:30] = log_w[:, -7:] = -INF
    log_w[1] = -INF
    log_w[1, 62] = -1e30
    log_w[2] = -INF
    log_w[2, 0] = 80.0
    log_w[3, 6:] = -1e9
    with ops.use_backend(backend):
        got = ops.resample(log_w, **STREAM, chains=torch.arange(groups), scheme=scheme)
    assert bool((log_w.gather(1, got.ancestors) > -1e8)[3].all())
    assert bool(torch.isfinite(log_w.gather(1, got.ancestors)).all())
    assert got.ancestors[1].unique().tolist() == [62]
    assert got.ancestors[2].unique().tolist() == [0]
    assert float(got.ess[1]) == float(got.ess[2]) == 1.0


@EVERY_SCHEME
def test_ends_of_the_cdf(scheme: str) -> None:
    """Float32 weights whose running sum ends below, at or above 1, with zeros behind the end."""
    for n in (3, 10, 1000, 4097):
        rows = torch.rand(50, n)
        rows[:, -1] = 0
        rows = rows / rows.sum(-1, keepdim=True)
        got = ops.resample(rows.log(), **STREAM, chains=torch.arange(50), scheme=scheme)
        assert bool((got.ancestors >= 0).all())
        assert bool((got.ancestors < n - 1).all())


def test_running_sums_add_in_blocks() -> None:
    w = torch.rand(2, 1000, dtype=torch.float64)
    torch.testing.assert_close(running_sums(w), w.cumsum(-1), rtol=1e-14, atol=0)
    assert bool((running_sums(w).diff() >= 0).all())


def test_log_z_and_ess() -> None:
    log_w = torch.tensor([[0.0, math.log(3.0)], [-1000.0, -1000.0], [1e4, -INF]])
    got = ops.resample(log_w.double(), **STREAM, chains=torch.arange(3))
    torch.testing.assert_close(got.log_z, log_w.double().logsumexp(-1) - math.log(2))
    torch.testing.assert_close(got.ess, torch.tensor([1.6, 2.0, 1.0], dtype=torch.float64))
    assert got.resampled.tolist() == [True] * 3


@EVERY_BACKEND
def test_the_threshold_decides_group_by_group(backend: str) -> None:
    """ess 2.56, 4 (equal weights) and 1 of N = 4, and what is gathered with them."""
    rows = torch.tensor([[1.0, 3.0, 1.0, 3.0], [1.0] * 4, [0.0, 0.0, 1.0, 0.0]])
    items = torch.arange(12).view(3, 4)
    with ops.use_backend(backend):
        for threshold, due in (
            (None, [True, True, True]),
            (0.9, [True, False, True]),
            (0.5, [False, False, True]),
            (0.0, [False, False, False]),
            (1.0, [True, False, True]),
        ):
            got = resample(rows, ess_threshold=threshold, gather=[items])
            assert got.resampled.tolist() == due
            for g, resampled in enumerate(due):
                assert torch.equal(got.gathered[0][g], items[g, got.ancestors[g]])
                if not resampled:
                    assert got.ancestors[g].tolist() == [0, 1, 2, 3]
                    assert float(got.log_z[g]) == 0.0
                else:
                    assert float(got.log_z[g]) == pytest.approx(math.log(float(rows[g].mean())))


def test_gather_takes_the_rows_of_the_ancestors() -> None:
    g, n = 3, 40
    log_w = torch.randn(g, n)
    dense = torch.randn(g, 2 * n, 3, 2)[:, ::2]
    source, where = torch.randn(9, 5, 2)[..., 0], torch.randint(0, 9, (g, n))
    flags = torch.rand(g, n) < 0.5
    for scheme in SCHEMES:
        got = ops.resample(
            log_w,
            **STREAM,
            chains=torch.arange(g),
            scheme=scheme,
            gather=[dense, (source, where), flags],
        )
        rows = torch.arange(g)[:, None]
        assert torch.equal(got.gathered[0], dense[rows, got.ancestors])
        assert torch.equal(got.gathered[1], source[where[rows, got.ancestors]])
        assert torch.equal(got.gathered[2], flags[rows, got.ancestors])


@EVERY_SCHEME
def test_groups_draw_by_their_own_chain(scheme: str) -> None:
    """A split run draws the same; other chains, steps and seeds draw anew."""
    log_w = torch.randn(1, 200).expand(6, 200)
    whole = ops.resample(log_w, **STREAM, chains=torch.arange(6), scheme=scheme).ancestors
    for g in range(6):
        alone = ops.resample(log_w[:1], **STREAM, chains=torch.tensor([g]), scheme=scheme)
        assert torch.equal(alone.ancestors[0], whole[g])
        assert g == 0 or not torch.equal(whole[g], whole[0])
    for change in (dict(seed=12), dict(step=4)):
        other = ops.resample(
            log_w, **{**STREAM, **change}, chains=torch.arange(6), scheme=scheme
        ).ancestors
        assert not torch.equal(other, whole)


@EVERY_SCHEME
def test_a_constant_does_not_move_the_ancestors(scheme: str) -> None:
    log_w = torch.randn(3, 500, dtype=torch.float64)
    base = ops.resample(log_w, **STREAM, chains=torch.arange(3), scheme=scheme)
    moved = ops.resample(log_w + 4096.0, **STREAM, chains=torch.arange(3), scheme=scheme)
    different = int((base.ancestors != moved.ancestors).sum())
    assert different <= 1
    torch.testing.assert_close(moved.log_z, base.log_z + 4096.0)


@EVERY_BACKEND
def test_bad_contents(backend: str) -> None:
    log_w = torch.zeros(3, 4)
    common: dict[str, Any] = dict(seed=1, step=5, chains=torch.tensor([7, 8, 9]))
    with ops.use_backend(backend):
        for bad in (torch.nan, INF):
            wrong = log_w.clone()
            wrong[2, 1] = bad
            with pytest.raises(
                NonFiniteError, match=r"group 2, particle 1 is NaN or \+inf at step 5"
            ):
                ops.resample(wrong, **common)
        dead = log_w.clone()
        dead[1] = -INF
        with pytest.raises(
            NonFiniteError, match=r"group 1 \(chain 8\) has no finite weight at step 5"
        ):
            ops.resample(dead, **common)
        with pytest.raises(ArgumentError, match=r"chains\[1\] = -1 must lie"):
            ops.resample(log_w, **{**common, "chains": torch.tensor([0, -1, 0])})
        item = (torch.zeros(5, 2), torch.full((3, 4), 5))
        with pytest.raises(ArgumentError, match="a gather index of 5 is no row"):
            ops.resample(log_w, **common, gather=[item])


def test_bad_arguments() -> None:
    log_w = torch.zeros(3, 4)
    common: dict[str, Any] = dict(seed=1, step=5, chains=torch.arange(3))
    with pytest.raises(
        ArgumentError, match=r"scheme must be one of systematic, .*, got 'bootstrap'"
    ):
        ops.resample(log_w, **common, scheme="bootstrap")
    with pytest.raises(
        ArgumentError, match=r"ess_threshold must be a share of N in \[0, 1\], got 2"
    ):
        ops.resample(log_w, **common, ess_threshold=2)
    with pytest.raises(ArgumentError, match=r"log_w.shape\[1\] must be at least 1, got 0"):
        ops.resample(log_w[:, :0], **common)
    with pytest.raises(ShapeError, match=r"log_w must have shape \[G, N\]"):
        ops.resample(log_w[0], **common)
    with pytest.raises(ShapeError, match=r"chains must have shape \[G\]"):
        ops.resample(log_w, **{**common, "chains": torch.arange(2)})
    with pytest.raises(ShapeError, match=r"gather\[0\] must have shape \[G, N, ...\]"):
        ops.resample(log_w, **common, gather=[torch.zeros(3, 5)])
    out = ops.resample(log_w, **common)
    with pytest.raises(ArgumentError, match="gathered must hold one tensor per gather item"):
        ops.resample(log_w, **common, gather=[log_w], out=(*out[:4], ()))
