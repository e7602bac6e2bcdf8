"""Everything a fine-tuning leaves on disk, but for the weights."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastguide.report.files import comparison_record, write_designs, write_json
from fastguide.report.pictures import draw
from fastguide.report.style import BEST, GUIDED, INK, PLAIN, new_figure, pictures
from fastguide.report.tuning import Tuning
from fastguide.report.tuning_page import build_tuning_page
from fastguide.report.tuning_text import tuning_figures, tuning_findings
from fastguide.report.words import words_of
from fastguide.result import make_directory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "kl": "KL from the pre-trained model (nats per path)",
    "ess": "Effective number of weights",
    "clip_fraction": "Share of clipped ratios",
    "clipped": "Share of clipped advantages",
    "residual": "Mean squared residual",
}
"""Columns of a history that get a panel of their own, where they are known."""


def write_tuning(tuning: Tuning, directory: str | Path) -> Path:
    """Write report.html, its pictures, designs.fasta, designs.csv, history.jsonl, summary.json.

    Returns:
        report.html.
    Raises:
        ArgumentError: the folder cannot be written.
        MissingExtraError: matplotlib is not installed; everything but report.html is written.
    """
    path = make_directory(directory, "directory")
    write_designs(path, tuning.comparison.designs)
    tuning.history.save(path / "history.jsonl")
    record = comparison_record(tuning.comparison) | {
        "settings": dataclasses.asdict(tuning.settings),
        "methods": tuning_figures(tuning),
        "findings": tuning_findings(tuning),
        "training": tuning.figures(),
    }
    write_json(path / "summary.json", record)
    images = {}
    for name, figure in {"curves": draw_curves(tuning), **draw(tuning.comparison)}.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        images[name] = buffer.getvalue()
        (path / f"{name}.png").write_bytes(images[name])
    page = path / "report.html"
    page.write_text(build_tuning_page(tuning, images), encoding="utf-8")
    return page


def draw_curves(tuning: Tuning) -> Figure:
    """Rewards along training with what guidance reaches, and the panels that the method has.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    history, words = tuning.history, words_of(tuning.comparison.task)
    known = [name for name in PANELS if any(name in row for row in history.rows)]
    with pictures():
        heights = [3.4, *[1.9] * len(known)]
        figure, panels = new_figure(
            sum(heights) + 0.5, rows=len(heights), ratios=heights, share_x=True
        )
        axes = panels[0]
        _line(axes, tuning, "reward", GUIDED[1], "guiding oracle")
        _line(axes, tuning, "held_out", BEST[1], "judging oracle, watched only")
        for made, hue in ((tuning.comparison.designs[0], PLAIN), (tuning.guided, INK)):
            level = float(made.judge.mean())
            axes.axhline(level, color=hue, lw=1.2, ls=(0, (4, 3)), label=f"{made.label}, judged")
        axes.set(title="Reward of the paths trained on", ylabel=words.reward)
        for axes, name in zip(panels[1:], known, strict=True):
            _line(axes, tuning, name, GUIDED[0], None)
            axes.set_title(PANELS[name])
            axes.set_ylim(bottom=0)
        panels[-1].set_xlabel("iteration")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _line(axes: Axes, tuning: Tuning, name: str, colour: str, label: str | None) -> None:
    values = tuning.history.column(name).numpy()
    axes.plot(np.arange(1, len(values) + 1), values, color=colour, lw=1.6, label=label)
