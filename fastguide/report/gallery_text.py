"""Tables and sentences of a comparison on pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastguide.report.budget import TOLERANCE
from fastguide.report.family import against_best_of_n, cost_per_design, effective
from fastguide.report.gallery import Gallery, Pictures
from fastguide.report.tables import (
    Column,
    Figures,
    number,
    rows_of,
    text_table,
    with_error,
)

_COMMON = {"method", "num_samples", "num_steps", "seed", "first_chain", "savings", "max_rows"}
_COMMON |= {"fixed_rows", "on_invalid"}


def gallery_text(gallery: Gallery) -> str:
    """What the command line prints: tables, what they mean, and what they say in words."""
    figures = gallery.figures()
    parts = [
        text_table(rows_of(quality_columns(gallery), figures)),
        text_table(rows_of(cost_per_design(figures), figures)),
    ]
    for made in (gallery.candidates, gallery.temperatures):
        if made:
            varied = [one.figures(gallery.usual_distance) for one in made]
            parts.append(text_table(rows_of(ablation_columns(gallery), varied)))
    return "\n\n".join([*parts, legend(gallery), "\n".join(gallery_findings(gallery))])


def quality_columns(gallery: Gallery) -> list[Column]:
    """How good, how natural and how diverse the pictures of each method are."""
    return [*_result_columns(gallery), ("mean ESS", effective)]


def ablation_columns(gallery: Gallery) -> list[Column]:
    """The same of each run of an ablation, with its rows and seconds."""
    return [
        *_result_columns(gallery),
        ("mean ESS", effective),
        ("denoiser rows per picture", lambda f: number(f["denoiser_rows"] / f["designs"], 0)),
        ("seconds per picture", lambda f: number(f["seconds"]["total"] / f["designs"], 3)),
    ]


def _result_columns(gallery: Gallery) -> list[Column]:
    def mean(which: str) -> Column:
        def cell(f: Figures) -> str:
            keys = (f"{which}_reward_mean", f"{which}_reward_mean_error")
            return with_error(f[keys[0]], f[keys[1]], gallery.digits)

        return f"{which} reward", cell

    return [
        ("method", lambda f: f["method"]),
        mean("guiding"),
        *([] if gallery.exact else [mean("judging")]),
        ("judged clean", _clean),
        ("nearest drawing", lambda f: number(f["distance_median"])),
        ("as new drawings", lambda f: "yes" if f["distance_usual"] else "no"),
        ("distinct", lambda f: f"{f['distinct']}"),
        ("mean distance", lambda f: number(f["mean_distance"])),
    ]


def legend(gallery: Gallery) -> str:
    """What the columns mean."""
    low, high = gallery.usual_distance
    return (
        f"Reward: {gallery.reward_axis}, means ± standard error. Judged clean: share of pictures "
        "that the aesthetic judge takes for a pen drawing. Nearest drawing: median distance to "
        f"the nearest training drawing; as new drawings: it lies in {number(low)} to "
        f"{number(high)}, as for the middle 90% of drawings of characters that the diffusion model "
        "has not seen. "
        "Mean distance: between two pictures of a method, Euclidean, ink in 0..1. ESS: effective "
        "number of candidates or particles, mean over the steps that choose. Seconds are wall "
        "clock."
    )


def settings_rows(gallery: Gallery) -> list[list[str]]:
    """Header, and each method's arguments, without those that are the same for all."""
    rows = []
    for made in gallery.runs:
        kept = {k: v for k, v in made.result.settings.items() if k not in _COMMON}
        cells = (f"{k}={_short(v)}" for k, v in kept.items())
        rows.append([made.label, ", ".join(cells)])
    return [["method", "settings"], *rows]


def gallery_findings(gallery: Gallery) -> list[str]:
    """What the figures say, good and bad."""
    figures = gallery.figures()
    guided = [one for one in figures if one["key"] != "unguided"]
    lines = [_budget(figures), _alphas(gallery)]
    if guided:
        lines.append(_extremes(gallery, guided))
        lines += _overrated(gallery, guided)
        lines += against_best_of_n(guided, lambda rival: _judged(gallery, rival))
    lines += _naturalness(gallery, figures)
    lines += _diversity(gallery, guided)
    for why in dict.fromkeys(gallery.left_out.values()):
        names = [label for label, reason in gallery.left_out.items() if reason == why]
        lines.append(f"Left out: {', '.join(names)}; {why}.")
    for made in (gallery.candidates, gallery.temperatures):
        lines += _ablation(gallery, made)
    return lines


def _budget(figures: Sequence[Figures]) -> str:
    fits = [(one["method"], one["fit"]) for one in figures]
    met = [name for name, fit in fits if fit["met"]]
    off = [f"{n} ({fit['off']:+.1%})" for n, fit in fits if not fit["met"] and "argument" in fit]
    free = [f"{n} ({fit['off']:+.0%})" for n, fit in fits if "argument" not in fit]
    text = f"Budget: {number(fits[0][1]['due'], 0)} denoiser rows per picture. "
    text += f"Within {TOLERANCE:.0%}: {', '.join(met) or 'no method'}."
    if off:
        text += f" Not, at the nearest size found: {', '.join(off)}."
    if free:
        text += f" Without a size to choose, run as they are: {', '.join(free)}."
    return text


def _alphas(gallery: Gallery) -> str:
    alphas = ", ".join(f"{alpha:g}" for alpha in gallery.alphas)
    deviation = number(float(gallery.reference.guide.std(ddof=1)), gallery.digits)
    how = "given" if gallery.settings.alphas else "half of that, rounded; nothing was tuned"
    return (
        f"The guiding reward of {len(gallery.reference.images):,} unguided samples has a standard "
        f"deviation of {deviation}. Alpha: {alphas} ({how})."
    )


def _extremes(gallery: Gallery, guided: Sequence[Figures]) -> str:
    best, worst = (pick(guided, key=lambda one: one["judging_reward_mean"]) for pick in (max, min))
    plain = number(float(gallery.reference.judge.mean()), gallery.digits)
    who = "Reward" if gallery.exact else "Judge"
    if len(guided) == 1:
        return (
            f"{who}: {best['method']} has {_judged(gallery, best)}; unguided samples have {plain}."
        )
    return (
        f"{who}, guided methods: {worst['method']} is lowest with {_judged(gallery, worst)}, "
        f"{best['method']} highest with {_judged(gallery, best)}; unguided samples have {plain}."
    )


def _overrated(gallery: Gallery, guided: Sequence[Figures]) -> list[str]:
    """How much of the gain by the guide the judge confirms, where it is least."""
    if gallery.exact:
        return []
    plain = gallery.reference

    def gains(one: Figures) -> tuple[float, float]:
        return (
            one["guiding_reward_mean"] - float(plain.guide.mean()),
            one["judging_reward_mean"] - float(plain.judge.mean()),
        )

    most = max(guided, key=lambda one: gains(one)[0] - gains(one)[1])
    by_guide, by_judge = (f"{gain:+.{gallery.digits}f}" for gain in gains(most))
    return [
        f"Guide and judge are furthest apart for {most['method']}: against unguided samples it "
        f"gains {by_guide} by the guide and {by_judge} by the judge."
    ]


def _naturalness(gallery: Gallery, figures: Sequence[Figures]) -> list[str]:
    plain = gallery.reference.figures(gallery.usual_distance)
    spoilt = [
        one
        for one in figures
        if plain["clean"] - one["clean"] > 2 * math.hypot(plain["clean_error"], one["clean_error"])
    ]
    share = f"{plain['clean']:.0%} of unguided samples are judged clean"
    if spoilt:
        names = ", ".join(f"{one['method']} ({one['clean']:.0%})" for one in spoilt)
        lines = [f"{share}; fewer, by two standard errors, of {names}."]
    else:
        lines = [f"{share}; no method has fewer by two standard errors."]
    low, high = gallery.usual_distance
    for lost, side in (
        ([one for one in figures if one["distance_median"] > high], "further from"),
        ([one for one in figures if one["distance_median"] < low], "closer to"),
    ):
        if lost:
            names = ", ".join(f"{f['method']} ({number(f['distance_median'])})" for f in lost)
            lines.append(
                f"Half of the pictures are {side} a training drawing than 95% of the drawings of "
                f"unseen characters: {names}."
            )
    if all(one["distance_usual"] for one in figures):
        lines.append("By the distance to the nearest training drawing all are as new drawings are.")
    return lines


def _diversity(gallery: Gallery, guided: Sequence[Figures]) -> list[str]:
    lines = []
    repeated = [one for one in guided if one["distinct"] < one["designs"]]
    if repeated:
        names = ", ".join(f"{f['method']} ({f['distinct']} of {f['designs']})" for f in repeated)
        lines.append(f"Not all pictures are distinct: {names}.")
    if guided:
        least, most = (pick(guided, key=lambda one: one["mean_distance"]) for pick in (min, max))
        plain = gallery.reference.figures(gallery.usual_distance)["mean_distance"]
        ends = [least, most] if len(guided) > 1 else [least]
        shown = " to ".join(f"{number(one['mean_distance'])} ({one['method']})" for one in ends)
        lines.append(
            f"Mean distance between two pictures: {shown}; {number(plain)} between unguided "
            "samples."
        )
    return lines


def _ablation(gallery: Gallery, made: Sequence[Pictures]) -> list[str]:
    if not made:
        return []
    first, last = (one.figures(gallery.usual_distance) for one in (made[0], made[-1]))
    return [
        f"From {first['method']} to {last['method']}: {'reward' if gallery.exact else 'judge'} "
        f"{_judged(gallery, first)} to {_judged(gallery, last)}, judged clean {first['clean']:.0%} "
        f"to {last['clean']:.0%}, nearest drawing {number(first['distance_median'])} to "
        f"{number(last['distance_median'])}, mean distance {number(first['mean_distance'])} to "
        f"{number(last['mean_distance'])}."
    ]


def _judged(gallery: Gallery, one: Figures) -> str:
    return with_error(one["judging_reward_mean"], one["judging_reward_mean_error"], gallery.digits)


def _clean(figures: Figures) -> str:
    return f"{figures['clean']:.0%}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{value[0]}, …, {value[-1]}] ({len(value)})" if value else "[]"
    return f"{value:g}" if isinstance(value, float) else str(value)
