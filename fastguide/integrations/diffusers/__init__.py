"""Diffusers pipelines under fastguide: guided sampling, recording and replay, without a fork.

Nothing here imports diffusers until a pipeline is at hand.
"""

from fastguide.integrations.diffusers.as_pipeline import as_pipeline
from fastguide.integrations.diffusers.guide import Guide, guide
from fastguide.integrations.diffusers.records import Candidates, GuidedResult
from fastguide.integrations.diffusers.replay import Replay, differentiable, replay
from fastguide.integrations.diffusers.stochastic import stochastic_scheduler
from fastguide.integrations.diffusers.trajectory import Trajectory

__all__ = [
    "Candidates",
    "Guide",
    "GuidedResult",
    "Replay",
    "Trajectory",
    "as_pipeline",
    "differentiable",
    "guide",
    "replay",
    "stochastic_scheduler",
]
