"""Tables and sentences of a comparison of many methods, under one budget or at one width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fastguide.report.budget import TOLERANCE
from fastguide.report.designs import NATURAL_QUANTILE, Comparison
from fastguide.report.tables import (
    Column,
    Figures,
    bounded,
    component_columns,
    judged,
    number,
    rows_of,
    text_table,
    with_error,
)
from fastguide.report.words import words_of

_COMMON = {"method", "num_samples", "num_steps", "seed", "first_chain", "savings", "max_rows"}
_COMMON |= {"fixed_rows", "on_invalid"}


def family_text(comparison: Comparison) -> str:
    """What the command line prints of a wide comparison, without its sentences."""
    figures = comparison.figures()
    weighted = weighted_rows(comparison)
    parts = [text_table(rows_of(_quality(figures), figures))]
    if weighted:
        parts.append(text_table(weighted))
    parts.append(text_table(rows_of(cost_per_design(figures), figures)))
    return "\n\n".join([*parts, _legend(comparison)])


def quantile_columns() -> list[Column]:
    """Quantiles of both rewards."""

    def of(which: str, q: str) -> Column:
        name = f"{which} {float(q):.0%}"
        return name, lambda f: number(f[f"{which}_reward_quantiles"][q])

    levels = ("0.05", "0.25", "0.5", "0.75", "0.95")
    columns = [of(which, q) for which in ("guiding", "judging") for q in levels]
    return [("method", lambda f: f["method"]), *columns]


def cost_per_design(figures: Sequence[Figures]) -> list[Column]:
    """Rows, seconds and overhead per design, and how a budget was met."""
    budget: list[Column] = [
        ("size", _size),
        ("off the budget", lambda f: _off(f["fit"])),
    ]
    return [
        ("method", lambda f: f["method"]),
        *(budget if any("fit" in one for one in figures) else []),
        ("denoiser rows per design", lambda f: _each(f, "denoiser_rows")),
        ("requested", lambda f: _each(f, "denoiser_rows_requested")),
        ("reward rows per design", lambda f: _each(f, "reward_rows")),
        ("requested ", lambda f: _each(f, "reward_rows_requested")),
        ("seconds per design", lambda f: number(f["seconds"]["total"] / f["designs"], 3)),
        ("outside networks", lambda f: f"{f['overhead_share']:.1%}"),
        ("µs per candidate", lambda f: number(f["overhead_us_per_candidate_row"], 1)),
    ]


def weighted_rows(comparison: Comparison) -> list[list[str]]:
    """Header, and for each method with weights its drawn samples and all its particles; or []."""
    rows = []
    for made in comparison.designs:
        if made.particles is None:
            continue
        figures = made.figures()
        weighted = figures["weighted_particles"]
        for what, one, last in (
            (f"{made.label}: drawn", figures, ["–", "–", "–"]),
            (
                f"{made.label}: weighted",
                weighted,
                [
                    f"{weighted['particles']}",
                    number(weighted["ess_mean"], 2),
                    f"{number(weighted['log_z_mean'])} ± {number(weighted['log_z_deviation'])}",
                ],
            ),
        ):
            cells = [what]
            for which in ("guiding", "judging"):
                mean, error = (one[f"{which}_reward_mean{end}"] for end in ("", "_error"))
                cells += [with_error(mean, error), _three(one, which)]
            rows.append([*cells, *last])
    if not rows:
        return []
    heads = [f"{which} {what}" for which in ("guiding", "judging") for what in ("mean", "5/50/95%")]
    return [["method", *heads, "particles", "ESS of final weights", "log Z ± deviation"], *rows]


def settings_rows(comparison: Comparison) -> list[list[str]]:
    """Header, and each method's arguments, without those that are the same for all."""
    rows = []
    for made in comparison.designs:
        kept = {k: v for k, v in made.result.settings.items() if k not in _COMMON}
        rows.append([made.label, ", ".join(f"{k}={_short(v)}" for k, v in kept.items())])
    return [["method", "settings"], *rows]


def family_findings(comparison: Comparison) -> list[str]:
    """What the figures of a wide comparison say, good and bad."""
    figures = comparison.figures()
    guided = [one for one in figures if one["key"] != "unguided"]
    lines = _budget_line(comparison, figures)
    if guided:
        best, worst = (
            pick(guided, key=lambda one: one["judging_reward_mean"]) for pick in (max, min)
        )
        lines.append(
            f"Judging oracle, guided methods: {best['method']} is highest with {judged(best)}, "
            f"{worst['method']} lowest with {judged(worst)}."
        )
        gap = max(guided, key=lambda one: one["guiding_minus_judging_mean"])
        lines.append(
            f"The guide overrates the designs of {gap['method']} most: by "
            f"{number(gap['guiding_minus_judging_mean'])} on average against the judge."
        )
    lines += against_best_of_n(guided, lambda rival: f"{judged(rival)} on the judging oracle")
    limit = number(comparison.natural_limit, 3)
    lost = [one for one in figures if not one["natural"]]
    where = (
        f"median bound below {limit} nats per {words_of(comparison.task).site}, the "
        f"{NATURAL_QUANTILE:.0%} quantile of {len(comparison.reference.sequences):,} unguided "
        "samples"
    )
    if lost:
        names = ", ".join(f"{one['method']} ({bounded(one)})" for one in lost)
        lines.append(f"Not natural ({where}): {names}.")
    else:
        lines.append(f"No method is unnatural ({where}).")
    repeated = [one for one in figures if one["distinct"] < one["designs"]]
    if repeated:
        names = ", ".join(f"{f['method']} ({f['distinct']} of {f['designs']})" for f in repeated)
        lines.append(f"Not all designs are distinct: {names}.")
    return lines


def _budget_line(comparison: Comparison, figures: Sequence[Figures]) -> list[str]:
    fits = [(one["method"], one["fit"]) for one in figures if "fit" in one]
    if not fits:
        return []
    unit, due = fits[0][1]["unit"], fits[0][1]["due"]
    met = [name for name, fit in fits if fit["met"]]
    off = [f"{name} ({fit['off']:+.1%})" for name, fit in fits if not fit["met"] and _sized(fit)]
    free = [f"{name} ({fit['off']:+.0%})" for name, fit in fits if not _sized(fit)]
    text = f"Budget: {_amount(due, unit)} {unit} per design. "
    text += f"Within {TOLERANCE:.0%}: {', '.join(met) or 'no method'}."
    if off:
        text += f" Not, at the nearest size found: {', '.join(off)}."
    if free:
        text += f" Without a size to choose, run as they are: {', '.join(free)}."
    return [text]


def against_best_of_n(guided: Sequence[Figures], shown: Callable[[Figures], str]) -> list[str]:
    """Under a budget, where the guided methods that meet it stand against best of N; worst first.

    Args:
        shown: best of N's judging reward in words.
    """
    rival = next((one for one in guided if one["key"] == "best_of_n"), None)
    if rival is None or "fit" not in rival:
        return []
    named: dict[str, list[str]] = {"below": [], "no different from": [], "above": []}
    for one in guided:
        if one is rival or not one["fit"]["met"]:
            continue
        gap = one["judging_reward_mean"] - rival["judging_reward_mean"]
        error = math.hypot(one["judging_reward_mean_error"], rival["judging_reward_mean_error"])
        where = "no different from" if abs(gap) < 2 * error else "above" if gap > 0 else "below"
        named[where].append(one["method"])
    parts = [f"{what} it: {', '.join(names)}" for what, names in named.items() if names]
    if not parts:
        return []
    return [
        f"Against best of N at this budget ({shown(rival)}), by two standard errors: "
        f"{'; '.join(parts)}."
    ]


def _quality(figures: Sequence[Figures]) -> list[Column]:
    return [
        ("method", lambda f: f["method"]),
        ("guiding reward", lambda f: number(f["guiding_reward_mean"])),
        *component_columns(figures),
        ("judging reward", judged),
        ("judging 5/50/95%", lambda f: _three(f, "judging")),
        ("log-lik. bound", bounded),
        ("natural", lambda f: "yes" if f["natural"] else "no"),
        ("distinct designs", lambda f: f"{f['distinct']}"),
        ("mean distance", lambda f: number(f["mean_distance_sites"], 1)),
        ("mean ESS", effective),
    ]


def effective(figures: Figures) -> str:
    """Mean effective number of candidates, or particles, over the steps that choose."""
    return number(figures["ess_mean"], 1)


def _legend(comparison: Comparison) -> str:
    words = words_of(comparison.task)
    return (
        f"Rewards: {words.reward_axis}, means ± standard error; bound: median, nats per "
        f"{words.site}; distance: {words.site}s that differ; ESS: effective number of candidates "
        "or particles, mean over the steps that choose. Seconds are wall clock."
    )


def _sized(fit: dict[str, Any]) -> bool:
    return "argument" in fit


def _size(figures: Figures) -> str:
    fit = figures["fit"]
    if not _sized(fit):
        return "none to choose"
    width = f" × {fit['width']}" if "width" in fit else ""
    letter = "P" if fit["argument"] == "num_particles" else "M"
    return f"{letter} = {fit['size']}{width}"


def _off(fit: dict[str, Any]) -> str:
    if not _sized(fit):
        return f"{fit['off']:+.0%}, as it is"
    return f"{fit['off']:+.1%}" + ("" if fit["met"] else ", the nearest found")


def _amount(value: float, unit: str) -> str:
    return number(value, 3 if unit == "seconds" else 1)


def _each(figures: Figures, name: str) -> str:
    return number(figures[name] / figures["designs"], 1)


def _three(figures: Figures, which: str) -> str:
    quantiles = figures[f"{which}_reward_quantiles"]
    return " / ".join(number(quantiles[q], 1) for q in ("0.05", "0.5", "0.95"))


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"[{value[0]}, …, {value[-1]}] ({len(value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)
