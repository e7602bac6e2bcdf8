"""Fitting small networks reproducibly: one thread each, averaged weights, several at once."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fastguide.errors import ArgumentError
from fastguide.nn import fuse_norms

Tensor = torch.Tensor
State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Fit:
    """How one network is fitted.

    Attributes:
        epochs: passes over the rows.   batch_size: rows a step.
        learning_rate: peak of a one-cycle schedule (AdamW).   warmup: share of steps before it.
        weight_decay: of weights with two or more axes.   average: decay of the averaged weights.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 0.05
    average: float = 0.998


def fit_network(
    model: nn.Module,
    rows: Tensor,
    loss: Callable[[nn.Module, Tensor], Tensor],
    fit: Fit,
    *,
    name: str,
    validate: Callable[[nn.Module], str],
    progress: bool,
) -> State:
    """Minimise `loss` over batches of rows; the averaged weights, with normalisations fused.

    Args:
        model: network with batch normalisation, initialised; changed in place.
        rows: [n] int64, indices of the training rows; reshuffled each epoch by torch's generator.
        loss: (model, indices [batch_size]) -> scalar.   fit: optimisation settings.
        name, validate, progress: if `progress`, a line per epoch on the standard error stream with
            what `validate` says of the averaged model in eval mode. Does not change the weights.

    Raises:
        ArgumentError: fewer rows than one batch.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=fit.learning_rate, weight_decay=fit.weight_decay)
    batches = len(rows) // fit.batch_size
    if batches < 1:
        raise ArgumentError(
            f"data: {len(rows)} training rows are fewer than one batch of {fit.batch_size}"
        )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, fit.learning_rate, total_steps=fit.epochs * batches, pct_start=fit.warmup
    )
    average = {key: value.clone() for key, value in model.state_dict().items()}
    step, start = 0, time.perf_counter()
    for epoch in range(fit.epochs):
        order = rows[torch.randperm(len(rows))]
        for batch in order[: batches * fit.batch_size].split(fit.batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss(model, batch).backward()
            optimizer.step()
            schedule.step()
            step += 1
            # a short memory at first, so that the initial weights are forgotten
            _blend(average, model, 1 - min(fit.average, step / (step + 10)))
        if progress:
            with _using(model, average):
                found = validate(model)
            seconds = time.perf_counter() - start
            print(
                f"{name:<9} epoch {epoch + 1:>2}/{fit.epochs}  validation {found}  {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    model.load_state_dict(average)
    fuse_norms(model)
    return {key: value.numpy() for key, value in model.state_dict().items()}


@contextmanager
def processes(count: int) -> Iterator[Callable[..., Callable[[], State]]]:
    """Run fits in `count` processes of one thread each; 1 stays in this process.

    Yields submit(function, *args) -> a function that waits for the result. Functions and arguments
    must be picklable. Results do not depend on `count`.

    Raises:
        ArgumentError: count below 1.
    """
    if count < 1:
        raise ArgumentError(f"threads must be at least 1, got {count}")
    if count == 1:
        yield lambda function, *args: partial(_on_one_thread, function, *args)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        yield lambda function, *args: pool.submit(_on_one_thread, function, *args).result


def _on_one_thread(function: Callable[..., State], *args: Any) -> State:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            return function(*args)
    finally:
        torch.set_num_threads(before)


def _blend(average: dict[str, Tensor], model: nn.Module, share: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, share)
        else:
            average[name].copy_(value)


@contextmanager
def _using(model: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """The model in eval mode with `state`; random numbers drawn inside leave no trace."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield
    model.load_state_dict(kept)
    model.train()
