"""What training reports, one row of numbers per iteration, and where the rows go."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from fastguide.errors import ArgumentError
from fastguide.finetune import parallel
from fastguide.result import make_directory

Tensor = torch.Tensor
Callback = Callable[[dict[str, float]], bool | None]

SHOWN = ("reward", "held_out", "kl", "ess", "clip_fraction")
"""Numbers beside the progress bar."""


@dataclass
class History:
    """The rows of a training run.

    Attributes:
        rows: per iteration a dict of numbers. "iteration"; "reward" mean over the batch, in the
            reward's units; "kl" of the policy from the reference, nats per path; "loss";
            "grad_norm"; "learning_rate"; "skipped" updates whose gradient was not finite;
            "seconds" and "cpu_seconds" (all threads of this process) since the start; and what the
            method adds, such as "ess" or "clip_fraction".
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


class Reports:
    """Takes the rows of a run as they come: to the history, files, callbacks and a bar.

    Args:
        history: with the rows of what is gone on from.   files: for JSON lines. They hold those
            rows at first and each new one at once, so that a killed run leaves all it had.
        callbacks: one or several, or None; all are called with each new row.
        title: of the bar; None: there is none.   total: iterations. Files and the bar are those of
            the first process.

    Raises:
        ArgumentError: a file cannot be written.
    """

    def __init__(
        self,
        history: History,
        files: list[Path],
        callbacks: Callback | Sequence[Callback] | None,
        title: str | None,
        total: int,
    ) -> None:
        self._history = history
        first = parallel.world()[0] == 0
        self._files = files if first else []
        self._callbacks = [callbacks] if callable(callbacks) else callbacks or ()
        for file in self._files:
            make_directory(file.parent, "log")
            history.save(file)
        self._bar = tqdm(
            total=total, initial=len(history.rows), desc=title, disable=title is None or not first
        )

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *of: object) -> None:
        self._bar.close()

    def __call__(self, row: dict[str, float]) -> bool:
        """Report a row; whether every callback wants another."""
        self._history.rows.append(row)
        for file in self._files:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(line(row))
        self._bar.update()
        shown = {name: f"{row[name]:.3g}" for name in SHOWN if name in row}
        self._bar.set_postfix(shown, refresh=False)
        answers = [callback(row) for callback in self._callbacks]
        return all(answer is not False for answer in answers)


def line(row: dict[str, Any]) -> str:
    """One row as a line of JSON; what is not a number there becomes null."""
    clean = {name: value if value == value else None for name, value in row.items()}
    return json.dumps(clean) + "\n"
