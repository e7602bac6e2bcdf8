"""One step of a scheduler as a Gaussian: its mean and standard deviation, found by asking twice.

Schedulers that draw noise do so through `randn_tensor` and are affine in it: x' = m + c noise.
Called once with noise 0 and once with noise 1, from the same inner state, the scheduler itself
says m and c, so that any of them has exact log-probabilities and any number of candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastguide.errors import ArgumentError
from fastguide.integrations.diffusers.rows import map_rows, take

Tensor = torch.Tensor

SPREAD = 1e-3
"""Relative spread over elements below which a standard deviation counts as one number."""

NOTHING = 1e-7
"""Standard deviation below which a step counts as one without noise (DDPM's last has 1e-10)."""


@dataclass
class Transition:
    """A step of S states.

    Attributes:
        mean: [S, ...] float32, with the gradient of the model's output if it has one.
        deviation: standard deviation, a number, or [S, ...] where it differs among elements.
        result: what the scheduler returned for noise 0.
    """

    mean: Tensor
    deviation: float | Tensor
    result: Any


class ConstantNoise:
    """Answers a scheduler's draws with one number, and counts them."""

    def __init__(self) -> None:
        self.value = 0.0
        self.draws = 0

    def noise(
        self,
        shape: tuple[int, ...],
        generator: Any,
        device: torch.device,
        dtype: torch.dtype,
        draw: Callable[..., Tensor],
    ) -> Tensor:
        """See `NoiseSource`."""
        self.draws += 1
        return torch.full(shape, self.value, device=device, dtype=dtype)


def find_transition(
    scheduler: Any, step: Callable[[], Any], probe: ConstantNoise, again: bool
) -> Transition:
    """Mean and standard deviation of step(), which advances the scheduler by one.

    Args:
        step: the scheduler's own step on fixed arguments, drawing from `probe`.
        again: ask a third time, to catch a scheduler that draws in another way.

    Raises:
        ArgumentError: the scheduler's noise is not drawn through `randn_tensor`.
    """
    before = snapshot(scheduler)
    probe.value, probe.draws = 0.0, 0
    result = step()
    mean = moved(result)
    after = snapshot(scheduler)
    if again:
        restore(scheduler, before)
        if not torch.equal(moved(step()), mean):
            raise ArgumentError(
                f"scheduler {type(scheduler).__name__} draws noise in a way of its own (a Brownian "
                "tree, for example), which cannot be keyed; use DPMSolverMultistepScheduler with "
                "algorithm_type='sde-dpmsolver++'"
            )
    if probe.draws == 0:
        restore(scheduler, after)
        return Transition(mean, 0.0, result)
    restore(scheduler, before)
    probe.value = 1.0
    with torch.no_grad():
        deviation = moved(step()) - mean.detach()
    restore(scheduler, after)
    typical = float(deviation.double().mean())
    rounding = 1e-6 * float(mean.detach().abs().max())
    spread = float((deviation - typical).abs().max())
    if spread > SPREAD * abs(typical) + 4 * rounding:
        return Transition(mean, deviation, result)
    return Transition(mean, typical if typical > NOTHING else 0.0, result)


def moved(result: Any) -> Tensor:
    """The next states in what a scheduler's step returned."""
    states: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return states.float()


def rebuilt(result: Any, states: Tensor, rows: int, back: Tensor, dtype: torch.dtype) -> Any:
    """`result` of `rows` rows with other next states; everything else in it taken by `back`.

    What is floating gets `dtype`, the one that the pipeline works in.
    """

    def expand(value: Any) -> Any:
        taken = take(value, back)
        floating = isinstance(taken, torch.Tensor) and taken.is_floating_point()
        return taken.to(dtype) if floating else taken

    if isinstance(result, tuple):
        return (states.to(dtype), *(map_rows(each, rows, expand) for each in result[1:]))
    fields = {
        name: states.to(dtype) if name == "prev_sample" else map_rows(value, rows, expand)
        for name, value in result.items()
    }
    return type(result)(**fields)


def snapshot(scheduler: Any) -> dict[str, Any]:
    """The scheduler's attributes; lists are copied, because steps change them in place."""
    return {
        name: list(value) if type(value) is list else value
        for name, value in vars(scheduler).items()
    }


def restore(scheduler: Any, kept: dict[str, Any]) -> None:
    """Give the scheduler the attributes of a snapshot."""
    vars(scheduler).clear()
    vars(scheduler).update(
        (name, list(value) if type(value) is list else value) for name, value in kept.items()
    )


def gather_history(scheduler: Any, rows: int, index: Tensor) -> None:
    """Take rows `index` of everything that the scheduler remembers of `rows` states.

    Tables (timesteps, sigmas) have one dimension, states have more.
    """
    _change_history(scheduler, lambda value: take(value, index) if len(value) == rows else value)


def detach_history(scheduler: Any) -> None:
    """Cut the graph of everything that the scheduler remembers."""
    _change_history(scheduler, lambda value: value.detach())


def _change_history(scheduler: Any, change: Callable[[Tensor], Tensor]) -> None:
    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, torch.Tensor) and value.dim() > 1 else value

    for name, value in vars(scheduler).items():
        kept = [changed(each) for each in value] if type(value) is list else changed(value)
        vars(scheduler)[name] = kept


def forget_history(scheduler: Any, fresh: dict[str, Any]) -> None:
    """Let a multistep scheduler start anew: its state as in `fresh`, but where it stands kept."""
    kept = {name: vars(scheduler).get(name) for name in ("_step_index", "_begin_index")}
    restore(scheduler, fresh)
    vars(scheduler).update({name: value for name, value in kept.items() if name in fresh})
