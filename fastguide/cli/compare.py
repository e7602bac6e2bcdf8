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
    OptionalNumber,
    TaskName,
)
from fastguide.result import make_directory

Method = Literal[
    "unguided",
    "best_of_n",
    "matched",
    "svdd",
    "svdd_r",
    "beam_search",
    "scheduled_search",
    "blockwise",
    "smc",
    "nested_smc",
    "fk_steering",
    "classifier_guidance",
    "dps",
    "tds",
    "das",
]


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
    """Compare methods on a task: the demo with options, or any methods at one budget.

    With --rows-per-design each method gets the number of candidates, or particles, with which it
    runs that many denoiser rows per design, within 5 % where its size allows.

    Writes report.html with its pictures, designs.fasta, designs.csv, summary.json and each method's
    result, and prints one table.
    """

    task: TaskName
    """What to design; `fastguide zoo list` shows the tasks."""
    methods: Annotated[tuple[Method, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ()
    """Which methods; matched is best of N at the denoiser rows of the dearest svdd run. Without
    this: unguided, best_of_n, matched and svdd; with a budget every method but matched."""
    rows_per_design: OptionalNumber = None
    """Budget: denoiser rows that each method runs per design."""
    seconds_per_design: OptionalNumber = None
    """Budget in measured seconds instead, which is approximate."""
    alphas: Numbers = ()
    """Temperatures, one run each of a method that has one, in units of the reward; 0 takes the best
    candidate. Without this: 0, 0.3 and 1; with a budget 0.3."""
    num_samples: Integer = 64
    """Designs per method."""
    num_candidates: Integer = 10
    """Candidates per design and step, or particles; a budget chooses them itself."""
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
        budget = self.rows_per_design is not None or self.seconds_per_design is not None
        every = tuple(name for name in report.METHODS if name != "matched")
        one = (report.DEMO.middle_alpha,)
        settings = report.Settings(
            methods=self.methods or (every if budget else report.CLASSIC),
            num_samples=self.num_samples,
            num_candidates=self.num_candidates,
            alphas=self.alphas or (one if budget else report.DEMO.alphas),
            num_steps=self.num_steps,
            seed=self.seed,
            num_reference=self.num_reference,
            num_masks=self.num_masks,
            fixed_rows=self.fixed_rows,
            rows_per_design=self.rows_per_design,
            seconds_per_design=self.seconds_per_design,
        )
        self.compare(self.task, settings, self.weights, self.out)
        return True
