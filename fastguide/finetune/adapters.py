"""The network that is trained: a copy of the denoiser, or the denoiser itself with low-rank terms.

The user's module is never changed, and it is the reference: it is the policy with its adapter off.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastguide import ops
from fastguide.errors import ArgumentError, DtypeError
from fastguide.finetune.injected import injected
from fastguide.finetune.prior_steps import Networks, PrefixedChain
from fastguide.rng import Purpose, chain_ids

Tensor = torch.Tensor

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class LowRank(nn.Module):
    """weight + up @ down, with up zero at first. Source: Hu et al. 2021 (LoRA, arXiv 2106.09685).

    Args:
        weight: [out, ...] to be adapted.   rank: of the change.   number: which layer this is; its
            initial numbers are the stream's normals of chain `number` under seed 0.
    """

    def __init__(self, weight: Tensor, rank: int, number: int) -> None:
        super().__init__()
        fan_in = weight[0].numel()
        normals = ops.philox_normal(
            0, chain_ids(1, number), 0, Purpose.PRIOR, num_elements=rank * fan_in
        )
        down = normals.view(rank, fan_in) / fan_in**0.5
        self.down = nn.Parameter(down.to(weight.device, weight.dtype))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.enabled = True

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, or the weight itself while the adapter is off."""
        return weight + (self.up @ self.down).view_as(weight) if self.enabled else weight


def trainable_network(denoiser: Any, adapter: Any, rank: int) -> nn.Module:
    """A network like `denoiser`, in eval mode, whose trainable parameters are those of the adapter.

    Args:
        adapter: "full" copies every parameter; "lora" shares the weights of `denoiser` and adds
            terms of `rank` to its linear and convolutional layers; a config of peft shares them
            and says what is added.

    Raises:
        DtypeError: the denoiser is not an nn.Module, or the adapter of no known type.
        ArgumentError: an unknown adapter, a rank below 1, or no layer to adapt.
        MissingExtraError: a config needs peft.
    """
    if not isinstance(denoiser, nn.Module):
        raise DtypeError(
            "fine-tuning needs a denoiser that is an nn.Module, with parameters to train, got "
            f"{type(denoiser).__name__}"
        )
    if isinstance(denoiser, Networks):
        control = trainable_network(denoiser.control, "full", rank)
        return Networks(control, trainable_network(denoiser.denoiser, adapter, rank)).eval()
    if not isinstance(adapter, str):
        return injected(denoiser, adapter)
    if adapter not in ("full", "lora"):
        raise ArgumentError(f"adapter must be 'lora' or 'full', got {adapter!r}")
    if adapter == "full":
        network = copy.deepcopy(denoiser)
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return network.eval()
    if rank < 1:
        raise ArgumentError(f"rank must be at least 1, got {rank}")
    network = sharing_copy(denoiser, list(denoiser.parameters())).eval()
    layers = [layer for layer in network.modules() if isinstance(layer, ADAPTED)]
    layers = [layer for layer in layers if getattr(layer, "groups", 1) == 1]
    if not layers:
        raise ArgumentError(
            f"adapter='lora' adapts layers of the kinds {[kind.__name__ for kind in ADAPTED]}; "
            f"{type(denoiser).__name__} has none, so use adapter='full'"
        )
    for number, layer in enumerate(layers):
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, number))
    return network


def sharing_copy(network: nn.Module, shared: list[nn.Parameter]) -> nn.Module:
    """A deep copy whose buffers and `shared` parameters, frozen, keep their storage."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in shared
    }
    memo |= {id(buffer): buffer for buffer in network.buffers()}
    return copy.deepcopy(network, memo)


def frozen_copy(network: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """A copy of a trained network that nothing trains, with `values` for its named parameters."""
    frozen = [p for p in network.parameters() if not p.requires_grad]
    made = sharing_copy(network, frozen)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name in values:
                parameter.copy_(values[name])
            parameter.requires_grad_(False)
    return made


def with_network(diffusion: Any, network: nn.Module) -> Any:
    """The diffusion with another denoiser."""
    if isinstance(diffusion, PrefixedChain):
        assert isinstance(network, Networks)
        return diffusion.with_networks(network)
    tuned = copy.copy(diffusion)
    tuned.denoiser = network
    return tuned
