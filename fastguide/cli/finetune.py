"""`fastguide finetune`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fastguide import report, zoo
from fastguide.cli.base import Command, say, show_bars
from fastguide.cli.options import (
    Folder,
    Integer,
    OptionalFolder,
    OptionalInteger,
    OptionalName,
    OptionalNumber,
    TaskName,
)
from fastguide.errors import ArgumentError
from fastguide.result import make_directory

Method = Literal["backprop", "ppo", "rwmle", "value_weighted", "pcl", "nft"]


@dataclass(kw_only=True)
class Finetune(Command):
    """Train a task's model on its reward, and compare its plain samples with guidance.

    The model moves towards p_pre(x) exp(r(x) / alpha). Afterwards its plain samples stand against
    those of the model as it was: unguided, best of 10, and SVDD at the same alpha.

    Writes model.safetensors, history.jsonl, report.html with its pictures, designs.fasta,
    designs.csv and summary.json, and prints one table. The state of training is kept in
    OUT/training every 20 s; after Ctrl-C the same command goes on from there.
    """

    task: TaskName
    """What to design; `fastguide zoo list` shows the tasks."""
    method: Method = "backprop"
    """backprop follows the gradient of the reward through the sampling path; ppo, rwmle
    (reward-weighted likelihood), value_weighted (distilled SVDD), pcl (path consistency) and nft
    (signed denoising) need only its values."""
    alpha: OptionalNumber = None
    """Temperature, in units of the reward; small goes far for the reward. Without this, and for
    each of the next five: what suits the method (docs/cli.md)."""
    num_iterations: OptionalInteger = None
    """Batches of training."""
    batch_size: OptionalInteger = None
    """Paths of each."""
    num_steps: OptionalInteger = None
    """Steps of the paths that are trained on. Samples afterwards take 128."""
    learning_rate: OptionalNumber = None
    """Of Adam."""
    adapter: OptionalName = None
    """full trains every weight, lora low-rank terms."""
    seed: Integer = 0
    """Of training and of all samples."""
    max_minutes: OptionalNumber = None
    """Training stops when it has run that long since the command was given."""
    kl_budget: OptionalNumber = None
    """Training stops when the KL to the pre-trained model, in nats per path, is beyond this. Not
    for rwmle and nft."""
    num_samples: Integer = 64
    """Designs of each method of the comparison."""
    weights: OptionalFolder = None
    """Models written by `fastguide zoo train`, instead of the shipped ones."""
    out: Folder = Path("out/finetune")
    """Folder for the results and the state of training."""

    def run(self) -> bool:
        """Train, compare, write."""
        report.check_pictures()
        task = zoo.load(self.task, folder=self.weights)
        if isinstance(task, zoo.PictureTask):
            raise ArgumentError(
                f"task: {self.task!r} makes pictures; this command trains models of sequences, "
                "and fastguide.finetune in Python those of pictures too"
            )
        settings = self._settings()
        out = make_directory(self.out, "out")
        tuning = report.tune(
            task,
            settings,
            checkpoint=self._state,
            save=out / "model.safetensors",
            progress=show_bars(),
            say=say,
        )
        page = report.write_tuning(tuning, out)
        print(report.tuning_text(tuning))
        say(
            f"\nwrote {page}, its pictures, model.safetensors, history.jsonl, designs.fasta, "
            "designs.csv and summary.json"
        )
        return True

    def kept(self) -> str:
        """The state of training, where there is one."""
        if not (self._state / "state.json").exists():
            return "training was too short for anything to be kept"
        return (
            f"training, up to at most 20 s ago, is in {self._state}; the same command goes on "
            "from there"
        )

    @property
    def _state(self) -> Path:
        return self.out / "training"

    def _settings(self) -> report.TuningSettings:
        given = {
            name: getattr(self, name)
            for name in (
                *("alpha", "num_iterations", "batch_size", "num_steps", "learning_rate"),
                *("adapter", "seed", "max_minutes", "kl_budget", "num_samples"),
            )
        }
        given = {name: value for name, value in given.items() if value is not None}
        settings: report.TuningSettings = replace(report.TUNINGS[self.method], **given)
        return settings
