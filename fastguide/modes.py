"""Running user models without gradients and in eval mode, and putting them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def evaluation_mode(*models: Any) -> Iterator[None]:
    """no_grad, with every nn.Module among `models` in eval mode; each submodule's mode returns."""
    modules = [m for model in models if isinstance(model, torch.nn.Module) for m in model.modules()]
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
