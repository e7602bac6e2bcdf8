"""Files of tuned models: merged weights, low-rank terms alone, and what else a chain learned."""

from __future__ import annotations

import copy
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.diffusion.learned import LearnedNoise, LearnedStart
from fastguide.errors import ArgumentError, CheckpointError, DtypeError
from fastguide.finetune import injected
from fastguide.finetune.adapters import LowRank
from fastguide.finetune.prior_steps import prefixed

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


def save_learned(path: str | Path, chain: Any) -> None:
    """Write what a tuned Gaussian chain learned besides its denoiser.

    Raises:
        ArgumentError: it learned nothing else.
    """
    state: dict[str, Tensor] = {}
    start: LearnedStart | None = getattr(chain, "learned_start", None)
    noise: LearnedNoise | None = getattr(chain, "learned_noise", None)
    if noise is not None:
        state["noise"] = noise.factors
    if start is not None:
        state["start.num_steps"] = torch.tensor(start.num_steps)
        if start.noise is not None:
            state["start.noise"] = start.noise.factors
        state |= {f"start.network.{k}": v for k, v in start.network.state_dict().items()}
    if not state:
        raise ArgumentError(
            "nothing was learned besides the denoiser, which `save` writes; this is for "
            "prior_steps=, learn_scale= and ELEGANT"
        )
    save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, str(path))


def load_learned(path: str | Path, diffusion: Any, prior_network: nn.Module | None = None) -> Any:
    """The diffusion with the initial law and the noise of a file of `save_learned`.

    Args:
        diffusion: the pre-trained Gaussian chain, with the tuned denoiser.
        prior_network: of the class that was trained, where one was given; it is not changed.

    Raises:
        CheckpointError: the file cannot be read, or does not fit these; names the file.
    """
    if not isinstance(diffusion, GaussianChain):
        raise DtypeError(f"diffusion must be a Gaussian chain, got {type(diffusion).__name__}")
    try:
        state = load_file(str(path), device=str(diffusion.device))
        made = copy.copy(diffusion)
        if "noise" in state:
            made.learned_noise = LearnedNoise(state["noise"])
        if "start.num_steps" in state:
            control = prefixed(diffusion, int(state["start.num_steps"]), prior_network).prior
            prefix = "start.network."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            assert isinstance(control.denoiser, nn.Module)
            control.denoiser.load_state_dict(own)
            control.denoiser.requires_grad_(False)
            noise = state.get("start.noise")
            made.learned_start = control.learned(None if noise is None else LearnedNoise(noise))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold what was learned of this chain: {error}; give a file of "
            "`save_learned`, the diffusion it was trained from and its prior_network"
        ) from error
    return made


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
