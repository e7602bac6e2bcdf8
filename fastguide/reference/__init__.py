"""Plain-PyTorch definitions of every op: the oracle that each compiled backend is tested against.

Each module holds one function with the op's arithmetic, written to be read. It imports nothing
else of the package, works on any device, and computes in float64. Arguments are assumed to have
the right shapes and dtypes (`fastguide.ops` checks them); wrong *contents*, such as an index out of
range or a NaN, raise `Fault`.
"""

from __future__ import annotations

from fastguide.reference.faults import Fault
from fastguide.reference.gaussian_ppo import gaussian_ppo
from fastguide.reference.gaussian_propose import gaussian_propose
from fastguide.reference.gumbel_softmax_step import gumbel_softmax_step
from fastguide.reference.masked_keys import masked_keys
from fastguide.reference.masked_posterior import masked_posterior
from fastguide.reference.masked_ppo import masked_ppo
from fastguide.reference.masked_propose import masked_propose
from fastguide.reference.philox_normal import philox_normal
from fastguide.reference.philox_uniform import philox_uniform
from fastguide.reference.resample import SCHEMES, resample
from fastguide.reference.select import select
from fastguide.reference.soft_value import soft_value
from fastguide.reference.subs_cross_entropy import subs_cross_entropy
from fastguide.reference.unique_rows import unique_rows

__all__ = [
    "SCHEMES",
    "Fault",
    "gaussian_ppo",
    "gaussian_propose",
    "gumbel_softmax_step",
    "masked_keys",
    "masked_posterior",
    "masked_ppo",
    "masked_propose",
    "philox_normal",
    "philox_uniform",
    "resample",
    "select",
    "soft_value",
    "subs_cross_entropy",
    "unique_rows",
]
