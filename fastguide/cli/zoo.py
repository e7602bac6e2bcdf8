"""`fastguide zoo list` and `fastguide zoo train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastguide import report, zoo
from fastguide.cli.base import Command, say
from fastguide.cli.options import File, Folder, Integer, TaskName
from fastguide.errors import ArgumentError
from fastguide.zoo import train_glyphs, train_utr

TRAINERS: dict[str, Callable[..., dict[str, Any]]] = {
    "utr": train_utr.train,
    "glyphs": train_glyphs.train,
}


@dataclass(kw_only=True)
class ZooList(Command):
    """List the shipped tasks: what they are for, their models, data and held-out metrics."""

    def run(self) -> bool:
        """Print every card."""
        print("\n\n".join(_describe(name, zoo.load(name).card) for name in zoo.names()))
        return True


@dataclass(kw_only=True)
class ZooTrain(Command):
    """Train the models of a task from its public measurements.

    Writes weights and a card into --out; `fastguide sample TASK --weights DIR` uses them.
    docs/data.md says where the measurements are and how to make the file. On two cores utr takes
    minutes and glyphs most of an hour.
    """

    task: TaskName
    """Which task; `fastguide zoo list` shows them."""
    data: File
    """The measurements: for utr a CSV file with columns seq, rl, library; for glyphs a NumPy file
    with arrays images, alphabet, character."""
    out: Folder = Path("out/weights")
    """Folder for weights and card."""
    seed: Integer = 0
    """Of initial weights and of the order of rows."""
    threads: Integer = 2
    """Networks trained at once, one thread each."""

    def run(self) -> bool:
        """Train and say what came out."""
        if self.task not in TRAINERS:
            raise ArgumentError(
                f"task: there is no recipe for {self.task!r}; known: {', '.join(TRAINERS)}"
            )
        TRAINERS[self.task](self.data, self.out, seed=self.seed, threads=self.threads)
        say(f"wrote weights and card.json to {self.out}; use them with --weights {self.out}")
        return True

    def kept(self) -> str:
        """Training stores nothing before its end."""
        return "training stores weights at its end only, so nothing was kept"


def _describe(name: str, card: dict[str, Any]) -> str:
    data = card.get("data", {})
    rows = [["model", "parameters", "MFLOP per row", "kB", "held-out metrics"]]
    rows += [
        [
            model,
            f"{facts['parameters']:,}",
            str(facts["mflop_per_row"]),
            f"{facts['bytes'] / 1000:,.0f}",
            _metrics(card.get("metrics", {}).get(model, {})),
        ]
        for model, facts in card["models"].items()
    ]
    lines = [
        f"{name}: {card.get('summary', '')}",
        *(f"  {key}: {data[key]}" for key in ("publication", "accession") if key in data),
        "",
        *("  " + line for line in report.text_table(rows).splitlines()),
    ]
    return "\n".join(lines)


def _metrics(metrics: dict[str, Any]) -> str:
    if "bits_per_nucleotide" in metrics:
        return f"{metrics['bits_per_nucleotide']:.3f} bits per nucleotide"
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    if numbers:
        return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
    found = [f"{library} {facts['pearson']:.3f}" for library, facts in metrics.items()]
    return f"Pearson {', '.join(found)}" if found else "none"
