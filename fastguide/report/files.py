"""The files of a run: designs as FASTA and CSV, figures as JSON."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastguide.report.designs import NATURAL_QUANTILE, Comparison, Designs
from fastguide.report.environment import environment
from fastguide.report.summary import findings

COLUMNS = ("design", "method", "sequence", "guiding_reward", "judging_reward", "elbo_nats")


def write_designs(directory: Path, sets: Sequence[Designs]) -> None:
    """designs.fasta and designs.csv: every design with its rewards and its bound in nats.

    CSV columns are COLUMNS, and one for each component of a combined reward; numbers are written in
    full.
    """
    parts = [made.result.components or {} for made in sets]
    names = list(dict.fromkeys(name for part in parts for name in part))
    extra = [
        [part[name][row].item() if name in part else "" for name in names]
        for made, part in zip(sets, parts, strict=True)
        for row in range(len(made.sequences))
    ]
    records = [
        (f"{made.key}_{row + 1:03d}", made.key, sequence, guide, judge, bound)
        for made in sets
        for row, (sequence, guide, judge, bound) in enumerate(
            zip(
                made.sequences,
                made.guide.tolist(),
                made.judge.tolist(),
                made.bound.tolist(),
                strict=True,
            )
        )
    ]
    with (directory / "designs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *names])
        writer.writerows([*record, *more] for record, more in zip(records, extra, strict=True))
    entries = [
        f">{name} guiding_reward={guide:.4f} judging_reward={judge:.4f} elbo_nats={bound:.3f}\n"
        f"{sequence}\n"
        for name, _, sequence, guide, judge, bound in records
    ]
    (directory / "designs.fasta").write_text("".join(entries), encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented JSON in which NaN and infinity, which JSON lacks, are null."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """What summary.json holds: settings, figures, findings, versions, seconds."""
    reference = comparison.reference
    return {
        "task": comparison.task,
        "settings": dataclasses.asdict(comparison.settings),
        "natural_quantile": NATURAL_QUANTILE,
        "natural_limit_nats_per_site": comparison.natural_limit,
        "reference_samples": len(reference.sequences),
        "reference_judging_reward_mean": float(reference.judge.mean()),
        "methods": comparison.figures(),
        "matching": comparison.matching,
        "findings": findings(comparison),
        "seconds": comparison.seconds,
        "environment": environment(),
        "models": comparison.card.get("models", {}),
    }


def designs_record(task: str, made: Designs) -> dict[str, Any]:
    """What summary.json of a single method holds."""
    return {"task": task, **made.figures(), "environment": environment()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
