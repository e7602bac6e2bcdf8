"""A small sequence model to fine-tune, and what tests of fine-tuning share."""

from __future__ import annotations

import torch
from torch import nn

import fastguide as fg
from fastguide.nn import MaskedDenoiser

QUIET = dict(progress=False)


def sequences():
    """A small network over sequences of eight sites, and a reward of them."""
    torch.manual_seed(1)
    network = MaskedDenoiser(8, 4, channels=8, kernel_size=3, dilations=(1, 2)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return fg.MaskedDiffusion(network, 8, 4)


def count_of_threes(x):
    return (x == 3).sum(dim=1).double()


count_of_threes.soft = lambda probs: probs[..., 3].sum(dim=1)


def parameters(tuner):
    return tuner.diffusion.denoiser.state_dict()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
