"""What the benches of the training ops share: forward and backward, and the peak of memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import num_bytes
from torch.utils._python_dispatch import TorchDispatchMode

Loss = Callable[[], torch.Tensor]


def both_ways(loss: Loss, *leaves: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call that takes the loss and its gradients in the leaves; benches time it."""

    def run() -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(loss(), leaves)

    return run


def assert_same_gradients(
    ours: Callable[[], tuple[torch.Tensor, ...]], *others: Callable[[], tuple[torch.Tensor, ...]]
) -> None:
    """Gradients agree; benches check before they time.

    As whole vectors: a ratio from float32 sums over thousands of elements is right to 1e-3.
    """
    for other in others:
        for one, due in zip(ours(), other(), strict=True):
            assert float((one - due).float().norm()) < 5e-3 * float(due.float().norm())


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of all operands and results of what is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        aliases = [each.alias_info for each in func._schema.arguments]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            self.total += num_bytes(*_tensors((args, kwargs or {}, result)))
        return result


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def against_eager(text: str, bytes_moved: int, eager: Callable[[], object]) -> str:
    """The setting, and below it what eager PyTorch moves, over what there is to move."""
    with _Traffic() as counted:
        eager()
    times = counted.total / bytes_moved
    return (
        f"{text}\n  eager moves {counted.total / 1e6:,.3g} MB, {times:.1f}x what there is to move"
    )


def peak_bytes(module: str, name: str) -> int:
    """Most bytes that torch allocates at once while `module.call(name)()` runs, in a new process.

    Counted from torch's own record of allocations, so that neither the interpreter nor what the
    inputs take is part of it.
    """
    run = f"{module}.call({name!r})"
    code = f"import {module}, training_steps; print(training_steps.allocated_peak({run}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def allocated_peak(run: Callable[[], object]) -> int:
    """Most bytes that torch allocates at once inside `run`, above what was there before."""
    # The first call compiles or loads what it needs.
    run()
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
