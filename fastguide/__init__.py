"""Reward-guided diffusion sampling with compiled kernels.

import fastguide as fg

task = fg.zoo.load("utr")
sampler = fg.SVDD(task.diffusion, task.reward, num_candidates=10, alpha=0.1)
result = sampler.sample(64, num_steps=128, seed=0)
"""

from fastguide import (
    diffusion,
    engine,
    evaluation,
    finetune,
    ops,
    report,
    result,
    rewards,
    samplers,
    values,
    zoo,
)
from fastguide.diffusion import (
    FlowMatching,
    GaussianDiffusion,
    KarrasDiffusion,
    MaskedDiffusion,
)
from fastguide.errors import FastguideError
from fastguide.evaluation import Cost
from fastguide.integrations.diffusers import guide
from fastguide.ops import use_backend
from fastguide.result import Result
from fastguide.samplers import (
    DAS,
    DPS,
    SMC,
    SVDD,
    SVDDR,
    TDS,
    BeamSearch,
    BestOfN,
    BlockwiseBestOfN,
    ClassifierGuidance,
    FKCGuidance,
    FKSteering,
    IterativeRefinement,
    NestedSMC,
    ParticleGibbs,
    ScheduledSearch,
    Unguided,
)

__version__ = "0.1.0"

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
    "Cost",
    "FKCGuidance",
    "FKSteering",
    "FastguideError",
    "FlowMatching",
    "GaussianDiffusion",
    "IterativeRefinement",
    "KarrasDiffusion",
    "MaskedDiffusion",
    "NestedSMC",
    "ParticleGibbs",
    "Result",
    "ScheduledSearch",
    "Unguided",
    "diffusion",
    "engine",
    "evaluation",
    "finetune",
    "guide",
    "ops",
    "report",
    "result",
    "rewards",
    "samplers",
    "use_backend",
    "values",
    "zoo",
]
