"""The tables of a comparison, as text and as rows for other writers; always in the same order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastguide.report.designs import NATURAL_QUANTILE, Comparison, Designs
from fastguide.report.metrics import mean_error, median_error
from fastguide.report.words import Words, words_of

Figures = dict[str, Any]
Column = tuple[str, Callable[[Figures], str]]


def number(value: float, digits: int = 2) -> str:
    """A number for people: fixed digits, thousands separated, a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"


def with_error(value: float, error: float, digits: int = 2) -> str:
    """value ± standard error."""
    return number(value, digits) + ("" if math.isnan(error) else f" ± {number(error, digits)}")


def component_columns(figures: Sequence[Figures]) -> list[Column]:
    """The means of a combined reward's components."""

    def column(name: str) -> Column:
        def cell(one: Figures) -> str:
            part = one.get("components", {}).get(name)
            return "–" if part is None else with_error(part["mean"], part["mean_error"])

        return name, cell

    names = dict.fromkeys(name for one in figures for name in one.get("components", {}))
    return [column(name) for name in names]


def quality_columns(words: Words, figures: Sequence[Figures] = ()) -> list[Column]:
    """How good and how natural the designs are."""
    return [
        ("method", lambda f: f["method"]),
        (
            "guiding reward",
            lambda f: with_error(f["guiding_reward_mean"], f["guiding_reward_mean_error"]),
        ),
        *component_columns(figures),
        ("judging reward", _judged),
        (f"log-likelihood bound, nats per {words.site}", _bounded),
        ("natural", lambda f: "yes" if f["natural"] else "no"),
        ("distinct designs", lambda f: f"{f['distinct']} of {f['designs']}"),
        ("mean distance", lambda f: number(f["mean_distance_sites"], 1)),
        ("nearest distance", lambda f: number(f["nearest_distance_sites"], 1)),
    ]


def cost_columns() -> list[Column]:
    """What the designs cost."""
    return [
        ("method", lambda f: f["method"]),
        ("denoiser rows run", lambda f: f"{f['denoiser_rows']:,}"),
        ("requested", lambda f: f"{f['denoiser_rows_requested']:,}"),
        ("reward rows run", lambda f: f"{f['reward_rows']:,}"),
        ("requested ", lambda f: f"{f['reward_rows_requested']:,}"),
        ("denoiser seconds", lambda f: number(f["seconds"]["denoiser"])),
        ("reward seconds", lambda f: number(f["seconds"]["reward"])),
        ("kernels seconds", lambda f: number(f["seconds"]["kernels"])),
        ("other seconds", lambda f: number(f["seconds"]["other"])),
        ("total seconds", lambda f: number(f["seconds"]["total"])),
        ("µs outside networks per candidate", _overhead),
    ]


def _judged(figures: Figures) -> str:
    return with_error(figures["judging_reward_mean"], figures["judging_reward_mean_error"])


def _bounded(figures: Figures) -> str:
    return with_error(
        figures["bound_median_nats_per_site"], figures["bound_median_error_nats_per_site"], 3
    )


def _overhead(figures: Figures) -> str:
    return number(figures["overhead_us_per_candidate_row"], 1)


def rows_of(columns: Sequence[Column], figures: Sequence[Figures]) -> list[list[str]]:
    """Header and body cells."""
    header = [name.strip() for name, _ in columns]
    return [header, *([cell(one) for _, cell in columns] for one in figures)]


def text_table(rows: Sequence[Sequence[str]], width: int = 10) -> str:
    """Header and body as aligned text; headings are broken at blanks to about `width`."""
    heads = [_break(head, width) for head in rows[0]]
    depth = max(len(head) for head in heads)
    padded = [[""] * (depth - len(head)) + head for head in heads]
    lines = [[head[level] for head in padded] for level in range(depth)]
    body = [list(row) for row in rows[1:]]
    widths = [max(len(line[i]) for line in lines + body) for i in range(len(heads))]

    def join(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(size) if i == 0 else cell.rjust(size)
            for i, (cell, size) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    rule = "  ".join("-" * size for size in widths)
    return "\n".join([*map(join, lines), rule, *map(join, body)])


def designs_text(task: str, made: Designs, shown: int = 5) -> str:
    """What the command line prints of one method: averages, then the best designs by the guide."""
    words = words_of(task)
    bound = made.bound_per_site
    cost, figures = made.result.cost, made.figures()
    facts = [
        ["designs", f"{len(made.sequences)} ({made.diversity.distinct} distinct)"],
        ["guiding reward", with_error(float(made.guide.mean()), mean_error(made.guide))],
        *([f"  {name}", cell(figures)] for name, cell in component_columns([figures])),
        ["judging reward", with_error(float(made.judge.mean()), mean_error(made.judge))],
        [
            f"bound, nats per {words.site}",
            f"{with_error(float(np.median(bound)), median_error(bound), 3)} (median)",
        ],
        [
            "denoiser rows",
            f"{cost.denoiser_rows:,} run of {cost.denoiser_rows_requested:,} requested",
        ],
        ["reward rows", f"{cost.reward_rows:,} run of {cost.reward_rows_requested:,} requested"],
        ["seconds", number(cost.seconds["total"], 1)],
    ]
    width = max(len(name) for name, _ in facts)
    best = np.argsort(-made.guide, kind="stable")[:shown]
    table = [["design", "guide", "judge", "bound"]]
    table += [
        [
            made.sequences[row],
            number(made.guide[row]),
            number(made.judge[row]),
            number(bound[row], 3),
        ]
        for row in best
    ]
    lines = [f"{name.ljust(width)}  {value}" for name, value in facts]
    return "\n".join([*lines, "", text_table(table)])


def summary_text(comparison: Comparison) -> str:
    """The table that the command line prints, and what it says in words."""
    figures = comparison.figures()
    columns: list[Column] = [
        ("method", lambda f: f["method"]),
        ("guiding reward", lambda f: number(f["guiding_reward_mean"])),
        *component_columns(figures),
        ("judging reward", _judged),
        ("log-lik. bound", _bounded),
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
    limit = comparison.natural_limit
    lines = []
    if matching := comparison.matching:
        lines.append(_equal_rows(comparison, matching))
    guided = [made for made in comparison.designs if made.key.startswith("svdd")]
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
        f"{made.label}: the median bound is {_bounded(figures)} nats per "
        f"{words_of(comparison.task).site}, "
        f"{'above' if figures['natural'] else 'below'} {number(limit, 3)}, the "
        f"{NATURAL_QUANTILE:.0%} quantile of {len(comparison.reference.sequences):,} unguided "
        f"samples; {figures['share_below_limit']:.0%} of its designs lie below."
    )


def _break(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
