"""P-values of the tests that draws must pass: with fixed keys and p > 1e-6 none fails by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def chi_square_p(counts: torch.Tensor, probabilities: torch.Tensor | Sequence[float]) -> float:
    """P-value of Pearson's chi-square test of [C] counts; cells expecting less than 5 are merged.

    Cells of probability 0 must be empty: one draw there gives p = 0.
    """
    observed = counts.double().flatten()
    p = torch.as_tensor(probabilities, dtype=torch.float64).flatten()
    p = p / p.sum()
    if bool((observed[p == 0] > 0).any()):
        return 0.0
    expected = p * observed.sum()
    large = expected >= 5
    if bool((~large & (p > 0)).any()):
        observed = torch.cat([observed[large], observed[~large].sum()[None]])
        expected = torch.cat([expected[large], expected[~large].sum()[None]])
    else:
        observed, expected = observed[large], expected[large]
    if len(observed) < 2:
        raise ValueError("fewer than two cells: draw more, or test something else")
    statistic = ((observed - expected).square() / expected).sum()
    freedom = torch.tensor((len(observed) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def ks_uniform_p(u: torch.Tensor) -> float:
    """P-value of the two-sided Kolmogorov-Smirnov test that `u` [n] is uniform on [0, 1].

    Asymptotic, fit for n > 1000. Map other laws to uniforms by their CDF first.
    """
    x = u.double().flatten().sort().values
    n = len(x)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum(ranks[1:] - x, x - ranks[:-1]).max())
    s = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    if s < 0.2:
        return 1.0
    terms = ((-1) ** (j - 1) * math.exp(-2 * (j * s) ** 2) for j in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))


def z_score(successes: int, trials: int, probability: float) -> float:
    """Standard deviations between a binomial count and its mean."""
    sd = math.sqrt(trials * probability * (1 - probability))
    return (successes - trials * probability) / sd
