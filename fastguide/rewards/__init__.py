"""Wrappers that make a reward fast: remembered, spread over processes, compiled.

Each takes a function and is a reward, callable(samples [B, ...]) -> [B] float64, that samplers
take like any other.
"""

from fastguide.rewards.cached import cached
from fastguide.rewards.jit import jit
from fastguide.rewards.parallel import parallel

__all__ = ["cached", "jit", "parallel"]
