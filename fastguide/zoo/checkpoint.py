"""Weights and cards: safetensors files whose SHA-256 a JSON card records."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import nn

from fastguide.errors import ArgumentError, CheckpointError

Tensor = torch.Tensor

CARD = "card.json"
_FIX = "reinstall fastguide, or train with `fastguide zoo train` and load that folder"


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a checkpoint folder.

    Raises:
        CheckpointError: missing or not JSON; names the file and the fix.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error.strerror}); {_FIX}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not a JSON card ({error}); {_FIX}") from error
    if not isinstance(card, dict) or "models" not in card:
        raise CheckpointError(f"{path} is not a card: it has no entry 'models'; {_FIX}")
    return card


def write_card(folder: Path, card: dict[str, Any]) -> Path:
    """Write `card` into a checkpoint folder, returning the file."""
    path = folder / CARD
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def make_folder(folder: Path) -> None:
    """Make a folder to train into, before anything costs time.

    Raises:
        ArgumentError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArgumentError(
            f"out: cannot write into {folder} ({error.strerror}); give a folder you may write to"
        ) from error


def store_model(
    folder: Path, name: str, model: nn.Module, config: dict[str, Any], flops: int
) -> dict[str, Any]:
    """Write a model, which is then as stored; its entry in the card.

    Args:
        folder: of the checkpoint.   name: of the model and its file.
        config: constructor arguments.   flops: floating-point operations of one row.
    """
    path = folder / f"{name}.safetensors"
    sha256 = save_weights(path, model)
    load_weights(path, sha256, model)
    return {
        "file": path.name,
        "sha256": sha256,
        "bytes": path.stat().st_size,
        "parameters": sum(value.numel() for value in model.parameters()),
        "mflop_per_row": round(flops / 1e6, 1),
        "config": config,
    }


def save_weights(path: Path, model: nn.Module) -> str:
    """Store the model's state in half precision, returning the SHA-256 of the file."""
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in model.state_dict().items()
    }
    raw = format_tensors(state)
    path.write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


def load_weights(path: Path, sha256: str, model: nn.Module) -> None:
    """Load a file into `model` as float32, in eval mode and without gradients to the weights.

    Raises:
        CheckpointError: the file is missing, its hash differs from `sha256`, it cannot be parsed,
            or its tensors are not those of the model; names the file and the fix.
    """
    raw = _read(path, _FIX)
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise CheckpointError(
            f"{path} was changed or damaged: its SHA-256 is {found}, the card says {sha256}; {_FIX}"
        )
    _fill(model, raw, path, _FIX)


def load_tuned(path: Path, model: nn.Module) -> None:
    """Load a file of `finetune.Method.save` into `model`; see `load_weights`.

    Raises:
        CheckpointError: it cannot be read, or is of another model; names the file.
    """
    fix = "give a file that `save` of a method of fastguide.finetune wrote for this task's denoiser"
    _fill(model, _read(path, fix), path, fix)


def _read(path: Path, fix: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error.strerror}); {fix}") from error


def _fill(model: nn.Module, raw: bytes, path: Path, fix: str) -> None:
    try:
        state = parse_tensors(raw)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold this model: {error}; {fix}") from error
    model.eval().requires_grad_(False)
