"""Saving a run in progress, and refusing to resume another one."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastguide.engine import State
from fastguide.errors import CheckpointError
from fastguide.evaluation import Cost
from fastguide.result import make_directory

Tensor = torch.Tensor


def digest(value: Any) -> str | None:
    """Short SHA-256 of a tensor, a dict of tensors or a module's parameters; None for others."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, torch.Tensor):
        value = {"": value}
    if not isinstance(value, dict):
        return None
    sha = hashlib.sha256()
    for name in sorted(value):
        tensor = value[name]
        if isinstance(tensor, torch.Tensor):
            sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            sha.update(flat.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


class StateFolder:
    """A folder with a state, its hash, and what run it is of (state.json).

    Args:
        directory: made if needed.   fingerprint: everything that determines the run.
        stem: of the state's file.   advice: what to do about a folder of another run.
    """

    def __init__(
        self, directory: str | Path, fingerprint: dict[str, Any], stem: str, advice: str
    ) -> None:
        self._path = make_directory(directory, "checkpoint")
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._stem = stem
        self._advice = advice

    def write(self, state: dict[str, Any]) -> None:
        """Keep the state; an interruption leaves the previous one intact."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        sha256 = hashlib.sha256(data).hexdigest()
        # the hash names its file, so a crash between the two writes cannot mix two states
        name = f"{self._stem}-{sha256[:16]}.pt"
        _replace(self._path / name, data)
        card = {"run": self._fingerprint, "sha256": sha256, "file": name}
        _replace(self._path / "state.json", json.dumps(card, indent=2).encode())
        for old in self._path.glob(f"{self._stem}-*.pt"):
            if old.name != name:
                old.unlink()

    def read(self, map_location: str | None = None) -> dict[str, Any] | None:
        """The state that was kept, or None if the folder holds none.

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
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise CheckpointError(
                f"checkpoint {file} was changed or cut short: sha256 {found[:16]}... instead of "
                f"{expected[:16]}...; delete the folder to start afresh"
            )
        differs = [
            f"{name} (saved {saved.get(name)!r}, now {self._fingerprint.get(name)!r})"
            for name in sorted({*saved, *self._fingerprint})
            if saved.get(name) != self._fingerprint.get(name)
        ]
        if differs:
            raise CheckpointError(
                f"checkpoint {self._path} belongs to another run; it differs in "
                f"{', '.join(differs)}; {self._advice}"
            )
        state: dict[str, Any] = torch.load(
            io.BytesIO(data), map_location=map_location, weights_only=True
        )
        return state


class Checkpoint(StateFolder):
    """The state of a sampling run.

    Args:
        directory: made if needed.   fingerprint: everything that determines the samples.
    """

    def __init__(self, directory: str | Path, fingerprint: dict[str, Any]) -> None:
        advice = "use another folder, or the same arguments"
        super().__init__(directory, fingerprint, "state", advice)

    def save(self, state: State) -> None:
        """Write the state."""
        self.write({**state.__getstate__(), "cost": asdict(state.cost)})

    def load(self) -> State | None:
        """The saved state, or None; raises as `read` does."""
        fields = self.read()
        return None if fields is None else State(**{**fields, "cost": Cost(**fields["cost"])})


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
