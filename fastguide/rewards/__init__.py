"""Rewards made of functions: fast (remembered, spread over processes, compiled), or combined.

Each is a reward, callable(samples [B, ...]) -> [B] float64, that samplers take like any other.
Rewards of images, [B, 3, H, W] -> [B] float32, are at the end; Pillow or transformers is imported
when one is made.
"""

from fastguide.rewards.cached import cached
from fastguide.rewards.combine import combine
from fastguide.rewards.images import JpegCompressibility, JpegIncompressibility
from fastguide.rewards.jit import jit
from fastguide.rewards.parallel import parallel
from fastguide.rewards.vision import AestheticScore, ClipScore, PickScore

__all__ = [
    "AestheticScore",
    "ClipScore",
    "JpegCompressibility",
    "JpegIncompressibility",
    "PickScore",
    "cached",
    "combine",
    "jit",
    "parallel",
]
