"""`fastguide sample`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastguide import report, zoo
from fastguide.cli.base import Command, say, show_bars
from fastguide.cli.options import (
    Folder,
    Integer,
    Number,
    OptionalFolder,
    OptionalInteger,
    TaskName,
)
from fastguide.errors import ArgumentError
from fastguide.result import make_directory
from fastguide.samplers import SVDD, BestOfN, Unguided
from fastguide.samplers.base import Sampler
from fastguide.zoo import Task


@dataclass(kw_only=True)
class Sample(Command):
    """Make designs with one method.

    Writes designs.fasta, designs.csv, summary.json and the whole result (result.safetensors and
    result.json, read by fastguide.Result.load). Each design comes with its reward by the guiding
    and by the judging oracle, and with a lower bound of its log-likelihood in nats.
    """

    task: TaskName
    """What to design; `fastguide zoo list` shows the tasks."""
    method: Literal["svdd", "best_of_n", "unguided"] = "svdd"
    """svdd chooses at every step, best_of_n among finished samples, unguided not at all."""
    num_samples: Integer = 64
    """How many designs."""
    num_candidates: Integer = 10
    """Candidates per design: at every step (svdd), or finished samples (best_of_n)."""
    alpha: Number = 0.1
    """Temperature of svdd's choice, in units of the reward; small pulls hard, 0 takes the best."""
    num_steps: Integer = 128
    """Steps of the diffusion; more steps choose more often."""
    seed: Integer = 0
    """Another seed gives other designs; the same one gives the same."""
    num_masks: Integer = 64
    """Masks that the log-likelihood bound averages over."""
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
        if self.num_masks < 1:
            raise ArgumentError(f"num_masks must be at least 1, got {self.num_masks}")
        task = zoo.load(self.task, folder=self.weights)
        out = make_directory(self.out, "out")
        result = self._sampler(task).sample(
            self.num_samples,
            num_steps=self.num_steps,
            seed=self.seed,
            fixed_rows=self.fixed_rows,
            checkpoint=self.checkpoint,
            progress=show_bars(),
        )
        made = report.assess(
            task, self.method, self.method, result, num_masks=self.num_masks, progress=show_bars()
        )
        result.save(out)
        report.write_designs(out, [made])
        report.write_json(out / "summary.json", report.designs_record(self.task, made))
        print(report.designs_text(self.task, made))
        say(f"wrote designs.fasta, designs.csv, summary.json and the result to {out}")
        return True

    def kept(self) -> str:
        """Finished designs, where a checkpoint was asked for."""
        if self.checkpoint is None:
            return "nothing was kept (with --checkpoint DIR a run can be continued)"
        return f"finished steps are in {self.checkpoint}; the same command goes on from there"

    def _sampler(self, task: Task) -> Sampler:
        if self.method == "unguided":
            return Unguided(task.diffusion, task.reward)
        if self.method == "best_of_n":
            return BestOfN(task.diffusion, task.reward, num_candidates=self.num_candidates)
        return SVDD(
            task.diffusion, task.reward, num_candidates=self.num_candidates, alpha=self.alpha
        )
