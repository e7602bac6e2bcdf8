"""`fastguide compare` and its fixed form, `fastguide demo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastguide import report, zoo
from fastguide.cli.base import Command, say, show_bars
from fastguide.cli.options import (
    Folder,
    Integer,
    Numbers,
    OptionalFolder,
    OptionalInteger,
    TaskName,
)
from fastguide.result import make_directory

Method = Literal["unguided", "best_of_n", "matched", "svdd"]


@dataclass(kw_only=True)
class _Comparing(Command):
    _kept: list[str] = field(default_factory=list, init=False)

    def compare(
        self, task_name: str, settings: report.Settings, weights: Path | None, folder: Path
    ) -> None:
        """Run, print the table, write the report."""
        report.check_pictures()
        task = zoo.load(task_name, folder=weights)
        out = make_directory(folder, "out")

        def keep(made: report.Designs) -> None:
            made.result.save(out / "results" / made.key)
            self._kept.append(str(out / "results" / made.key))

        comparison = report.compare(task, settings, progress=show_bars(), say=say, keep=keep)
        page = report.write(comparison, out)
        print(report.summary_text(comparison))
        say(f"\nwrote {page}, its pictures, designs.fasta, designs.csv and summary.json")

    def kept(self) -> str:
        """The results of the methods that were done."""
        if not self._kept:
            return "no method was finished, so nothing was kept"
        return f"kept the results of finished methods: {', '.join(self._kept)}"


@dataclass(kw_only=True)
class Demo(_Comparing):
    """Design 5'UTRs for high ribosome load, and compare the methods.

    Makes 64 designs each with unguided sampling, best of 10, SVDD at three alphas, and best of N at
    as many denoiser rows as SVDD. Writes report.html with its pictures, designs.fasta, designs.csv
    and summary.json, and prints one table. Takes about a minute or two on two cores.
    """

    out: Folder = Path("out/demo")
    """Folder for the report."""

    def run(self) -> bool:
        """The fixed comparison."""
        self.compare("utr", report.DEMO, None, self.out)
        return True


@dataclass(kw_only=True)
class Compare(_Comparing):
    """Compare methods on a task: the demo with options.

    Writes report.html with its pictures, designs.fasta, designs.csv, summary.json and each method's
    result, and prints one table.
    """

    task: TaskName
    """What to design; `fastguide zoo list` shows the tasks."""
    methods: Annotated[tuple[Method, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = (
        "unguided",
        "best_of_n",
        "matched",
        "svdd",
    )
    """Which methods; matched is best of N at the denoiser rows of the dearest svdd run."""
    alphas: Numbers = report.DEMO.alphas
    """Temperatures of svdd, one run each, in units of the reward; 0 takes the best candidate."""
    num_samples: Integer = 64
    """Designs per method."""
    num_candidates: Integer = 10
    """Candidates of best_of_n and svdd."""
    num_steps: Integer = 128
    """Steps of the diffusion."""
    seed: Integer = 0
    """Of every method."""
    num_reference: Integer = 1000
    """Unguided samples that say what is natural."""
    num_masks: Integer = 64
    """Masks that the log-likelihood bound averages over."""
    fixed_rows: OptionalInteger = None
    """Pad every network call to this many rows: bit-equal designs on one machine, always."""
    weights: OptionalFolder = None
    """Models written by `fastguide zoo train`, instead of the shipped ones."""
    out: Folder = Path("out/compare")
    """Folder for the report."""

    def run(self) -> bool:
        """The comparison that the options ask for."""
        settings = report.Settings(
            methods=self.methods,
            num_samples=self.num_samples,
            num_candidates=self.num_candidates,
            alphas=self.alphas,
            num_steps=self.num_steps,
            seed=self.seed,
            num_reference=self.num_reference,
            num_masks=self.num_masks,
            fixed_rows=self.fixed_rows,
        )
        self.compare(self.task, settings, self.weights, self.out)
        return True
