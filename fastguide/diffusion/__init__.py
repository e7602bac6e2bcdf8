"""Diffusions: how a chain starts, proposes and predicts."""

from fastguide.diffusion.base import Batch, Diffusion, Outputs, Step
from fastguide.diffusion.flow import FlowMatching
from fastguide.diffusion.gaussian import GaussianDiffusion
from fastguide.diffusion.karras import KarrasDiffusion, karras_sigmas
from fastguide.diffusion.masked import MaskedDiffusion

__all__ = [
    "Batch",
    "Diffusion",
    "FlowMatching",
    "GaussianDiffusion",
    "KarrasDiffusion",
    "MaskedDiffusion",
    "Outputs",
    "Step",
    "karras_sigmas",
]
