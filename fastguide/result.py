"""What a run returns: samples, rewards, a trace per step, and the cost; with save and load."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fastguide.errors import ArgumentError, CheckpointError
from fastguide.evaluation import Cost

Tensor = torch.Tensor


@dataclass
class Trace:
    """What happened at each of the S steps of a run, over all its chains.

    Attributes:
        time: [S] float64 time of the candidates.
        values: [S, N] float32 value of the state each chain moved to, in reward units; NaN where
            nothing was scored. The last step holds rewards.
        ess: [S] float64 mean effective number of candidates, NaN where nothing was selected.
        invalid_steps: [S] int64 chains whose candidates were all invalid.
        denoiser_rows, denoiser_rows_requested, reward_rows, reward_rows_requested: [S] int64.
    """

    time: Tensor
    values: Tensor
    ess: Tensor
    invalid_steps: Tensor
    denoiser_rows: Tensor
    denoiser_rows_requested: Tensor
    reward_rows: Tensor
    reward_rows_requested: Tensor

    def value_quantiles(self, q: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> Tensor:
        """Quantiles over chains of the value at each step, [S, len(q)] float32."""
        return self.values.nanquantile(torch.tensor(q), dim=1).T

    @staticmethod
    def concatenate(parts: list[Trace]) -> Trace:
        """The trace of chains that ran one shard after another."""
        if len(parts) == 1:
            return parts[0]
        sizes = torch.tensor([part.values.shape[1] for part in parts], dtype=torch.float64)
        merged: dict[str, Tensor] = {"time": parts[0].time}
        merged["values"] = torch.cat([part.values for part in parts], dim=1)
        ess = torch.stack([part.ess for part in parts])
        seen = sizes[:, None] * ess.isfinite()
        merged["ess"] = (ess.nan_to_num() * seen).sum(0) / seen.sum(0)
        for name in ("invalid_steps", *_COUNTS):
            merged[name] = torch.stack([getattr(part, name) for part in parts]).sum(0)
        return Trace(**merged)


_COUNTS = ("denoiser_rows", "denoiser_rows_requested", "reward_rows", "reward_rows_requested")
_TENSORS = ("samples", "rewards", "chains", "particles", "log_weights", "log_z")


@dataclass
class Result:
    """Samples and everything known about how they were made.

    Attributes:
        samples: [N, ...] final states.
        rewards: [N] float32, or None for a sampler without a reward.
        chains: [N] int64 global chain ids.
        trace: per step.   cost: rows and seconds.
        settings: the sampler's name and arguments.
        stopped: None, or why the run ended early; then only finished chains are here.
        particles, log_weights, log_z: [N, P, ...], [N, P], [N] of particle methods, else None.
        components: {name: [N] float32} of a reward made by `fastguide.rewards.combine`, else None.
    """

    samples: Tensor
    rewards: Tensor | None
    chains: Tensor
    trace: Trace
    cost: Cost
    settings: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    particles: Tensor | None = None
    log_weights: Tensor | None = None
    log_z: Tensor | None = None
    components: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return self.samples.shape[0]

    def save(self, directory: str | Path) -> None:
        """Write result.safetensors and result.json into `directory`, which is made if needed."""
        path = make_directory(directory, "directory")
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {f"trace.{name}": value for name, value in vars(self.trace).items()}
        tensors |= {f"component.{name}": value for name, value in (self.components or {}).items()}
        kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items() if v is not None}
        save_file(kept, path / "result.safetensors")
        record = {
            "settings": self.settings,
            "stopped": self.stopped,
            "cost": dataclasses.asdict(self.cost),
        }
        (path / "result.json").write_text(json.dumps(record, indent=2))

    @staticmethod
    def load(directory: str | Path) -> Result:
        """Read what `save` wrote.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        path = Path(directory)
        try:
            tensors = load_file(path / "result.safetensors")
            record = json.loads((path / "result.json").read_text())
        except Exception as error:
            raise CheckpointError(
                f"cannot read a result from {path}: {error}; it should hold result.safetensors "
                "and result.json as written by Result.save"
            ) from error

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        fields: dict[str, Any] = {name: tensors.get(name) for name in _TENSORS}
        return Result(
            trace=Trace(**under("trace.")),
            cost=Cost(**record.pop("cost")),
            components=under("component.") or None,
            **fields,
            **record,
        )


def make_directory(directory: str | Path, argument: str) -> Path:
    """Create a folder that files can be written to, or raise ArgumentError naming the argument."""
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArgumentError(
            f"{argument}={str(directory)!r} cannot be written: {error.strerror or error}; "
            "choose a folder you may write to"
        ) from error
    return path
