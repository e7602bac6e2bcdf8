"""What a comparison says: the tables of the command line, and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastguide.report.designs import NATURAL_QUANTILE, Comparison, Designs
from fastguide.report.family import family_findings, family_text
from fastguide.report.tables import (
    Column,
    bounded,
    component_columns,
    judged,
    number,
    rows_of,
    text_table,
)
from fastguide.report.words import words_of


def summary_text(comparison: Comparison) -> str:
    """The tables that the command line prints, and what they say in words."""
    if comparison.settings.wide:
        return "\n".join([family_text(comparison), "", *family_findings(comparison)])
    figures = comparison.figures()
    columns: list[Column] = [
        ("method", lambda f: f["method"]),
        ("guiding reward", lambda f: number(f["guiding_reward_mean"])),
        *component_columns(figures),
        ("judging reward", judged),
        ("log-lik. bound", bounded),
        ("natural", lambda f: "yes" if f["natural"] else "no"),
        ("distinct designs", lambda f: f"{f['distinct']}"),
        ("mean distance", lambda f: number(f["mean_distance_sites"], 1)),
        ("denoiser rows", lambda f: f"{f['denoiser_rows']:,}"),
        ("seconds", lambda f: number(f["seconds"]["total"], 1)),
    ]
    words = words_of(comparison.task)
    legend = (
        f"Rewards: {words.reward_axis}, means; bound: median, nats per {words.site}; "
        f"± standard error; distance: {words.site}s that differ."
    )
    table = text_table(rows_of(columns, figures))
    return "\n".join([table, "", legend, "", *findings(comparison)])


def findings(comparison: Comparison) -> list[str]:
    """What the figures of this run say: sentences whose every number was computed in it."""
    if comparison.settings.wide:
        return family_findings(comparison)
    limit = comparison.natural_limit
    lines = []
    if matching := comparison.matching:
        lines.append(_equal_rows(comparison, matching))
    guided = [made for made in comparison.designs if made.key.startswith("svdd_alpha")]
    if guided:
        kept = [made for made in guided if made.figures(limit)["natural"]]
        lost = [made for made in guided if not made.figures(limit)["natural"]]
        if not lost:
            lines.append(f"Designs stay natural at every alpha that was run: {_alphas(kept)}.")
        elif not kept:
            lines.append(f"Designs stay natural at no alpha that was run: {_alphas(lost)}.")
        else:
            lines.append(
                f"Designs stay natural at alpha {_alphas(kept)}; they do not at {_alphas(lost)}."
            )
    return [*lines, *(_naturalness(made, comparison) for made in guided)]


def _alphas(sets: Sequence[Designs]) -> str:
    values = [f"{made.result.settings['alpha']:g}" for made in sets]
    return " and ".join([", ".join(values[:-1]), values[-1]]) if len(values) > 1 else values[0]


def _equal_rows(comparison: Comparison, matching: dict[str, Any]) -> str:
    by_label = {made.label: made for made in comparison.designs}
    guided = by_label[matching["target"]]
    rival = next(made for made in comparison.designs if made.key == "best_of_n_matched")
    ours, theirs = (made.figures(comparison.natural_limit) for made in (guided, rival))
    gap = ours["judging_reward_mean"] - theirs["judging_reward_mean"]
    error = math.hypot(ours["judging_reward_mean_error"], theirs["judging_reward_mean_error"])
    return (
        f"At equal denoiser rows ({ours['denoiser_rows']:,} against {theirs['denoiser_rows']:,}) "
        f"{guided.label} scores {number(abs(gap))} ± {number(error)} "
        f"{'higher' if gap > 0 else 'lower'} on the judging oracle than best of "
        f"{matching['num_candidates']}. Choosing on the way also took {ours['reward_rows']:,} "
        f"reward rows against {theirs['reward_rows']:,}."
    )


def _naturalness(made: Designs, comparison: Comparison) -> str:
    limit = comparison.natural_limit
    figures = made.figures(limit)
    return (
        f"{made.label}: the median bound is {bounded(figures)} nats per "
        f"{words_of(comparison.task).site}, "
        f"{'above' if figures['natural'] else 'below'} {number(limit, 3)}, the "
        f"{NATURAL_QUANTILE:.0%} quantile of {len(comparison.reference.sequences):,} unguided "
        f"samples; {figures['share_below_limit']:.0%} of its designs lie below."
    )
