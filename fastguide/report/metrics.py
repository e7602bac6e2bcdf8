"""Figures of a set of designs: their diversity, composition, and the errors of their averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastguide.errors import ArgumentError

Tensor = torch.Tensor
Array = NDArray[np.float64]

BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Diversity:
    """How different the rows of a set are from one another.

    Attributes:
        distinct: number of different rows.
        mean_distance: mean number of sites at which two rows differ, over all pairs; NaN below two.
        nearest_distance: mean over rows of the distance to the nearest other row; NaN below two.
    """

    distinct: int
    mean_distance: float
    nearest_distance: float


def hamming_distances(samples: Tensor) -> Tensor:
    """Number of differing sites of every pair of rows, [N, L] int64 -> [N, N] int64."""
    distances = torch.zeros(len(samples), len(samples), dtype=torch.int64)
    for site in samples.T:
        distances += site[:, None] != site[None, :]
    return distances


def diversity(samples: Tensor) -> Diversity:
    """`Diversity` of the rows of samples [N, L] int64."""
    distinct = len(torch.unique(samples, dim=0)) if len(samples) else 0
    if len(samples) < 2:
        return Diversity(distinct, float("nan"), float("nan"))
    distances = hamming_distances(samples).double()
    row, column = torch.triu_indices(len(samples), len(samples), offset=1)
    mean = distances[row, column].mean()
    nearest = distances.fill_diagonal_(float("inf")).amin(dim=1).mean()
    return Diversity(distinct, float(mean), float(nearest))


def composition(sequences: Sequence[str], letters: str) -> Array:
    """Share of each letter at each site, [L, len(letters)] float64.

    Raises:
        ArgumentError: no sequence, or sequences of different lengths.
    """
    if len({len(sequence) for sequence in sequences}) != 1:
        raise ArgumentError(
            f"sequences must be at least one string, all of one length; got {len(sequences)} of "
            f"lengths {sorted({len(sequence) for sequence in sequences})}"
        )
    table = np.array([list(sequence) for sequence in sequences])
    return np.stack([(table == letter).mean(axis=0) for letter in letters], axis=1)


def information(shares: Array) -> Array:
    """Bits of information per site of shares [L, V]: log2 V minus the entropy, [L] float64.

    Source: Schneider and Stephens 1990, without the small-sample correction.
    """
    logs = np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    return np.log2(shares.shape[1]) + (shares * logs).sum(axis=1)


def mean_error(values: Array) -> float:
    """Standard error of the mean of values [N]; NaN below two values."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def median_error(values: Array, seed: int = 0) -> float:
    """Standard error of the median of values [N], by the bootstrap; NaN below two values."""
    if len(values) < 2:
        return float("nan")
    draws = np.random.default_rng(seed).integers(len(values), size=(BOOTSTRAP_DRAWS, len(values)))
    return float(np.median(values[draws], axis=1).std(ddof=1))


def weighted_quantiles(values: Array, weights: Array, q: Sequence[float]) -> Array:
    """Smallest of `values` [N] up to which a share q of `weights` [N] lies, [len(q)] float64.

    Weights need no particular sum; values without weight never come out.
    """
    held = weights > 0
    order = np.argsort(values[held], kind="stable")
    values, shares = values[held][order], np.cumsum(weights[held][order])
    place = np.searchsorted(shares, np.asarray(q) * shares[-1])
    return np.asarray(values[np.minimum(place, len(values) - 1)], dtype=np.float64)


def upstream_starts(sequences: Sequence[str], *, in_frame: bool) -> float:
    """Share of sequences with an ATG in, or out of, frame with the codon after their last letter.

    NaN without sequences.
    """
    found = [
        any(
            sequence.startswith("ATG", site) and ((len(sequence) - site) % 3 == 0) == in_frame
            for site in range(len(sequence) - 2)
        )
        for sequence in sequences
    ]
    return float(np.mean(found)) if found else float("nan")


def share_of(sequences: Sequence[str], letters: str) -> float:
    """Share of all letters that are one of `letters`; NaN without sequences."""
    text = "".join(sequences)
    return sum(text.count(letter) for letter in letters) / len(text) if text else float("nan")
