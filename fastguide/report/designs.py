"""What a comparison is made of: its settings, each method's designs, and their figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from fastguide.diffusion import MaskedDiffusion
from fastguide.errors import ArgumentError
from fastguide.report.metrics import Array, Diversity, diversity, mean_error, median_error
from fastguide.result import Result

Tensor = torch.Tensor

METHODS = ("unguided", "best_of_n", "matched", "svdd")
"""What a comparison may hold, in the order of every table.

matched: best of N with the smallest N whose executed denoiser rows reach those of SVDD at the alpha
that executes most, so that it spends at least as much as any of the SVDD runs.
"""

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
        num_samples: designs per method.   num_candidates: of best of N and of SVDD.
        alphas: one SVDD run each, in reward units per nat.   num_steps: T.   seed: of every run.
        num_reference: unguided samples that say what is natural.   num_masks: of the bound.
        fixed_rows: as in `Sampler.sample`.

    Raises:
        ArgumentError: an unknown method, no method, a size below what the figures need.
    """

    methods: tuple[str, ...] = METHODS
    num_samples: int = 64
    num_candidates: int = 10
    alphas: tuple[float, ...] = ()
    num_steps: int = 128
    seed: int = 0
    num_reference: int = 1000
    num_masks: int = 64
    fixed_rows: int | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown or not self.methods:
            raise ArgumentError(
                f"methods must be some of {', '.join(METHODS)}; got {', '.join(unknown) or 'none'}"
            )
        if "matched" in self.methods and "svdd" not in self.methods:
            raise ArgumentError("methods: 'matched' is matched to SVDD; add 'svdd' or drop it")
        if "svdd" in self.methods and not self.alphas:
            raise ArgumentError("alphas must hold at least one temperature for SVDD, got none")
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
    def middle_alpha(self) -> float:
        """The one in the middle, for where a single alpha is wanted."""
        return sorted(self.alphas)[len(self.alphas) // 2]


DEMO = Settings(alphas=(0.0, 0.3, 1.0))
"""What `fastguide demo` runs on task utr; alphas in ribosomes per mRNA per nat."""


@dataclass
class Designs:
    """What one method made, and what is known about it.

    Attributes:
        key: for file names.   label: for people.
        result: of the sampler.   sequences: the samples as text.
        guide, judge: [N] float64 rewards by the guiding and by the judging oracle.
        bound: [N] float64 lower bound of the log-likelihood under the pre-trained model, nats.
        length: sites per design.
    """

    key: str
    label: str
    result: Result
    sequences: list[str]
    guide: Array
    judge: Array
    bound: Array
    length: int

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
        found = {
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
            "guiding_minus_judging_mean": float((self.guide - self.judge).mean()),
            "bound_median_nats_per_site": median,
            "bound_median_error_nats_per_site": median_error(per_site),
            "distinct": made.distinct,
            "mean_distance_sites": made.mean_distance,
            "nearest_distance_sites": made.nearest_distance,
            "denoiser_rows_requested": cost.denoiser_rows_requested,
            "denoiser_rows": cost.denoiser_rows,
            "reward_rows_requested": cost.reward_rows_requested,
            "reward_rows": cost.reward_rows,
            "padding_rows": cost.padding_rows,
            "candidate_rows": cost.candidate_rows,
            "seconds": dict(cost.seconds),
            "overhead_us_per_candidate_row": 1e6 * cost.overhead_per_candidate,
        }
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
