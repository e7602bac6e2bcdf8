"""Rewards made of functions: fast (remembered, spread over processes, compiled), or combined.

Each is a reward, callable(samples [B, ...]) -> [B] float64, that samplers take like any other.
"""

from fastguide.rewards.cached import cached
from fastguide.rewards.combine import combine
from fastguide.rewards.jit import jit
from fastguide.rewards.parallel import parallel

__all__ = ["cached", "combine", "jit", "parallel"]
