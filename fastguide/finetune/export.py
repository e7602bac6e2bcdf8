"""Files of tuned networks: merged weights, and low-rank terms alone."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from fastguide.errors import ArgumentError
from fastguide.finetune import injected
from fastguide.finetune.adapters import LowRank

Tensor = torch.Tensor


def save_merged(path: str | Path, network: nn.Module, original: nn.Module, method: str) -> None:
    """Write the weights of a tuned network under the names of `original`'s own state."""
    if hasattr(network, "merge_and_unload") and not hasattr(original, "merge_and_unload"):
        network = injected.merged(network)
    state = {}
    for name in original.state_dict():
        tensor: Tensor = reduce(getattr, name.split("."), network)  # type: ignore[assignment]
        state[name] = tensor.detach().clone().contiguous()
    save_file(state, str(path), {"format": "pt", "method": method})


def save_terms(path: str | Path, network: nn.Module, original: nn.Module, prefix: str) -> None:
    """Write the low-rank terms of a tuned network in the format of PEFT and diffusers.

    Raises:
        ArgumentError: it has none, or is more than they say.
    """
    if hasattr(network, "merge_and_unload"):
        terms = injected.terms(network, original)
    else:
        terms = dict(_low_rank(network))
    if not terms:
        raise ArgumentError("adapter='full' has no low-rank terms; write its weights by `save`")
    state = {}
    for layer, (down, up) in terms.items():
        name = f"{prefix}.{layer}" if prefix else layer
        state[f"{name}.lora_A.weight"] = down.clone().contiguous()
        state[f"{name}.lora_B.weight"] = up.clone().contiguous()
    save_file(state, str(path), {"format": "pt"})


def _low_rank(network: nn.Module) -> list[tuple[str, tuple[Tensor, Tensor]]]:
    """(layer, (lora_A, lora_B)) of the built-in terms; of a convolution lora_B is one of size 1."""
    found = []
    for name, layer in network.named_modules():
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        for term in layer.parametrizations["weight"]:
            if isinstance(term, LowRank):
                injected.check_layer(name, layer)
                shape: torch.Size = layer.weight.shape
                down = term.down.detach().view(-1, *shape[1:])
                up = term.up.detach().view(*term.up.shape, *[1] * (len(shape) - 2))
                found.append((name, (down, up)))
    return found
