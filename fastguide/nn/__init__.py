"""The small denoisers and oracles that the zoo uses."""

from fastguide.nn.denoiser import MaskedDenoiser
from fastguide.nn.layers import count_flops, fuse_norms
from fastguide.nn.oracle import Ensemble, SequenceRegressor

__all__ = ["Ensemble", "MaskedDenoiser", "SequenceRegressor", "count_flops", "fuse_norms"]
