"""What is watched while a method trains, and when that ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastguide.finetune import parallel
from fastguide.finetune.history import History
from fastguide.finetune.rollout import Buffer, scores


class Watch:
    """Means over the paths of all processes, and the limits on them.

    Args: as `Method` takes them.
    """

    def __init__(
        self,
        *,
        kl_budget: float | None,
        held_out: Callable[..., Any] | None,
        patience: int,
        on_invalid: str,
    ) -> None:
        self._kl_budget = kl_budget
        self._held_out = held_out
        self._patience = patience
        self._on_invalid = on_invalid

    def report(self, buffer: Buffer) -> dict[str, float]:
        """Reward, KL and held-out reward of the policy's own paths, or of all if there are none."""
        own = parallel.gathered(buffer.on_policy)
        own = own if bool(own.any()) else ~own
        row = {"reward": float(parallel.gathered(buffer.reward)[own].mean())}
        if buffer.kl is not None:
            row["kl"] = float(parallel.gathered(buffer.kl.sum(dim=1))[own].mean())
        if self._held_out is not None:
            samples = (buffer.samples,)
            judged = scores(self._held_out, "held_out", samples, buffer.cond, self._on_invalid)
            row["held_out"] = float(parallel.gathered(judged)[own].mean())
        return row

    def why_stop(self, history: History) -> str | None:
        """The limit that the last row is beyond."""
        row = history.rows[-1]
        if self._kl_budget is not None and row.get("kl", 0.0) > self._kl_budget:
            return "kl_budget"
        if "held_out" in row:
            means = history.column("held_out").nan_to_num(-float("inf"))
            if len(means) - 1 - int(means.argmax()) >= self._patience:
                return "held_out"
        return None
