"""The picture of one result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastguide.report.pictures import draw_seconds, draw_values
from fastguide.report.style import GUIDED, INK, new_figure, pictures
from fastguide.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot(result: Result) -> Figure:
    """Draw a result: values along the steps, final rewards, and what the run cost.

    Panels without data are left out: values for samplers that do not choose on the way, rewards
    for runs without a reward.

    Returns:
        a matplotlib Figure; `.savefig(path)` writes it.
    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    values = result.trace.values
    scored = values.ndim == 2 and values.shape[1] > 0 and bool(values[:-1].isfinite().any())
    rewarded = result.rewards is not None and len(result.rewards) > 0
    heights = [3.0] * scored + [2.4] * rewarded + [1.7]
    with pictures():
        figure, panels = new_figure(sum(heights), rows=len(heights), ratios=heights)
        left = iter(panels)
        if scored:
            axes = next(left)
            draw_values(axes, result, GUIDED[0])
            axes.set(title="Value along the steps", xlabel="step", ylabel="value")
            axes.legend(loc="lower right")
        if rewarded:
            _rewards(next(left), result)
        axes = next(left)
        method = str(result.settings.get("method", "run"))
        draw_seconds(axes, [method], [result.cost])
        axes.set_title(
            f"Cost: {result.cost.denoiser_rows:,} of {result.cost.denoiser_rows_requested:,} "
            "denoiser rows"
        )
    return figure


def _rewards(axes: Axes, result: Result) -> None:
    assert result.rewards is not None
    rewards = result.rewards.double().cpu().numpy()
    axes.hist(rewards, bins=min(30, max(5, len(rewards) // 3)), color=GUIDED[0], alpha=0.75)
    median = float(np.median(rewards))
    axes.axvline(median, color=INK, lw=1.5, ls=(0, (4, 3)))
    title = f"Rewards of {len(rewards):,} samples, median {median:.3g}"
    if result.components:
        medians = (
            f"{name} {np.median(part.cpu()):.3g}" for name, part in result.components.items()
        )
        title += f"\n({', '.join(medians)})"
    axes.set(
        title=title,
        xlabel="reward",
        ylabel="samples",
    )
