"""Diffusions: how a chain starts, proposes and predicts."""

from fastguide.diffusion.base import Batch, Diffusion, Outputs, Step
from fastguide.diffusion.masked import MaskedDiffusion

__all__ = ["Batch", "Diffusion", "MaskedDiffusion", "Outputs", "Step"]
