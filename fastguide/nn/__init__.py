"""The small denoisers and oracles that the zoo uses."""

from fastguide.nn.attention import attention, attention_backend, packed_attention
from fastguide.nn.denoiser import MaskedDenoiser
from fastguide.nn.layers import count_flops, fuse_norms
from fastguide.nn.oracle import Ensemble, SequenceRegressor
from fastguide.nn.picture_classifier import PictureClassifier
from fastguide.nn.unet import UNet

__all__ = [
    "Ensemble",
    "MaskedDenoiser",
    "PictureClassifier",
    "SequenceRegressor",
    "UNet",
    "attention",
    "attention_backend",
    "count_flops",
    "fuse_norms",
    "packed_attention",
]
