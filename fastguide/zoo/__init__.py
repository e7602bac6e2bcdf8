"""Design tasks with pre-trained models: public measurements, small networks, a card each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, overload

import torch

from fastguide.errors import ArgumentError
from fastguide.zoo import glyphs, utr
from fastguide.zoo.checkpoint import load_tuned
from fastguide.zoo.task import PictureReward, PictureTask, Reward, Task

__all__ = ["PictureReward", "PictureTask", "Reward", "Task", "load", "names"]

# name -> folder of the shipped weights, and the loader of such a folder
_TASKS: dict[str, tuple[Path, Callable[[Path, torch.device | str], Task | PictureTask]]] = {
    "utr": (utr.WEIGHTS, utr.load),
    "glyphs": (glyphs.WEIGHTS, glyphs.load),
}


def names() -> tuple[str, ...]:
    """Names of the tasks that `load` knows."""
    return tuple(_TASKS)


@overload
def load(
    name: Literal["utr"],
    *,
    folder: Path | str | None = None,
    denoiser: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Task: ...
@overload
def load(
    name: Literal["glyphs"],
    *,
    folder: Path | str | None = None,
    denoiser: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> PictureTask: ...
@overload
def load(
    name: str,
    *,
    folder: Path | str | None = None,
    denoiser: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Task | PictureTask: ...
def load(
    name: str,
    *,
    folder: Path | str | None = None,
    denoiser: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Task | PictureTask:
    """Load a task and its models.

    Args:
        name: one of `names()`: "utr" designs sequences, "glyphs" makes pictures.
        folder: weights and card made by `fastguide zoo train`; None takes the shipped ones.
        denoiser: file with other weights of the diffusion's denoiser, as `save` of a method of
            `fastguide.finetune` writes it.
        device: where the models run.

    Raises:
        ArgumentError: unknown name; lists the known ones.
        CheckpointError: a file is missing, unreadable, or not the one its card describes; or the
            denoiser's is of another model.
    """
    if name not in _TASKS:
        raise ArgumentError(f"name: there is no task {name!r}; known tasks: {', '.join(names())}")
    shipped, load_from = _TASKS[name]
    task = load_from(shipped if folder is None else Path(folder), device)
    if denoiser is not None:
        network = task.diffusion.denoiser
        assert isinstance(network, torch.nn.Module)
        load_tuned(Path(denoiser), network)
    return task
