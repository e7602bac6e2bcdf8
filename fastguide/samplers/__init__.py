"""Sampling methods: policies over the engine's one loop."""

from fastguide.samplers.base import Sampler
from fastguide.samplers.beam_search import BeamSearch, ScheduledSearch
from fastguide.samplers.best_of_n import BestOfN
from fastguide.samplers.blockwise import BlockwiseBestOfN
from fastguide.samplers.fk_steering import FKSteering
from fastguide.samplers.fkc_guidance import FKCGuidance
from fastguide.samplers.guidance import DPS, ClassifierGuidance
from fastguide.samplers.nested_smc import SVDDR, NestedSMC
from fastguide.samplers.particle_gibbs import ParticleGibbs
from fastguide.samplers.refinement import IterativeRefinement
from fastguide.samplers.smc import SMC
from fastguide.samplers.svdd import SVDD
from fastguide.samplers.tds import DAS, TDS
from fastguide.samplers.unguided import Unguided

__all__ = [
    "DAS",
    "DPS",
    "SMC",
    "SVDD",
    "SVDDR",
    "TDS",
    "BeamSearch",
    "BestOfN",
    "BlockwiseBestOfN",
    "ClassifierGuidance",
    "FKCGuidance",
    "FKSteering",
    "IterativeRefinement",
    "NestedSMC",
    "ParticleGibbs",
    "Sampler",
    "ScheduledSearch",
    "Unguided",
]
