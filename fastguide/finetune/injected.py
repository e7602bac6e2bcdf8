"""Adapters of the peft library, in a copy of the user's network."""

from __future__ import annotations

import copy
import importlib
import json
from typing import Any

import torch
from torch import nn

from fastguide.errors import ArgumentError, DtypeError, MissingExtraError

Tensor = torch.Tensor


def injected(denoiser: nn.Module, config: Any) -> nn.Module:
    """A `peft.PeftModel` of a copy of `denoiser` that shares its frozen weights, in eval mode.

    Dropout of adapters is therefore off. Their initial numbers are torch's under seed 0, whatever
    the state of its generators, so that all processes have the same.

    Raises:
        DtypeError: config is not a peft config.   MissingExtraError: peft is not installed.
        ArgumentError: peft finds nothing to train with it, or another layer in what it adapts.
    """
    try:
        peft: Any = importlib.import_module("peft")
    except ImportError as error:
        raise MissingExtraError(
            f"adapter must be 'lora', 'full' or a config of peft, got {type(config).__name__}, and "
            "configs need peft: pip install 'fastguide[peft]', or peft"
        ) from error
    if not isinstance(config, peft.PeftConfig):
        raise DtypeError(
            "adapter must be 'lora', 'full' or a config of peft such as "
            f"peft.LoraConfig(r=8, target_modules=[...]), got {type(config).__name__}"
        )
    # peft may write into the weights it starts from, so it never sees the user's
    made = copy.deepcopy(denoiser)
    pairs = [
        *zip(made.parameters(), denoiser.parameters(), strict=True),
        *zip(made.buffers(), denoiser.buffers(), strict=True),
    ]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            network: nn.Module = peft.get_peft_model(made, copy.deepcopy(config))
        except ValueError as error:
            raise ArgumentError(
                f"adapter: peft cannot adapt {type(denoiser).__name__} with it: {error}"
            ) from error
    for new, old in pairs:
        if not new.requires_grad and torch.equal(new, old):
            new.data = old.detach()
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ArgumentError("adapter: this config of peft has nothing to train")
    for name, layer in network.named_modules():
        if hasattr(layer, "lora_A"):
            check_layer(name.removeprefix("base_model.model."), layer.get_base_layer())
    return network.eval()


def check_layer(name: str, layer: nn.Module) -> None:
    """Raise ArgumentError where peft's terms of a layer do not add to its weight.

    peft applies them as a convolution of their own, which has neither dilation nor padding modes.
    """
    dilated = any(size != 1 for size in getattr(layer, "dilation", ()))
    if dilated or getattr(layer, "padding_mode", "zeros") != "zeros":
        raise ArgumentError(
            f"peft cannot adapt layer {name!r}: its convolution is dilated, or not padded by "
            "zeros; leave it out of target_modules, or train with adapter='lora' and keep the "
            "merged weights of `save`"
        )


def described(config: Any) -> Any:
    """What of an adapter determines training, as JSON can hold it."""
    if isinstance(config, str):
        return config
    settings = {k: v for k, v in config.to_dict().items() if k != "peft_version"}
    return json.loads(json.dumps(settings, default=_plain))


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def merged(network: Any) -> nn.Module:
    """A network of the user's own class with the terms of a `peft.PeftModel` in its weights."""
    # merging writes into weights that are shared here
    plain: nn.Module = copy.deepcopy(network).merge_and_unload()
    return plain


def terms(network: nn.Module, original: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """(lora_A, lora_B) by layer of a `peft.PeftModel`, with the scaling in lora_B.

    Raises:
        ArgumentError: more was trained than such terms.
    """
    known = original.state_dict()
    parts: dict[str, Tensor] = {}
    for full, value in network.named_parameters():
        name = full.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if name in known and torch.equal(value, known[name]):
            continue
        if not name.endswith((".lora_A.default.weight", ".lora_B.default.weight")):
            raise ArgumentError(
                f"the tuned model differs from the pre-trained one by more than the terms of LoRA: "
                f"{name!r}; keep its merged weights by `save`"
            )
        parts[name] = value.detach()
    found = {}
    for layer in {name.rsplit(".lora_", 1)[0] for name in parts}:
        down, up = (parts[f"{layer}.lora_{part}.default.weight"] for part in "AB")
        scaling: Any = network.get_submodule(f"base_model.model.{layer}").scaling
        found[layer] = (down, up * scaling["default"])
    return found
