"""Diffusers pipelines under fastguide: guided sampling, recording and replay, without a fork.

Nothing here imports diffusers until a pipeline is at hand.
"""

from fastguide.integrations.diffusers.guide import Guide, guide
from fastguide.integrations.diffusers.records import Candidates, GuidedResult

__all__ = ["Candidates", "Guide", "GuidedResult", "guide"]
