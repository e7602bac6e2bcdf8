"""`fastguide compare` and its fixed form, `fastguide demo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastguide import report, zoo
from fastguide.cli.base import Command, say, show_bars
from fastguide.cli.options import (
    Folder,
    Integer,
    Numbers,
    OptionalFolder,
    OptionalInteger,
    OptionalName,
    OptionalNumber,
    TaskName,
    refuse,
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

    def compare(self, task: zoo.Task, settings: report.Settings, folder: Path) -> None:
        """Run on sequences, print the table, write the report."""
        out = make_directory(folder, "out")
        comparison = report.compare(
            task, settings, progress=show_bars(), say=say, keep=lambda made: self.keep(made, out)
        )
        page = report.write(comparison, out)
        print(report.summary_text(comparison))
        say(f"\nwrote {page}, its pictures, designs.fasta, designs.csv and summary.json")

    def keep(self, made: report.Designs | report.Pictures, out: Path) -> None:
        """Store a finished method's result."""
        made.result.save(out / "results" / made.key)
        self._kept.append(str(out / "results" / made.key))

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
        report.check_pictures()
        self.compare(zoo.load("utr"), report.DEMO, self.out)
        return True


@dataclass(kw_only=True)
class Compare(_Comparing):
    """Compare methods on a task: the demo with options, or any methods at one budget.

    With --rows-per-design each method gets the number of candidates, or particles, with which it
    runs that many denoiser rows per design, within 5 % where its size allows. Pictures are always
    compared so.

    Writes report.html with its pictures, the designs, summary.json and each method's result, and
    prints one table.
    """

    task: TaskName
    """What to design; `fastguide zoo list` shows the tasks."""
    reward: OptionalName = None
    """Of pictures: which reward guides; a wrong name lists them. Without this: aesthetic."""
    methods: Annotated[tuple[Method, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ()
    """Which methods; matched is best of N at the denoiser rows of the dearest svdd run. Without
    this: unguided, best_of_n, matched and svdd; with a budget every method but matched."""
    rows_per_design: OptionalNumber = None
    """Budget: denoiser rows that each method runs per design; 256 for pictures."""
    seconds_per_design: OptionalNumber = None
    """Of sequences: budget in measured seconds instead, which is approximate."""
    alphas: Numbers = ()
    """Temperatures, one run each of a method that has one, in units of the reward; 0 takes the best
    candidate. Without this: 0, 0.3 and 1; with a budget 0.3; for pictures half the standard
    deviation of the reward of unguided samples."""
    num_samples: Integer = 64
    """Designs per method."""
    num_candidates: OptionalInteger = None
    """Of sequences without a budget: candidates per design and step, or particles; 10."""
    num_steps: OptionalInteger = None
    """Steps of the diffusion; 128 for sequences, 32 for pictures."""
    seed: Integer = 0
    """Of every method."""
    num_reference: OptionalInteger = None
    """Unguided samples that say what is natural; 1000 sequences, 256 pictures."""
    num_masks: OptionalInteger = None
    """Of sequences: masks that the log-likelihood bound averages over; 64."""
    fixed_rows: OptionalInteger = None
    """Pad every network call to this many rows: bit-equal designs on one machine, always."""
    ablate: bool = False
    """Of pictures: also vary the candidates and the alpha of SVDD."""
    weights: OptionalFolder = None
    """Models written by `fastguide zoo train`, instead of the shipped ones."""
    out: Folder = Path("out/compare")
    """Folder for the report."""

    def run(self) -> bool:
        """The comparison that the options ask for."""
        report.check_pictures()
        task = zoo.load(self.task, folder=self.weights)
        if isinstance(task, zoo.PictureTask):
            self._compare_pictures(task)
        else:
            self._compare_sequences(task)
        return True

    def _compare_sequences(self, task: zoo.Task) -> None:
        refuse(self.task, "sequences", reward=self.reward, ablate=self.ablate)
        budget = self.rows_per_design is not None or self.seconds_per_design is not None
        every = tuple(name for name in report.METHODS if name != "matched")
        one = (report.DEMO.middle_alpha,)
        settings = report.Settings(
            methods=self.methods or (every if budget else report.CLASSIC),
            num_samples=self.num_samples,
            alphas=self.alphas or (one if budget else report.DEMO.alphas),
            seed=self.seed,
            fixed_rows=self.fixed_rows,
            rows_per_design=self.rows_per_design,
            seconds_per_design=self.seconds_per_design,
            **_given(
                num_candidates=self.num_candidates,
                num_steps=self.num_steps,
                num_reference=self.num_reference,
                num_masks=self.num_masks,
            ),
        )
        self.compare(task, settings, self.out)

    def _compare_pictures(self, task: zoo.PictureTask) -> None:
        refuse(
            self.task,
            "pictures",
            seconds_per_design=self.seconds_per_design,
            num_candidates=self.num_candidates,
            num_masks=self.num_masks,
        )
        settings = report.GallerySettings(
            reward=self.reward,
            num_samples=self.num_samples,
            alphas=self.alphas,
            seed=self.seed,
            fixed_rows=self.fixed_rows,
            ablate=self.ablate,
            **_given(
                methods=self.methods or None,
                rows_per_design=self.rows_per_design,
                num_steps=self.num_steps,
                num_reference=self.num_reference,
            ),
        )
        report.picture_rewards(task, settings.reward)  # an unknown name is said before any work
        out = make_directory(self.out, "out")
        gallery = report.compare_pictures(
            task, settings, progress=show_bars(), say=say, keep=lambda made: self.keep(made, out)
        )
        page = report.write_gallery(gallery, out)
        print(report.gallery_text(gallery))
        say(f"\nwrote {page}, its pictures, grids, samples.npz and summary.json")


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others have the defaults of the settings."""
    return {name: value for name, value in options.items() if value is not None}
