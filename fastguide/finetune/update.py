"""One step of the optimiser: learning rates, clipping, averaging, and a guard against NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastguide.errors import NonFiniteError
from fastguide.finetune import parallel

Tensor = torch.Tensor
Rate = float | Callable[[float], float]

MOST_SKIPPED = 5
"""Updates in a row whose gradient was not finite, after which training gives up."""


def linear(start: float, end: float) -> Callable[[float], float]:
    """A learning rate that goes from `start` to `end` in a straight line over training."""
    return lambda share: start + (end - start) * share


def cosine(start: float, end: float) -> Callable[[float], float]:
    """A learning rate that goes from `start` to `end` along half a cosine over training."""
    return lambda share: end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


class Update:
    """Adam with decoupled weight decay on named parameters, in groups with rates of their own.

    Args:
        groups: (parameters by name, rate) of each group; a rate is a number or a function of the
            share of training that is done, in [0, 1).
        weight_decay: of AdamW.   max_grad_norm: of all parameters together, or None.
        ema: decay of the running average of the parameters, or None.
    """

    def __init__(
        self,
        groups: list[tuple[dict[str, nn.Parameter], Rate]],
        *,
        weight_decay: float,
        max_grad_norm: float | None,
        ema: float | None,
    ) -> None:
        self._rates = [rate for _, rate in groups]
        self.parameters = {name: p for group, _ in groups for name, p in group.items()}
        self._optimizer = torch.optim.AdamW(
            [{"params": list(group.values())} for group, _ in groups],
            lr=0.0,
            weight_decay=weight_decay,
        )
        self._max_grad_norm = max_grad_norm
        self._ema = ema
        self._skipped = 0
        self._count = 0
        self.average = None if ema is None else self._copies()

    def _copies(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    @property
    def values(self) -> dict[str, Tensor]:
        """The parameters that the tuned model has: their average, if one is kept."""
        return self._copies() if self.average is None else self.average

    def start(self) -> None:
        """Forget the last gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def finish(self, share: float) -> dict[str, float]:
        """Step along the gradients, summed over all processes; `share` of training is done.

        An update whose gradient is not finite is skipped, so that the last good state stays.

        Raises:
            NonFiniteError: several in a row were.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        parallel.add_up(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        row = {"grad_norm": float(norm), "skipped": 0.0}
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate(share) if callable(rate) else rate
        row["learning_rate"] = self._optimizer.param_groups[0]["lr"]
        if not math.isfinite(row["grad_norm"]):
            self._skipped += 1
            if self._skipped == MOST_SKIPPED:
                raise NonFiniteError(
                    f"the gradient was not finite in {MOST_SKIPPED} updates in a row; the "
                    "parameters are those before them: lower learning_rate, set max_grad_norm, or "
                    "look for NaN in the gradient of the reward"
                )
            return {**row, "skipped": 1.0}
        self._skipped = 0
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(
                self.parameters.values(), self._max_grad_norm, norm
            )
        self._optimizer.step()
        if self.average is not None:
            assert self._ema is not None
            self._count += 1
            # a short memory at first, so that the initial parameters are forgotten
            decay = min(self._ema, self._count / (self._count + 10))
            for name, value in self.parameters.items():
                self.average[name].lerp_(value.detach(), 1 - decay)
        return row

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "parameters": self._copies(),
            "optimizer": self._optimizer.state_dict(),
            "average": self.average,
            "skipped": self._skipped,
            "count": self._count,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state["parameters"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average = {
                name: state["average"][name].to(value.device)
                for name, value in self.parameters.items()
            }
        self._skipped, self._count = state["skipped"], state["count"]
