"""What tests and benches share: inputs with their oracles, comparisons, poison, statistics.

Not imported by the package itself.
"""

from __future__ import annotations

from fastguide.testing.asserts import assert_matches
from fastguide.testing.case import Case
from fastguide.testing.cases import cases
from fastguide.testing.poison import poisoned
from fastguide.testing.statistics import chi_square_p, ks_uniform_p, z_score
from fastguide.testing.training_cases import TRAINING_OPS

__all__ = [
    "TRAINING_OPS",
    "Case",
    "assert_matches",
    "cases",
    "chi_square_p",
    "ks_uniform_p",
    "poisoned",
    "z_score",
]
