"""report.html of a fine-tuning: one file with everything in it."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from fastguide.report.family import cost_per_design
from fastguide.report.page import SHOWN_DESIGNS, cells, footer, picture, start_codons
from fastguide.report.page_style import STYLE
from fastguide.report.tables import number, quality_columns, rows_of
from fastguide.report.tuning import Tuning
from fastguide.report.tuning_text import (
    tuning_columns,
    tuning_figures,
    tuning_findings,
    tuning_legend,
)
from fastguide.report.words import words_of

CAPTIONS = {
    "curves": (
        "Along training",
        "Means over the batch of each iteration, drawn with the steps of the training. Dashed: the "
        "judge's mean of what the pre-trained model gives. The judge decides nothing; where it "
        "falls behind the guide, training goes after the guide's errors.",
    ),
    "rewards": (
        "Rewards",
        "Every point is a design. Upright: median; bar: middle half; dashed: median of unguided "
        "samples.",
    ),
    "naturalness": (
        "Naturalness against reward",
        "Small points are designs, large ones medians. Right is better for the judge; up is more "
        "like the sequences that the model was trained on.",
    ),
    "diversity": (
        "Diversity",
        "How many sites differ between designs of one method. A model that has collapsed moves to "
        "the left.",
    ),
    "logos": ("Sequence logos", "A tall letter is preferred at that site."),
    "cost": (
        "Cost of the designs",
        "Without training. Top: where the time went. Bottom: rows run, within the rows requested.",
    ),
}
"""Title and caption of each picture, in their order."""


def build_tuning_page(tuning: Tuning, images: dict[str, bytes]) -> str:
    """The whole page.

    Args:
        images: PNG files by name. Any may be missing.
    """
    comparison, figures = tuning.comparison, tuning_figures(tuning)
    words = words_of(comparison.task)
    findings = "".join(f"<li>{escape(line)}</li>" for line in tuning_findings(tuning))
    body = [
        f"<h1>Fine-tuning for {escape(words.design)}s of high {escape(words.reward)}</h1>",
        f'<p class="lead">{escape(_lead(tuning))}</p>',
        f'<div class="card findings"><ul>{findings}</ul></div>',
        "<h2>The tuned model against guidance while sampling</h2>",
        cells(rows_of(tuning_columns(), figures)),
        f'<p class="lead">{escape(tuning_legend(tuning))}</p>',
        '<div class="grid">',
        *(picture(name, *CAPTIONS[name], images[name]) for name in CAPTIONS if name in images),
        "</div>",
        "<h2>Training</h2>",
        cells(_training(tuning)),
        '<p class="lead">Seconds are wall-clock times of this machine; processor seconds, of all '
        "threads, leave out what an earlier command trained. Break-even: the designs after which "
        "training and plain samples have taken less time than SVDD on the pre-trained model.</p>",
        "<h2>Diversity and cost in full</h2>",
        cells(rows_of(quality_columns(words, figures), figures)),
        cells(rows_of(cost_per_design(figures), figures)),
        "<h2>Some designs of the tuned model</h2>",
        _sequences(tuning),
        start_codons(comparison, words),
        footer(comparison),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fastguide: {escape(comparison.task)} tuned</title>\n<style>{STYLE}</style>\n"
        "</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _lead(tuning: Tuning) -> str:
    settings, words = tuning.settings, words_of(tuning.comparison.task)
    return (
        f"The pre-trained model was trained on towards a higher {words.reward}, held to what it "
        f"was by alpha {settings.alpha:g}. Its plain samples are compared with those of the model "
        f"as it was, plain and guided, {settings.num_samples} designs each, in "
        f"{settings.sample_steps} steps. One oracle guides; a second one, trained on other "
        "measurements, judges."
    )


def _sequences(tuning: Tuning) -> str:
    made = tuning.tuned
    order = np.argsort(-made.guide, kind="stable")[:SHOWN_DESIGNS]
    rows = [
        [made.sequences[row], *(number(float(of[row])) for of in (made.guide, made.judge))]
        for row in order
    ]
    return f"<p>The {len(order)} that the guide likes best of {len(made.sequences)}.</p>" + cells(
        [["sequence", "guiding reward", "judging reward"], *rows]
    )


def _training(tuning: Tuning) -> list[list[str]]:
    """Header and row of what training took."""
    figures, settings = tuning.figures(), tuning.settings
    even = figures["designs_to_break_even"]
    row = {
        "method": settings.method,
        "alpha": f"{settings.alpha:g}",
        "iterations": f"{figures['iterations']} of {settings.num_iterations}",
        "paths of each": f"{settings.batch_size}",
        "steps": f"{settings.num_steps}",
        "learning rate": f"{settings.learning_rate:g}",
        "adapter": settings.adapter,
        "seconds": number(figures["training_seconds"], 0),
        "processor seconds": number(figures["training_cpu_seconds"], 0),
        "designs to break even": "never" if math.isinf(even) else f"{even:,}",
    }
    return [list(row), list(row.values())]
