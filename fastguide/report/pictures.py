"""The pictures of a comparison, each a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastguide.evaluation import Cost
from fastguide.report.designs import NATURAL_QUANTILE, Comparison
from fastguide.report.logo import draw_logos
from fastguide.report.metrics import Array
from fastguide.report.style import (
    DPI,
    INK,
    MUTED,
    PLAIN,
    colours,
    legend_height,
    new_figure,
    pictures,
)
from fastguide.report.words import words_of
from fastguide.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(comparison: Comparison) -> dict[str, Figure]:
    """Every picture of a report by the name of its file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with pictures():
        drawn = {
            "rewards": draw_rewards(comparison),
            "naturalness": draw_naturalness(comparison),
            "steps": draw_steps(comparison),
            "ess": draw_ess(comparison),
            "diversity": draw_diversity(comparison),
            "logos": draw_logos(comparison),
            "cost": draw_cost(comparison),
        }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def draw_rewards(comparison: Comparison) -> Figure:
    """Guiding and judging reward of every design, one row per method."""
    designs, words = comparison.designs, words_of(comparison.task)
    colour = colours([made.key for made in designs])
    figure, panels = new_figure(1.6 + 1.0 * len(designs), rows=2, share_x=True)
    for axes, title, which in zip(
        panels, ("Guiding oracle", "Judging oracle"), ("guide", "judge"), strict=True
    ):
        for row, made in enumerate(designs):
            _strip(axes, getattr(made, which), row, colour[made.key])
        plain = np.median(getattr(comparison.reference, which))
        axes.axvline(plain, color=PLAIN, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.set_title(title)
        _method_rows(axes, [made.label for made in designs])
    panels[-1].set_xlabel(words.reward_axis)
    return figure


def draw_naturalness(comparison: Comparison) -> Figure:
    """Likelihood bound against judging reward, over the unguided reference."""
    words, limit = words_of(comparison.task), comparison.natural_limit
    designs, reference = comparison.designs, comparison.reference
    colour = colours([made.key for made in designs])
    figure, (axes,) = new_figure(5.6 + legend_height(len(designs)))
    axes.scatter(
        reference.judge,
        reference.bound_per_site,
        s=8,
        color="#c9d0d8",
        lw=0,
        label=reference.label,
        zorder=1,
    )
    for made in designs:
        if made.key == "unguided":
            continue
        points = (made.judge, made.bound_per_site)
        axes.scatter(*points, s=15, color=colour[made.key], alpha=0.45, lw=0, zorder=2)
    for made in designs:
        axes.scatter(
            np.median(made.judge),
            np.median(made.bound_per_site),
            s=90,
            color=colour[made.key],
            edgecolor="white",
            lw=1.5,
            label=made.label,
            zorder=3,
        )
    axes.axhline(limit, color=INK, lw=1.2, ls=(0, (5, 3)), zorder=2)
    axes.annotate(
        f"{NATURAL_QUANTILE:.0%} of unguided samples lie below",
        (0, limit),
        xycoords=("axes fraction", "data"),
        xytext=(4, -4),
        textcoords="offset points",
        va="top",
        fontsize=10,
        bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
        zorder=2,
    )
    axes.set_xlabel(f"judging oracle: {words.reward_axis}")
    axes.set_ylabel(f"log-likelihood bound (nats per {words.site})")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_steps(comparison: Comparison) -> Figure | None:
    """Predicted reward along the steps for methods that choose on the way; None without one."""
    designs, words = comparison.designs, words_of(comparison.task)
    colour = colours([made.key for made in designs])
    guided = [made for made in designs if made.result.trace.values[:-1].isfinite().any()]
    if not guided:
        return None
    figure, (axes,) = new_figure(4.4 + legend_height(len(designs)))
    steps = len(guided[0].result.trace.time)
    for made in designs:
        if made in guided:
            draw_values(axes, made.result, colour[made.key], made.label)
        else:
            median = float(np.median(made.guide))
            axes.plot(
                [steps],
                [median],
                marker="D",
                ms=7,
                ls="none",
                color=colour[made.key],
                label=made.label,
            )
    axes.set_xlim(0, steps * 1.02)
    axes.set_xlabel("step")
    axes.set_ylabel(f"predicted {words.reward}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_ess(comparison: Comparison) -> Figure | None:
    """Mean effective number at each step that chooses; None unless many methods are compared.

    Methods that always take the best, or have one candidate, have an effective number of 1 and are
    left out.
    """
    designs = comparison.designs
    colour = colours([made.key for made in designs])
    chosen = [made for made in designs if (made.result.trace.ess > 1).any()]
    if not comparison.settings.wide or not chosen:
        return None
    figure, (axes,) = new_figure(4.0 + legend_height(len(chosen)))
    for made in chosen:
        ess = made.result.trace.ess.numpy()
        seen = np.isfinite(ess)
        mark = "." if seen.sum() < len(ess) / 2 else None
        step = np.arange(1, len(ess) + 1)
        axes.plot(
            step[seen], ess[seen], color=colour[made.key], lw=1.6, marker=mark, label=made.label
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel("step")
    axes.set_ylabel("effective number")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_values(
    axes: Axes, result: Result, colour: str, label: str = "median, middle half"
) -> None:
    """Median and middle half over chains of the value at each step that scores most of them."""
    # between its choices a method may know the values of a few chains, which say nothing of all
    seen = (result.trace.values.isfinite().double().mean(dim=1) >= 0.5).numpy()
    quantiles = result.trace.value_quantiles((0.25, 0.5, 0.75)).double().numpy()[seen]
    step = np.arange(1, len(seen) + 1)[seen]
    axes.fill_between(step, quantiles[:, 0], quantiles[:, 2], color=colour, alpha=0.18, lw=0)
    axes.plot(step, quantiles[:, 1], color=colour, lw=2, label=label)


def draw_diversity(comparison: Comparison) -> Figure:
    """Mean and nearest distance between designs, and how many are distinct."""
    designs, words = comparison.designs, words_of(comparison.task)
    colour = colours([made.key for made in designs])
    figure, (axes,) = new_figure(1.3 + 0.45 * len(designs))
    found = [made.diversity for made in designs]
    for row, (made, one) in enumerate(zip(designs, found, strict=True)):
        hue = colour[made.key]
        axes.plot([one.nearest_distance, one.mean_distance], [row, row], color=hue, lw=2, alpha=0.5)
        axes.plot(one.mean_distance, row, "o", ms=10, color=hue)
        axes.plot(one.nearest_distance, row, "o", ms=9, mfc="white", mec=hue, mew=2)
        axes.annotate(
            f"{one.distinct} of {len(made.sequences)} distinct",
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
        )
    axes.plot([], [], "o", ms=9, mfc="white", mec=MUTED, mew=2, label="to the nearest other design")
    axes.plot([], [], "o", ms=10, color=MUTED, label="mean over all pairs")
    widest = max((one.mean_distance for one in found), default=0.0)
    axes.set_xlim(0, 1.06 * widest or 1)
    axes.set_xlabel(f"{words.site}s that differ, of {designs[0].length}")
    _method_rows(axes, [made.label for made in designs])
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_cost(comparison: Comparison) -> Figure:
    """Seconds by what took them, and denoiser rows run against requested."""
    designs = comparison.designs
    figure, (seconds, rows) = new_figure(2.2 + 0.75 * len(designs), rows=2)
    draw_seconds(seconds, [made.label for made in designs], [made.result.cost for made in designs])
    hue = colours([made.key for made in designs])
    for row, made in enumerate(designs):
        cost = made.result.cost
        rows.barh(row, cost.denoiser_rows_requested, 0.66, color="#e3e8ee")
        rows.barh(row, cost.denoiser_rows, 0.66, color=hue[made.key])
        share = cost.denoiser_rows / max(cost.denoiser_rows_requested, 1)
        rows.annotate(
            f"{cost.denoiser_rows:,} ({share:.0%})",
            (cost.denoiser_rows_requested, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
        )
    rows.set_title("Denoiser rows run (grey: requested)")
    rows.set_xlabel("rows")
    rows.margins(x=0.36)
    rows.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    rows.locator_params(axis="x", nbins=5)
    _method_rows(rows, [made.label for made in designs])
    return figure


def draw_seconds(axes: Axes, labels: Sequence[str], costs: Sequence[Cost]) -> None:
    """A bar per run, divided by what took the time."""
    shown = {"denoiser": "#33658a", "reward": "#86bbd8", "kernels": "#f6ae2d", "other": "#c3cad2"}
    start = np.zeros(len(costs))
    for bucket, hue in shown.items():
        width = np.array([cost.seconds[bucket] for cost in costs])
        axes.barh(range(len(costs)), width, 0.66, left=start, color=hue, label=bucket)
        start += width
    axes.set_title("Seconds, by what took them")
    axes.set_xlabel("seconds")
    # inches, not shares: panels differ in height
    below = -0.62 * DPI / axes.get_window_extent().height
    axes.legend(loc="upper center", bbox_to_anchor=(0.42, below), ncols=4, columnspacing=1.2)
    _method_rows(axes, labels)


def _strip(axes: Axes, values: Array, row: int, colour: str) -> None:
    """Every value as a point, spread by density, with the median and the middle half."""
    spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(values))
    axes.scatter(values, row + spread, s=11, color=colour, alpha=0.5, lw=0, zorder=2)
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    axes.plot([low, high], [row, row], color=INK, lw=3.5, solid_capstyle="butt", zorder=3)
    axes.plot([middle, middle], [row - 0.3, row + 0.3], color=INK, lw=2.2, zorder=4)


def _method_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
