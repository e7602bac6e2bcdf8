"""The tables of a comparison, as text and as rows for other writers; always in the same order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastguide.report.designs import Designs
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
        ("judging reward", judged),
        (f"log-likelihood bound, nats per {words.site}", bounded),
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
        ("µs outside networks per candidate", overhead),
    ]


def judged(figures: Figures) -> str:
    """Mean judging reward."""
    return with_error(figures["judging_reward_mean"], figures["judging_reward_mean_error"])


def bounded(figures: Figures) -> str:
    """Median likelihood bound."""
    return with_error(
        figures["bound_median_nats_per_site"], figures["bound_median_error_nats_per_site"], 3
    )


def overhead(figures: Figures) -> str:
    """Microseconds outside the networks."""
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


def _break(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
