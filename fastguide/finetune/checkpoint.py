"""Saving a training run, and refusing to resume another one."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from fastguide.errors import CheckpointError
from fastguide.finetune import parallel
from fastguide.result import make_directory


class TrainingCheckpoint:
    """A folder with the state, its hash and what run it is (state.json), and history.jsonl.

    Args:
        directory: made if needed.   fingerprint: everything that determines the parameters.
    """

    def __init__(self, directory: str | Path, fingerprint: dict[str, Any]) -> None:
        self._path = make_directory(directory, "checkpoint")
        self._fingerprint = json.loads(json.dumps(fingerprint))

    @property
    def history(self) -> Path:
        """The file for the rows of the run."""
        return self._path / "history.jsonl"

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, in the first process; an interruption leaves the previous one intact."""
        if parallel.world()[0] > 0:
            return
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        # the hash names its file, so a crash between the two writes cannot mix two states
        name = f"training-{digest[:16]}.pt"
        _replace(self._path / name, data)
        card = {"run": self._fingerprint, "sha256": digest, "file": name}
        _replace(self._path / "state.json", json.dumps(card, indent=2).encode())
        for old in self._path.glob("training-*.pt"):
            if old.name != name:
                old.unlink()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None if the folder holds none.

        Raises:
            CheckpointError: the state belongs to another run (says what differs), or its file is
                missing, unreadable or was changed.
        """
        card = self._path / "state.json"
        if not card.exists():
            return None
        try:
            record = json.loads(card.read_text())
            saved, file, expected = record["run"], self._path / record["file"], record["sha256"]
            data = file.read_bytes()
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"checkpoint {card} cannot be read ({error}); delete the folder to start afresh"
            ) from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise CheckpointError(
                f"checkpoint {file} was changed or cut short; delete the folder to start afresh"
            )
        differs = [
            f"{name} (saved {saved.get(name)!r}, now {self._fingerprint.get(name)!r})"
            for name in sorted({*saved, *self._fingerprint})
            if saved.get(name) != self._fingerprint.get(name)
        ]
        if differs:
            raise CheckpointError(
                f"checkpoint {self._path} belongs to another run; it differs in "
                + ", ".join(differs)
                + "; use another folder, the same arguments, or resume=False"
            )
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return state


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
