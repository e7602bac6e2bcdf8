"""Soft-value estimators v(x_t): what a partially denoised state will be worth."""

from fastguide.values.lookahead import Lookahead
from fastguide.values.posterior import PosteriorMean, PosteriorSamples

__all__ = ["Lookahead", "PosteriorMean", "PosteriorSamples"]
