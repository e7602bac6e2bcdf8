"""What tests and benches share: inputs with their oracles, comparisons, poison, statistics.

Not imported by the package itself.
"""

from __future__ import annotations

from fastguide.testing.asserts import assert_matches
from fastguide.testing.cases import Case, cases
from fastguide.testing.poison import poisoned
from fastguide.testing.statistics import chi_square_p, ks_uniform_p, z_score

__all__ = [
    "Case",
    "assert_matches",
    "cases",
    "chi_square_p",
    "ks_uniform_p",
    "poisoned",
    "z_score",
]
