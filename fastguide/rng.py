"""The random stream "rng v1": which counter each draw uses.

Every random number of the library is Philox4x32-10 (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3") at a counter that names the draw, so a number depends on
(seed, chain, step, candidate, element) and on nothing else: not on batch size, thread count or
the order of evaluation.

    key      (seed & 0xffffffff, seed >> 32)
    counter  c0 = element or site, c1 = candidate, c2 = global chain, c3 = step << 8 | purpose

The stream is frozen. A change to it is a CHANGELOG entry under "Numerics".
"""

from __future__ import annotations

from enum import IntEnum

import torch

from fastguide.errors import ArgumentError, DtypeError

MAX_CHAIN = 2**32
MAX_STEP = 2**24


class Purpose(IntEnum):
    """The low byte of the counter word c3: what a draw is for."""

    PRIOR = 1
    NOISE = 2
    REVEAL = 3
    TOKEN = 4
    POSTERIOR = 5
    LOOKAHEAD = 6
    SELECT = 7
    FINAL = 8
    RESAMPLE = 9
    MASK = 10
    RELAX = 11


def check_seed(seed: int) -> int:
    """Return `seed` as an int in [0, 2**64), or raise ArgumentError."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DtypeError(f"seed must be an int, got {type(seed).__name__}: {seed!r}")
    if not 0 <= seed < 2**64:
        raise ArgumentError(f"seed must lie in [0, 2**64), got {seed}; take seed % 2**64")
    return seed


def check_step(step: int) -> int:
    """Return `step` as an int in [0, 2**24), or raise ArgumentError."""
    if not 0 <= step < MAX_STEP:
        raise ArgumentError(
            f"step must lie in [0, 2**24) (it shares a counter word with the purpose), got {step}"
        )
    return int(step)


def chain_ids(
    num_chains: int, first_chain: int = 0, device: torch.device | None = None
) -> torch.Tensor:
    """Global chain ids first_chain, ..., first_chain + num_chains - 1 as [N] int64.

    Raises:
        ArgumentError: an id would reach 2**32, where the counter word would wrap.
    """
    if first_chain < 0 or first_chain + num_chains > MAX_CHAIN:
        raise ArgumentError(
            f"chain ids must lie in [0, 2**32), got first_chain={first_chain} with "
            f"{num_chains} chains; use another seed instead of a larger chain id"
        )
    return torch.arange(first_chain, first_chain + num_chains, dtype=torch.int64, device=device)
