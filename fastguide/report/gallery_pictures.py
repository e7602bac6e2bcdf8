"""The pictures of a comparison on pictures: grids as they are, and figures of matplotlib."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from fastguide.report.gallery import Gallery, Pictures
from fastguide.report.style import (
    INK,
    MUTED,
    PLAIN,
    colours,
    legend_height,
    new_figure,
    pictures,
)
from fastguide.report.tables import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Tensor = torch.Tensor

COLUMNS = 8
SCALE = 3
"""Sides of a grid's squares for one pixel."""

SHOWN = 12
"""Pictures of a method in the overview."""

GAP = 230
"""Grey between pictures."""


def grid(images: Tensor, columns: int = COLUMNS) -> Tensor:
    """Images [N, H, W] uint8, 0 paper, as one page [rows (H + 1) + 1, columns (W + 1) + 1].

    Row by row; paper is white, 255, and lines of one pixel separate them.
    """
    num, height, width = images.shape
    rows = -(-num // columns)
    page = torch.full((rows * columns, height + 1, width + 1), GAP, dtype=torch.uint8)
    page[:num, 1:, 1:] = 255 - images
    page[num:, 1:, 1:] = 255
    page = page.view(rows, columns, height + 1, width + 1).transpose(1, 2)
    page = page.reshape(rows * (height + 1), columns * (width + 1))
    return torch.nn.functional.pad(page, (0, 1, 0, 1), value=GAP)


def grid_png(images: Tensor, columns: int = COLUMNS, scale: int = SCALE) -> bytes:
    """`grid` as a grey PNG file, every pixel a square of `scale` by `scale`."""
    page = grid(images, columns)
    page = page.repeat_interleave(scale, dim=0).repeat_interleave(scale, dim=1)
    height, width = page.shape
    # every line starts with a byte for "no filter"
    lines = torch.nn.functional.pad(page, (1, 0)).numpy().tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def draw_gallery(gallery: Gallery) -> dict[str, Figure]:
    """Every figure of a report by the name of its file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures = gallery.figures()
    with pictures():
        drawn = {
            "overview": draw_rows(gallery.runs, gallery.drawings),
            "rewards": _rewards(gallery, figures),
            "naturalness": _naturalness(gallery, figures),
        }
        for name, made, label in (
            ("candidates", gallery.candidates, "candidates at each step"),
            ("temperatures", gallery.temperatures, "alpha"),
        ):
            if made:
                drawn[name] = _ablation(gallery, made, label)
                drawn[f"{name}_overview"] = draw_rows(made)
    return drawn


def draw_rows(runs: Sequence[Pictures], drawings: Tensor | None = None) -> Figure:
    """The first SHOWN pictures of each run, a row each, below as many training drawings."""
    rows = [(made.label, made.images) for made in runs]
    if drawings is not None:
        rows.insert(0, ("training drawings", drawings))
    # a picture is 0.36 inches wide: the labels take the rest
    figure, panels = new_figure(0.1 + 0.4 * len(rows), rows=len(rows))
    for axes, (label, images) in zip(panels, rows, strict=True):
        axes.imshow(grid(images[:SHOWN], SHOWN).numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_yticks([images.shape[1] / 2], [label], fontsize=9)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)
        axes.grid(False)
        axes.set_anchor("E")
    return figure


def _rewards(gallery: Gallery, figures: Sequence[Figures]) -> Figure:
    """Mean reward of each method by guide and judge, with two standard errors."""
    colour = colours([one["key"] for one in figures])
    which = ("guiding",) if gallery.exact else ("guiding", "judging")
    figure, panels = new_figure((0.7 + 0.3 * len(figures)) * len(which), rows=len(which))
    for axes, name in zip(panels, which, strict=True):
        for row, one in enumerate(figures):
            axes.errorbar(
                one[f"{name}_reward_mean"],
                row,
                xerr=2 * one[f"{name}_reward_mean_error"],
                fmt="o",
                ms=7,
                capsize=3,
                color=colour[one["key"]],
            )
        plain = gallery.reference.guide if name == "guiding" else gallery.reference.judge
        axes.axvline(float(plain.mean()), color=PLAIN, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.set_yticks(range(len(figures)), [one["method"] for one in figures])
        axes.set_ylim(len(figures) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        if not gallery.exact:
            axes.set_title("Guide" if name == "guiding" else "Judge")
    panels[-1].set_xlabel(gallery.reward_axis)
    return figure


def _naturalness(gallery: Gallery, figures: Sequence[Figures]) -> Figure:
    """Share judged clean, and distance to the nearest training drawing, against the reward."""
    colour = colours([one["key"] for one in figures])
    figure, panels = new_figure(6.4 + legend_height(len(figures)), rows=2, share_x=True)
    for axes, name, label in _natural_panels(panels):
        for one in figures:
            axes.scatter(
                one["judging_reward_mean"],
                one[name],
                s=70,
                color=colour[one["key"]],
                edgecolor="white",
                lw=1,
                label=one["method"] if name == "clean" else None,
                zorder=3,
            )
        axes.set_ylabel(label)
    panels[0].set_ylim(-0.03, 1.03)
    _usual(panels[1], gallery)
    panels[1].set_xlabel(f"{'' if gallery.exact else 'judge: '}{gallery.reward_axis}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _ablation(gallery: Gallery, made: Sequence[Pictures], label: str) -> Figure:
    """Reward and naturalness along an ablation of SVDD; the values stand at equal distances."""
    figures = [one.figures(gallery.usual_distance) for one in made]
    figure, panels = new_figure(7.6, rows=3, share_x=True)
    place = range(len(made))
    for name, hue in (("guiding", MUTED), ("judging", "#b5179e")):
        if name == "guiding" and gallery.exact:
            continue
        panels[0].errorbar(
            place,
            [one[f"{name}_reward_mean"] for one in figures],
            yerr=[2 * one[f"{name}_reward_mean_error"] for one in figures],
            fmt="o-",
            capsize=3,
            color=hue,
            label=f"{name} reward",
        )
    panels[0].axhline(float(gallery.reference.judge.mean()), color=PLAIN, lw=1, ls=(0, (4, 3)))
    panels[0].set_ylabel(gallery.reward_axis)
    if not gallery.exact:
        panels[0].legend(loc="best")
    for axes, name, text in _natural_panels(panels[1:]):
        axes.plot(place, [one[name] for one in figures], "o-", color=INK)
        axes.set_ylabel(text)
    panels[1].set_ylim(-0.03, 1.03)
    _usual(panels[2], gallery)
    value: Callable[[Pictures], str] = (
        (lambda one: f"{one.result.settings['alpha']:g}")
        if label == "alpha"
        else (lambda one: f"{one.result.settings['num_candidates']}")
    )
    rows = (f"{one['denoiser_rows'] / one['designs']:,.0f} rows" for one in figures)
    panels[2].set_xticks(
        place, [f"{value(one)}\n{text}" for one, text in zip(made, rows, strict=True)]
    )
    panels[2].set_xlabel(label)
    return figure


def _natural_panels(panels: Sequence[Axes]) -> list[tuple[Axes, str, str]]:
    return [
        (panels[0], "clean", "share judged clean"),
        (panels[1], "distance_median", "nearest drawing"),
    ]


def _usual(axes: Axes, gallery: Gallery) -> None:
    """A band where the distances of the middle 90 % of held-out drawings lie."""
    low, high = gallery.usual_distance
    axes.axhspan(low, high, color="#1e7d3c", alpha=0.09, lw=0, zorder=0)
    axes.set_ylim(0, 1.05 * max(axes.get_ylim()[1], high))
    axes.annotate(
        "drawings of unseen characters: middle 90%",
        (0.01, low),
        xycoords=("axes fraction", "data"),
        xytext=(2, 2),
        textcoords="offset points",
        fontsize=9,
        color=MUTED,
    )
