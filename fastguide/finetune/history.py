"""What training reports: one row of numbers per iteration."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastguide.errors import ArgumentError

Tensor = torch.Tensor


@dataclass
class History:
    """The rows of a training run.

    Attributes:
        rows: per iteration a dict of numbers. "iteration"; "reward" mean over the batch, in the
            reward's units; "kl" of the policy from the reference, nats per path; "loss";
            "grad_norm"; "learning_rate"; "skipped" updates whose gradient was not finite;
            "seconds" since the start; and what the method adds, such as "ess" or "clip_fraction".
        stopped: why training ended early: None (it did not), "max_seconds", "callback",
            "kl_budget" or "held_out".
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    stopped: str | None = None

    def column(self, name: str) -> Tensor:
        """[iterations] float64, NaN where a row has no such number.

        Raises:
            ArgumentError: no row has it.
        """
        if not any(name in row for row in self.rows):
            known = sorted({key for row in self.rows for key in row})
            raise ArgumentError(f"name must be one of {known}, got {name!r}")
        return torch.tensor([row.get(name, float("nan")) for row in self.rows], dtype=torch.float64)

    def save(self, path: str | Path) -> None:
        """Write the rows as JSON lines."""
        Path(path).write_text("".join(line(row) for row in self.rows), encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    """One row as a line of JSON; what is not a number there becomes null."""
    clean = {name: value if value == value else None for name, value in row.items()}
    return json.dumps(clean) + "\n"
