"""How pictures look, and the door to matplotlib, which only loads when a picture is drawn."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastguide.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.0
"""Inches. Narrow, so that a picture as wide as a phone still has readable letters."""

DPI = 160

INK, MUTED, GRID = "#1f2933", "#64707d", "#dfe4ea"
PLAIN = "#8a94a0"
BEST = ("#7cc4ec", "#1b6fae")
GUIDED = ("#b5179e", "#e4572e", "#f2a541", "#7a9e3c", "#3b8f86")
"""Colours of unguided, of best of N (given and matched) and of SVDD by ascending alpha."""
OTHERS = (
    *("#5f4bb6", "#d1495b", "#00798c", "#8d6b00", "#2b9348", "#c77dff"),
    *("#ff8fa3", "#3d405b", "#a3b18a", "#bc6c25", "#4cc9f0", "#9d0208"),
)
"""Of every other method, in the order of the tables."""

LETTERS = {"A": "#2e9e4f", "C": "#2f6fdb", "G": "#e8a013", "T": "#d43f3a", "U": "#d43f3a"}
OTHER_LETTERS = ("#7b5cc4", "#2f6fdb", "#2e9e4f", "#e8a013", "#d43f3a", "#6b7785", "#1a9fa8")

_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def check_pictures() -> None:
    """Raise MissingExtraError unless pictures can be drawn, that is, matplotlib is installed."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise MissingExtraError(
            f'pictures need matplotlib ({error}); install it with pip install "fastguide[plot]"'
        ) from error


@contextmanager
def pictures() -> Iterator[None]:
    """Draw in the house style, whatever style the caller has set.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_pictures()
    from matplotlib import rc_context

    with rc_context(_SETTINGS):
        yield


def new_figure(
    height: float, rows: int = 1, ratios: Sequence[float] | None = None, *, share_x: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of WIDTH by `height` inches with `rows` panels, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, 1, squeeze=False, height_ratios=ratios, sharex=share_x)
    return figure, list(panels[:, 0])


def colours(keys: Sequence[str]) -> dict[str, str]:
    """A fixed colour for each method's key."""
    guided = [key for key in keys if key.startswith("svdd_alpha")]
    table = {key: GUIDED[i % len(GUIDED)] for i, key in enumerate(guided)}
    others = 0
    for key in keys:
        if key in table:
            continue
        if key.startswith("best"):
            table[key] = BEST[key == "best_of_n_matched"]
        elif key in ("unguided", "reference"):
            table[key] = PLAIN
        else:
            table[key] = OTHERS[others % len(OTHERS)]
            others += 1
    return table


def legend_height(entries: int) -> float:
    """Inches that a legend of two columns needs beyond its first three rows."""
    return 0.24 * max(0, (entries + 1) // 2 - 3)


def letter_colours(letters: str) -> dict[str, str]:
    """A colour for each letter of an alphabet; nucleotides have their usual ones."""
    if set(letters) <= set(LETTERS):
        return {letter: LETTERS[letter] for letter in letters}
    return {letter: OTHER_LETTERS[i % len(OTHER_LETTERS)] for i, letter in enumerate(letters)}
