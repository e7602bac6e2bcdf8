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


class Checkpoint:
    """A folder with state.pt (the run's state) and state.json (what run it is, and the hash).

    Args:
        directory: made if needed.   fingerprint: everything that determines the samples.
    """

    def __init__(self, directory: str | Path, fingerprint: dict[str, Any]) -> None:
        self._path = make_directory(directory, "checkpoint")
        self._fingerprint = json.loads(json.dumps(fingerprint))

    def save(self, state: State) -> None:
        """Write the state; an interruption leaves the previous one intact."""
        buffer = io.BytesIO()
        torch.save({**state.__getstate__(), "cost": asdict(state.cost)}, buffer)
        data = buffer.getvalue()
        record = {"run": self._fingerprint, "sha256": hashlib.sha256(data).hexdigest()}
        # the hash names its file, so a crash between the two writes cannot mix two states
        name = f"state-{record['sha256'][:16]}.pt"
        _replace(self._path / name, data)
        _replace(self._path / "state.json", json.dumps({**record, "file": name}, indent=2).encode())
        for old in self._path.glob("state-*.pt"):
            if old.name != name:
                old.unlink()

    def load(self) -> State | None:
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
                + ", ".join(differs)
                + "; use another folder, or the same arguments"
            )
        fields = torch.load(io.BytesIO(data), weights_only=True)
        return State(**{**fields, "cost": Cost(**fields["cost"])})


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
