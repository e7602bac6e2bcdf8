"""Everything a comparison on pictures leaves on disk."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastguide.report.environment import environment
from fastguide.report.files import write_json
from fastguide.report.gallery import Gallery, Pictures
from fastguide.report.gallery_page import build_gallery_page
from fastguide.report.gallery_pictures import draw_gallery, grid_png
from fastguide.report.gallery_text import gallery_findings
from fastguide.report.metrics import mean_error
from fastguide.report.tables import number, with_error
from fastguide.result import make_directory

_OF_REFERENCE = {
    *("designs", "clean", "clean_error", "natural_mean", "distance_median", "distinct"),
    *("mean_distance", "guiding_reward_mean", "judging_reward_mean"),
}


def write_gallery(gallery: Gallery, directory: str | Path) -> Path:
    """Write report.html, its figures as PNG, grids/KEY.png, samples.npz and summary.json.

    Returns:
        report.html.
    Raises:
        ArgumentError: the folder cannot be written.
        MissingExtraError: matplotlib is not installed; samples, grids and summary are written.
    """
    path = make_directory(directory, "directory")
    every = {made.key: made for made in (*gallery.runs, *gallery.candidates, *gallery.temperatures)}
    write_samples(path / "samples.npz", list(every.values()))
    grids = make_directory(path / "grids", "directory")
    for key, made in every.items():
        (grids / f"{key}.png").write_bytes(grid_png(made.images))
    write_json(path / "summary.json", _record(gallery))
    images = {}
    for name, figure in draw_gallery(gallery).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        images[name] = buffer.getvalue()
        (path / f"{name}.png").write_bytes(images[name])
    page = path / "report.html"
    page.write_text(build_gallery_page(gallery, images), encoding="utf-8")
    return page


def write_samples(path: Path, sets: Sequence[Pictures]) -> None:
    """A NumPy file: KEY [N, C, H, W] float32 of each run, KEY.guide and KEY.judge [N] float64."""
    arrays: dict[str, Any] = {}
    for made in sets:
        arrays[made.key] = made.result.samples.float().cpu().numpy()
        arrays[f"{made.key}.guide"] = made.guide
        arrays[f"{made.key}.judge"] = made.judge
    np.savez_compressed(path, **arrays)


def write_pictures(directory: Path, task: str, reward: str, made: Pictures) -> None:
    """Of one run: the result, samples.npz, grid.png and summary.json."""
    made.result.save(directory)
    write_samples(directory / "samples.npz", [made])
    (directory / "grid.png").write_bytes(grid_png(made.images))
    summary = {
        "task": task,
        "reward": reward,
        "settings": made.result.settings,
        "designs": len(made.images),
        "guiding_reward_mean": float(made.guide.mean()),
        "judging_reward_mean": float(made.judge.mean()),
        "clean": float((made.natural > 0).mean()),
        "distance_median": float(np.median(made.distance)),
        "cost": dataclasses.asdict(made.result.cost),
        "environment": environment(),
    }
    write_json(directory / "summary.json", summary)


def pictures_text(made: Pictures) -> str:
    """What the command line prints of one run."""
    cost = made.result.cost
    facts = {
        "pictures": f"{len(made.images)}",
        "guiding reward": with_error(float(made.guide.mean()), mean_error(made.guide), 3),
        "judging reward": with_error(float(made.judge.mean()), mean_error(made.judge), 3),
        "judged clean": f"{(made.natural > 0).mean():.0%}",
        "nearest drawing": f"{number(float(np.median(made.distance)))} (median)",
        "denoiser rows": f"{cost.denoiser_rows:,} run of {cost.denoiser_rows_requested:,} "
        "requested",
        "seconds": number(cost.seconds["total"], 1),
    }
    width = max(map(len, facts))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in facts.items())


def _record(gallery: Gallery) -> dict[str, Any]:
    """What summary.json holds."""
    usual = gallery.usual_distance
    return {
        "task": gallery.task,
        "reward": gallery.reward,
        "exact": gallery.exact,
        "settings": dataclasses.asdict(gallery.settings),
        "alphas": gallery.alphas,
        "usual_distance": usual,
        "reference": {
            name: value
            for name, value in gallery.reference.figures(usual).items()
            if name in _OF_REFERENCE
        },
        "methods": gallery.figures(),
        "left_out": gallery.left_out,
        "candidates": [made.figures(usual) for made in gallery.candidates],
        "temperatures": [made.figures(usual) for made in gallery.temperatures],
        "findings": gallery_findings(gallery),
        "seconds": gallery.seconds,
        "environment": environment(),
        "models": gallery.card.get("models", {}),
    }
