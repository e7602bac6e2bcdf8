"""`fastguide sample`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastguide import report, zoo
from fastguide.cli.base import Command, say, show_bars
from fastguide.cli.options import (
    Folder,
    Integer,
    Number,
    OptionalFolder,
    OptionalInteger,
    OptionalName,
    TaskName,
    refuse,
)
from fastguide.diffusion import Diffusion
from fastguide.errors import ArgumentError
from fastguide.result import Result, make_directory
from fastguide.samplers import SVDD, BestOfN, Unguided
from fastguide.samplers.base import Sampler


@dataclass(kw_only=True)
class Sample(Command):
    """Make designs with one method.

    Writes designs.fasta and designs.csv, or samples.npz and grid.png of pictures; summary.json; and
    the whole result (result.safetensors and result.json, read by fastguide.Result.load). Each
    design comes with its reward by the guiding and by the judging oracle, sequences also with a
    lower bound of their log-likelihood in nats.
    """

    task: TaskName
    """What to design; `fastguide zoo list` shows the tasks."""
    reward: OptionalName = None
    """Of pictures: which reward guides; a wrong name lists them. Without this: aesthetic."""
    method: Literal["svdd", "best_of_n", "unguided"] = "svdd"
    """svdd chooses at every step, best_of_n among finished samples, unguided not at all."""
    num_samples: Integer = 64
    """How many designs."""
    num_candidates: Integer = 10
    """Candidates per design: at every step (svdd), or finished samples (best_of_n)."""
    alpha: Number = 0.1
    """Temperature of svdd's choice, in units of the reward; small pulls hard, 0 takes the best."""
    num_steps: OptionalInteger = None
    """Steps of the diffusion; more steps choose more often. 128 for sequences, 32 for pictures."""
    seed: Integer = 0
    """Another seed gives other designs; the same one gives the same."""
    num_masks: OptionalInteger = None
    """Of sequences: masks that the log-likelihood bound averages over; 64."""
    fixed_rows: OptionalInteger = None
    """Pad every network call to this many rows: bit-equal designs on one machine, always."""
    checkpoint: OptionalFolder = None
    """Keep finished designs in this folder; the same command, run again, goes on from there."""
    weights: OptionalFolder = None
    """Models written by `fastguide zoo train`, instead of the shipped ones."""
    out: Folder = Path("out/sample")
    """Folder for the results."""

    def run(self) -> bool:
        """Sample, assess, write."""
        if self.num_samples < 1:
            raise ArgumentError(f"num_samples must be at least 1, got {self.num_samples}")
        task = zoo.load(self.task, folder=self.weights)
        if isinstance(task, zoo.PictureTask):
            self._sample_pictures(task)
        else:
            self._sample_sequences(task)
        return True

    def _sample_sequences(self, task: zoo.Task) -> None:
        refuse(self.task, "sequences", reward=self.reward)
        num_masks = report.Settings.num_masks if self.num_masks is None else self.num_masks
        if num_masks < 1:
            raise ArgumentError(f"num_masks must be at least 1, got {num_masks}")
        out = make_directory(self.out, "out")
        result = self._sample(task.diffusion, task.reward, report.Settings.num_steps)
        made = report.assess(
            task, self.method, self.method, result, num_masks=num_masks, progress=show_bars()
        )
        result.save(out)
        report.write_designs(out, [made])
        report.write_json(out / "summary.json", report.designs_record(self.task, made))
        print(report.designs_text(self.task, made))
        say(f"wrote designs.fasta, designs.csv, summary.json and the result to {out}")

    def _sample_pictures(self, task: zoo.PictureTask) -> None:
        refuse(self.task, "pictures", num_masks=self.num_masks)
        name, reward, _ = report.picture_rewards(task, self.reward)
        out = make_directory(self.out, "out")
        result = self._sample(task.diffusion, reward, report.GallerySettings.num_steps)
        made = report.assess_pictures(task, name, self.method, self.method, result)
        report.write_pictures(out, self.task, name, made)
        print(report.pictures_text(made))
        say(f"wrote samples.npz, grid.png, summary.json and the result to {out}")

    def _sample(self, diffusion: Diffusion, reward: Callable[..., Any], usual_steps: int) -> Result:
        return self._sampler(diffusion, reward).sample(
            self.num_samples,
            num_steps=usual_steps if self.num_steps is None else self.num_steps,
            seed=self.seed,
            fixed_rows=self.fixed_rows,
            checkpoint=self.checkpoint,
            progress=show_bars(),
        )

    def kept(self) -> str:
        """Finished designs, where a checkpoint was asked for."""
        if self.checkpoint is None:
            return "nothing was kept (with --checkpoint DIR a run can be continued)"
        return f"finished steps are in {self.checkpoint}; the same command goes on from there"

    def _sampler(self, diffusion: Diffusion, reward: Callable[..., Any]) -> Sampler:
        if self.method == "unguided":
            return Unguided(diffusion, reward)
        if self.method == "best_of_n":
            return BestOfN(diffusion, reward, num_candidates=self.num_candidates)
        return SVDD(diffusion, reward, num_candidates=self.num_candidates, alpha=self.alpha)
