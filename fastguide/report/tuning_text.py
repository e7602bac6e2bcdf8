"""What a report on fine-tuning says: its table and sentences."""

from __future__ import annotations

import math
from typing import Any

from fastguide.report.designs import NATURAL_QUANTILE, Designs
from fastguide.report.tables import (
    Column,
    Figures,
    bounded,
    judged,
    number,
    rows_of,
    text_table,
    with_error,
)
from fastguide.report.tuning import Tuning
from fastguide.report.words import words_of

_STOPS = {
    "max_seconds": "because its minutes were over",
    "kl_budget": "because the divergence was beyond its budget",
}


def tuning_figures(tuning: Tuning) -> list[Figures]:
    """The figures of each method, those of the tuned model with its divergence."""
    *rivals, tuned = tuning.comparison.figures()
    own = tuning.figures()
    return [*rivals, {**tuned, **{name: own[name] for name in own if name.startswith("kl_")}}]


def tuning_columns() -> list[Column]:
    """The short table: reward, divergence, naturalness, diversity, cost of a design."""
    return [
        ("method", lambda f: f["method"]),
        (
            "guiding reward",
            lambda f: with_error(f["guiding_reward_mean"], f["guiding_reward_mean_error"]),
        ),
        ("judging reward", judged),
        ("KL, nats per path", _divergence),
        ("log-lik. bound", bounded),
        ("natural", lambda f: "yes" if f["natural"] else "no"),
        ("distinct designs", lambda f: f"{f['distinct']} of {f['designs']}"),
        ("mean distance", lambda f: number(f["mean_distance_sites"], 1)),
        ("denoiser rows per design", lambda f: number(f["denoiser_rows"] / f["designs"], 1)),
        ("seconds per design", lambda f: number(f["seconds"]["total"] / f["designs"], 3)),
    ]


def tuning_legend(tuning: Tuning) -> str:
    """What the columns of the short table hold."""
    words = words_of(tuning.comparison.task)
    return (
        f"Rewards: {words.reward_axis}, means; bound: median, nats per {words.site}; ± standard "
        f"error; distance: {words.site}s that differ. KL: from the pre-trained model along the "
        "samples' own paths, exact at every step; a dash: not known."
    )


def tuning_text(tuning: Tuning) -> str:
    """What the command line prints."""
    table = text_table(rows_of(tuning_columns(), tuning_figures(tuning)))
    return "\n".join([table, "", tuning_legend(tuning), "", *tuning_findings(tuning)])


def tuning_findings(tuning: Tuning) -> list[str]:
    """Sentences whose every number was computed in this run, good and bad."""
    return [_training(tuning), _rewards(tuning), _nature(tuning), _cost(tuning)]


def _training(tuning: Tuning) -> str:
    settings, figures = tuning.settings, tuning.figures()
    stopped = figures["stopped"]
    end = f", {_STOPS.get(stopped, f'stopped by {stopped}')}" if stopped else ""
    return (
        f"Training by {settings.method} at alpha {settings.alpha:g} ran {figures['iterations']} of "
        f"{settings.num_iterations} iterations of {settings.batch_size} paths of "
        f"{settings.num_steps} steps in {number(figures['training_seconds'], 0)} s{end}."
    )


def _rewards(tuning: Tuning) -> str:
    return (
        "Judging oracle, tuned model's plain samples: "
        + "; ".join(
            f"{_against(tuning.tuned, one)} {one.label}" for one in tuning.comparison.designs[:-1]
        )
        + "."
    )


def _against(tuned: Designs, rival: Designs) -> str:
    ours, theirs = tuned.figures(), rival.figures()
    gap = ours["judging_reward_mean"] - theirs["judging_reward_mean"]
    error = math.hypot(ours["judging_reward_mean_error"], theirs["judging_reward_mean_error"])
    return f"{number(abs(gap))} ± {number(error)} {'above' if gap > 0 else 'below'}"


def _nature(tuning: Tuning) -> str:
    comparison, figures = tuning.comparison, tuning_figures(tuning)
    plain, tuned = figures[0], figures[-1]
    words, limit = words_of(comparison.task), comparison.natural_limit
    return (
        f"It is {_divergence(tuned)} nats per path from the pre-trained model. Its median bound is "
        f"{bounded(tuned)} nats per {words.site}, {'above' if tuned['natural'] else 'below'} "
        f"{number(limit, 3)}, the {NATURAL_QUANTILE:.0%} quantile of "
        f"{len(comparison.reference.sequences):,} unguided samples. {tuned['distinct']} of "
        f"{tuned['designs']} designs are distinct and differ in "
        f"{number(tuned['mean_distance_sites'], 1)} {words.site}s on average; unguided samples in "
        f"{number(plain['mean_distance_sites'], 1)}."
    )


def _cost(tuning: Tuning) -> str:
    figures = tuning.figures()
    even = figures["designs_to_break_even"]
    costs = (
        f"A design costs {number(figures['seconds_per_design'], 3)} s after training, and "
        f"{number(figures['seconds_per_design_guided'], 3)} s by {tuning.guided.label}: "
    )
    if math.isinf(even):
        return costs + "training never pays for itself here."
    return costs + f"training has paid for itself after {even:,} designs."


def _divergence(figures: dict[str, Any]) -> str:
    if figures["key"] == "unguided":
        return "0"
    if "kl_nats_per_path" not in figures:
        return "–"
    return with_error(figures["kl_nats_per_path"], figures["kl_nats_per_path_error"])
