"""What a comparison is made of: its settings, each method's designs, and their figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from fastguide.diffusion import MaskedDiffusion
from fastguide.errors import ArgumentError
from fastguide.report.methods import TABLE
from fastguide.report.metrics import (
    Array,
    Diversity,
    diversity,
    mean_error,
    median_error,
    weighted_quantiles,
)
from fastguide.result import Result

Tensor = torch.Tensor

METHODS = (
    "unguided",
    "best_of_n",
    "matched",
    *(name for name in TABLE if name not in ("unguided", "best_of_n")),
)
"""What a comparison may hold, in the order of every table.

matched: best of N with the smallest N whose executed denoiser rows reach those of SVDD at the alpha
that executes most, so that it spends at least as much as any of the SVDD runs.
"""

CLASSIC = ("unguided", "best_of_n", "matched", "svdd")
"""What a comparison without a budget holds, if nothing else is asked for."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of rewards, wherever they are given."""

NATURAL_QUANTILE = 0.05
"""Designs count as natural while their median bound is above this quantile of unguided samples."""


class Task(Protocol):
    """What is compared on; `fastguide.zoo.load` returns one."""

    @property
    def name(self) -> str:
        """For titles and files."""

    @property
    def diffusion(self) -> MaskedDiffusion:
        """The pre-trained model."""

    @property
    def reward(self) -> Callable[[Tensor], Any]:
        """Guides."""

    @property
    def oracle(self) -> Callable[[Tensor], Any]:
        """Judges."""

    @property
    def decode(self) -> Callable[[Tensor], list[str]]:
        """Samples [B, L] -> sequences."""

    @property
    def card(self) -> dict[str, Any]:
        """What the models are."""


@dataclass(frozen=True)
class Settings:
    """What a comparison runs; two runs with equal settings draw the same samples.

    Attributes:
        methods: names out of METHODS.
        num_samples: designs per method.
        num_candidates: of best of N and of SVDD; of the others, all candidates of a design and a
            step, that is particles, or particles times the first of `methods.WIDTHS`.
        alphas: one run each of every method that has one, in reward units per nat; those that
            divide by it are not run at 0.
        num_steps: T.   seed: of every run.
        num_reference: unguided samples that say what is natural.   num_masks: of the bound.
        fixed_rows: as in `Sampler.sample`.
        rows_per_design: executed denoiser rows per design that every method is to spend; its size
            is chosen so (`methods.Method.size`), and num_candidates is ignored.
        seconds_per_design: likewise, in measured seconds, which is approximate.

    Raises:
        ArgumentError: an unknown method, no method, a size below what the figures need, two
            budgets.
    """

    methods: tuple[str, ...] = CLASSIC
    num_samples: int = 64
    num_candidates: int = 10
    alphas: tuple[float, ...] = ()
    num_steps: int = 128
    seed: int = 0
    num_reference: int = 1000
    num_masks: int = 64
    fixed_rows: int | None = None
    rows_per_design: float | None = None
    seconds_per_design: float | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown or not self.methods:
            raise ArgumentError(
                f"methods must be some of {', '.join(METHODS)}; got {', '.join(unknown) or 'none'}"
            )
        if "matched" in self.methods and "svdd" not in self.methods:
            raise ArgumentError("methods: 'matched' is matched to SVDD; add 'svdd' or drop it")
        for name in self.methods:
            if name != "matched" and not TABLE[name].alphas(self.alphas):
                kind = "positive temperature" if TABLE[name].alpha == "positive" else "temperature"
                raise ArgumentError(
                    f"alphas must hold at least one {kind} for {TABLE[name].label}, got "
                    f"{list(self.alphas) or 'none'}"
                )
        for each in ("rows_per_design", "seconds_per_design"):
            amount = getattr(self, each)
            if amount is not None and not (amount > 0 and math.isfinite(amount)):
                raise ArgumentError(f"{each} must be positive and finite, got {amount}")
        if self.rows_per_design is not None and self.seconds_per_design is not None:
            raise ArgumentError(
                "rows_per_design and seconds_per_design are two budgets; give one of them"
            )
        if self.budget is not None and "matched" in self.methods:
            raise ArgumentError(
                "methods: 'matched' has no place under a budget, which matches every method; "
                "drop it, best_of_n is matched too"
            )
        if len(set(self.alphas)) < len(self.alphas):
            raise ArgumentError(f"alphas must differ from one another, got {list(self.alphas)}")
        if self.num_samples < 2:
            raise ArgumentError(
                f"num_samples must be at least 2 to compare designs, got {self.num_samples}"
            )
        if self.num_reference < self.num_samples:
            raise ArgumentError(
                f"num_reference must be at least num_samples={self.num_samples} (the unguided "
                f"designs are the first of the reference), got {self.num_reference}"
            )

    @property
    def budget(self) -> float | None:
        """What every design may cost, in rows or seconds, or None."""
        return self.rows_per_design or self.seconds_per_design

    @property
    def wide(self) -> bool:
        """Whether more is compared than best of N and SVDD at the same N."""
        return self.budget is not None or not set(self.methods) <= set(CLASSIC)

    @property
    def middle_alpha(self) -> float:
        """The one in the middle, for where a single alpha is wanted."""
        return sorted(self.alphas)[len(self.alphas) // 2]


DEMO = Settings(alphas=(0.0, 0.3, 1.0))
"""What `fastguide demo` runs on task utr; alphas in ribosomes per mRNA per nat."""


@dataclass(frozen=True)
class Particles:
    """All particles of a method that weighs them: N groups, one per design, of P each.

    Attributes:
        guide, judge: [N, P] float64 rewards.   log_weights: [N, P] float64; each group sums to 1.
        log_z: [N] float64 nats.
    """

    guide: Array
    judge: Array
    log_weights: Array
    log_z: Array

    def figures(self) -> dict[str, Any]:
        """Averages over the groups, all alike, of what each holds by its weights."""
        weights = np.exp(self.log_weights)
        found: dict[str, Any] = {
            "groups": len(weights),
            "particles": weights.shape[1],
            "ess_mean": float((1 / (weights**2).sum(axis=1)).mean()),
            "log_z_mean": float(self.log_z.mean()),
            "log_z_deviation": float(self.log_z.std(ddof=1)) if len(weights) > 1 else math.nan,
        }
        for name, rewards in (("guiding", self.guide), ("judging", self.judge)):
            means = (weights * np.where(weights > 0, rewards, 0)).sum(axis=1)
            quantiles = weighted_quantiles(rewards.ravel(), weights.ravel(), QUANTILES)
            found[f"{name}_reward_mean"] = float(means.mean())
            found[f"{name}_reward_mean_error"] = mean_error(means)
            found[f"{name}_reward_quantiles"] = _by_quantile(quantiles)
        return found


def _by_quantile(values: Array) -> dict[str, float]:
    return {f"{q:g}": float(value) for q, value in zip(QUANTILES, values, strict=True)}


@dataclass
class Designs:
    """What one method made, and what is known about it.

    Attributes:
        key: for file names.   label: for people.
        result: of the sampler.   sequences: the samples as text.
        guide, judge: [N] float64 rewards by the guiding and by the judging oracle.
        bound: [N] float64 lower bound of the log-likelihood under the pre-trained model, nats.
        length: sites per design.
        particles: of a method that weighs them.
        fit: how a budget chose the size, and what was spent; None without a budget.
    """

    key: str
    label: str
    result: Result
    sequences: list[str]
    guide: Array
    judge: Array
    bound: Array
    length: int
    particles: Particles | None = None
    fit: dict[str, Any] | None = None

    @property
    def diversity(self) -> Diversity:
        """See `metrics.diversity`."""
        return diversity(self.result.samples)

    @property
    def bound_per_site(self) -> Array:
        """[N] nats per site."""
        return self.bound / self.length

    def figures(self, natural_limit: float | None = None) -> dict[str, Any]:
        """Every number of the tables, as plain Python values.

        Args:
            natural_limit: nats per site, see NATURAL_QUANTILE; None leaves out what needs it.
        """
        cost, made = self.result.cost, self.diversity
        per_site = self.bound_per_site
        median = float(np.median(per_site))
        ess = self.result.trace.ess.numpy()
        seen = np.isfinite(ess)
        found: dict[str, Any] = {
            "method": self.label,
            "key": self.key,
            "settings": self.result.settings,
            "designs": len(self.sequences),
            "guiding_reward_mean": float(self.guide.mean()),
            "guiding_reward_mean_error": mean_error(self.guide),
            "judging_reward_mean": float(self.judge.mean()),
            "judging_reward_mean_error": mean_error(self.judge),
            "judging_reward_median": float(np.median(self.judge)),
            "judging_reward_best": float(self.judge.max()),
            "guiding_reward_quantiles": _by_quantile(np.quantile(self.guide, QUANTILES)),
            "judging_reward_quantiles": _by_quantile(np.quantile(self.judge, QUANTILES)),
            "guiding_minus_judging_mean": float((self.guide - self.judge).mean()),
            "bound_median_nats_per_site": median,
            "bound_median_error_nats_per_site": median_error(per_site),
            "distinct": made.distinct,
            "mean_distance_sites": made.mean_distance,
            "nearest_distance_sites": made.nearest_distance,
            "ess_mean": float(ess[seen].mean()) if seen.any() else math.nan,
            "denoiser_rows_requested": cost.denoiser_rows_requested,
            "denoiser_rows": cost.denoiser_rows,
            "reward_rows_requested": cost.reward_rows_requested,
            "reward_rows": cost.reward_rows,
            "padding_rows": cost.padding_rows,
            "candidate_rows": cost.candidate_rows,
            "seconds": dict(cost.seconds),
            "overhead_share": (cost.seconds["kernels"] + cost.seconds["other"])
            / max(cost.seconds["total"], 1e-12),
            "overhead_us_per_candidate_row": 1e6 * cost.overhead_per_candidate,
        }
        if self.particles is not None:
            found["weighted_particles"] = self.particles.figures()
        if self.fit is not None:
            found["fit"] = self.fit
        if self.result.components is not None:
            parts = {k: v.double().cpu().numpy() for k, v in self.result.components.items()}
            found["components"] = {
                name: {"mean": float(part.mean()), "mean_error": mean_error(part)}
                for name, part in parts.items()
            }
        if natural_limit is not None:
            found["natural"] = bool(median >= natural_limit)
            found["share_below_limit"] = float((per_site < natural_limit).mean())
        return found


@dataclass
class Comparison:
    """Everything a report shows.

    Attributes:
        task: name.   card: of the task.   settings: what was run.
        designs: one entry per method, in the order of METHODS, alphas ascending.
        reference: the unguided samples that say what is natural.
        matching: how the N of `matched` was found; None without it.
        seconds: wall-clock and CPU seconds of the whole comparison.
    """

    task: str
    card: dict[str, Any]
    settings: Settings
    designs: list[Designs]
    reference: Designs
    matching: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def natural_limit(self) -> float:
        """NATURAL_QUANTILE of the reference's bound, nats per site."""
        return float(np.quantile(self.reference.bound_per_site, NATURAL_QUANTILE))

    def figures(self) -> list[dict[str, Any]]:
        """`Designs.figures` of each method."""
        limit = self.natural_limit
        return [made.figures(limit) for made in self.designs]
