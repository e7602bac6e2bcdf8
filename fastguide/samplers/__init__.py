"""Sampling methods: policies over the engine's one loop."""

from fastguide.samplers.base import Sampler
from fastguide.samplers.best_of_n import BestOfN
from fastguide.samplers.svdd import SVDD
from fastguide.samplers.unguided import Unguided

__all__ = ["SVDD", "BestOfN", "Sampler", "Unguided"]
