"""Sequence logos: which letters a method prefers at which site."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastguide.report.designs import Comparison
from fastguide.report.metrics import Array, composition, information
from fastguide.report.style import letter_colours, new_figure
from fastguide.report.words import words_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def alphabet(comparison: Comparison) -> str:
    """Every letter that occurs, in alphabetical order."""
    sets = [*comparison.designs, comparison.reference]
    return "".join(sorted(set().union(*("".join(made.sequences) for made in sets))))


def draw_logos(comparison: Comparison) -> Figure:
    """One logo per method: letters as tall as the information that they carry, in bits."""
    letters = alphabet(comparison)
    tables = [composition(made.sequences, letters) for made in comparison.designs]
    top = max(0.25, *(information(table).max() for table in tables))
    figure, panels = new_figure(0.5 + 1.0 * len(tables), rows=len(tables), share_x=True)
    for axes, made, table in zip(panels, comparison.designs, tables, strict=True):
        _draw_logo(axes, table, letters)
        axes.set_title(made.label, fontsize=11, pad=3)
        axes.set_ylim(0, top)
        axes.set_yticks([0, round(top, 1)])
        axes.grid(False)
    length = tables[0].shape[0]
    panels[-1].set_xlim(0.4, length + 0.6)
    panels[-1].set_xlabel(f"{words_of(comparison.task).site} position")
    figure.supylabel("bits", fontsize=11)
    return figure


def _draw_logo(axes: Axes, shares: Array, letters: str) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    hues = letter_colours(letters)
    shapes = {letter: TextPath((0, 0), letter, size=1) for letter in letters}
    heights = shares * information(shares)[:, None]
    for site, column in enumerate(heights, start=1):
        base = 0.0
        for index in np.argsort(column, kind="stable"):
            height, letter = column[index], letters[index]
            if height <= 0:
                continue
            box = shapes[letter].get_extents()
            place = (
                Affine2D()
                .translate(-box.x0, -box.y0)
                .scale(0.92 / box.width, height / box.height)
                .translate(site - 0.46, base)
            )
            axes.add_patch(
                PathPatch(place.transform_path(shapes[letter]), color=hues[letter], lw=0)
            )
            base += height
