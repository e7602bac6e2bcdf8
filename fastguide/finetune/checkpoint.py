"""Saving a training run, and refusing to resume another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastguide.checkpoint import StateFolder
from fastguide.finetune import parallel


class TrainingCheckpoint(StateFolder):
    """The state of a training run, and history.jsonl.

    Args:
        directory: made if needed.   fingerprint: everything that determines the parameters.
    """

    def __init__(self, directory: str | Path, fingerprint: dict[str, Any]) -> None:
        advice = "use another folder, the same arguments, or resume=False"
        super().__init__(directory, fingerprint, "training", advice)

    @property
    def history(self) -> Path:
        """The file for the rows of the run."""
        return self._path / "history.jsonl"

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, in the first process."""
        if parallel.world()[0] == 0:
            self.write(state)

    def load(self) -> dict[str, Any] | None:
        """The saved state, on the CPU, or None; raises as `read` does."""
        return self.read(map_location="cpu")
