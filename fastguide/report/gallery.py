"""What a comparison on pictures is made of: its settings, each run's pictures, their figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from fastguide.diffusion import Diffusion
from fastguide.errors import ArgumentError
from fastguide.report.designs import QUANTILES
from fastguide.report.methods import TABLE
from fastguide.report.metrics import Array, mean_error, median_error
from fastguide.result import Result
from fastguide.rewards import JpegCompressibility, JpegIncompressibility

Tensor = torch.Tensor
Reward = Callable[[Tensor], Any]

FILE_SIZES = {"compressibility": JpegCompressibility, "incompressibility": JpegIncompressibility}
"""Rewards of any picture task, beside its own."""

NATURAL_JUDGE = "aesthetic"
"""The oracle that says, whatever the reward is, whether a picture is clean: above 0."""

CANDIDATES = (1, 2, 4, 8, 16, 32)
"""Of SVDD, where --ablate varies them."""

ALPHA_FACTORS = (0.0, 0.25, 1.0, 4.0, 16.0)
"""Times the alpha of the comparison, where --ablate varies that of SVDD."""

UNITS = {"aesthetic": "nats", "alphabet": "nats", "ink": "% of the page"}
UNITS |= dict.fromkeys(FILE_SIZES, "kB")


class PictureTask(Protocol):
    """What is compared on; `fastguide.zoo.load` returns one."""

    @property
    def name(self) -> str:
        """For titles and files."""

    @property
    def diffusion(self) -> Diffusion:
        """The pre-trained model of samples [B, C, H, W] in [-1, 1]."""

    @property
    def rewards(self) -> Mapping[str, Reward]:
        """Guides, by name."""

    @property
    def oracles(self) -> Mapping[str, Reward]:
        """Judges, by the same names; NATURAL_JUDGE is one of them."""

    @property
    def default(self) -> str:
        """The name of the usual guide."""

    @property
    def decode(self) -> Callable[[Tensor], Tensor]:
        """Samples -> images [B, H, W] uint8, 0 paper and 255 ink."""

    @property
    def references(self) -> Tensor:
        """[N, H, W] uint8 of the training data."""

    @property
    def nearest_distance(self) -> Callable[[Tensor], Tensor]:
        """Samples -> [B], the distance to the nearest reference."""

    @property
    def card(self) -> dict[str, Any]:
        """What the models are; holds the nearest distances of held-out data."""


@dataclass(frozen=True)
class GallerySettings:
    """What a comparison on pictures runs; two runs with equal settings draw the same samples.

    Attributes:
        reward: one of the task's, or of FILE_SIZES; None takes the task's usual one.
        methods: names out of `methods.TABLE`.
        num_samples: pictures per run.
        rows_per_design: executed denoiser rows per picture that every method is to spend.
        alphas: one run each of every method that has one, in reward units per nat; none: half the
            standard deviation of the reward of unguided samples, rounded to one digit.
        num_steps: T.   seed: of every run.
        num_reference: unguided samples that the others are compared with.
        fixed_rows: as in `Sampler.sample`.
        ablate: also vary the candidates and the alpha of SVDD.

    Raises:
        ArgumentError: an unknown method, no method, a size below what the figures need.
    """

    reward: str | None = None
    methods: tuple[str, ...] = tuple(TABLE)
    num_samples: int = 64
    rows_per_design: float = 256
    alphas: tuple[float, ...] = ()
    num_steps: int = 32
    seed: int = 0
    num_reference: int = 256
    fixed_rows: int | None = None
    ablate: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.methods) - set(TABLE))
        if unknown or not self.methods:
            raise ArgumentError(
                f"methods must be some of {', '.join(TABLE)}; got {', '.join(unknown) or 'none'}"
            )
        if not (self.rows_per_design > 0 and math.isfinite(self.rows_per_design)):
            raise ArgumentError(
                f"rows_per_design must be positive and finite, got {self.rows_per_design}"
            )
        if len(set(self.alphas)) < len(self.alphas):
            raise ArgumentError(f"alphas must differ from one another, got {list(self.alphas)}")
        if not all(alpha >= 0 and math.isfinite(alpha) for alpha in self.alphas):
            raise ArgumentError(f"alphas must be finite and not negative, got {list(self.alphas)}")
        if self.num_samples < 2:
            raise ArgumentError(
                f"num_samples must be at least 2 to compare pictures, got {self.num_samples}"
            )
        if self.num_reference < self.num_samples:
            raise ArgumentError(
                f"num_reference must be at least num_samples={self.num_samples} (the unguided "
                f"pictures are the first of the reference), got {self.num_reference}"
            )


@dataclass
class Pictures:
    """What one run made, and what is known about it.

    Attributes:
        key: for file names.   label: for people.
        result: of the sampler.   images: [N, H, W] uint8, 0 paper and 255 ink.
        guide, judge: [N] float64 rewards by the guide and by the judge.
        natural: [N] float64 of the oracle NATURAL_JUDGE, above 0 for a clean picture.
        distance: [N] float64 to the nearest reference.
        fit: how a budget chose the size, and what was spent; None without a budget.
    """

    key: str
    label: str
    result: Result
    images: Tensor
    guide: Array
    judge: Array
    natural: Array
    distance: Array
    fit: dict[str, Any] | None = None

    def figures(self, usual: tuple[float, float]) -> dict[str, Any]:
        """Every number of the tables, as plain Python values.

        Args:
            usual: `Gallery.usual_distance`.
        """
        cost, ess = self.result.cost, self.result.trace.ess.numpy()
        seen = np.isfinite(ess)
        shown = self.images.flatten(1).float() / 255
        clean = float((self.natural > 0).mean())
        distance = float(np.median(self.distance))
        found: dict[str, Any] = {
            "method": self.label,
            "key": self.key,
            "settings": self.result.settings,
            "designs": len(self.images),
            "clean": clean,
            "clean_error": math.sqrt(clean * (1 - clean) / len(self.images)),
            "natural_mean": float(self.natural.mean()),
            "distance_median": distance,
            "distance_median_error": median_error(self.distance),
            "distance_usual": usual[0] <= distance <= usual[1],
            "distinct": len(torch.unique(self.images.flatten(1), dim=0)),
            "mean_distance": float(torch.pdist(shown).mean()),
            "ess_mean": float(ess[seen].mean()) if seen.any() else math.nan,
            "denoiser_rows": cost.denoiser_rows,
            "denoiser_rows_requested": cost.denoiser_rows_requested,
            "reward_rows": cost.reward_rows,
            "reward_rows_requested": cost.reward_rows_requested,
            "seconds": dict(cost.seconds),
            "overhead_share": (cost.seconds["kernels"] + cost.seconds["other"])
            / max(cost.seconds["total"], 1e-12),
            "overhead_us_per_candidate_row": 1e6 * cost.overhead_per_candidate,
        }
        for name, rewards in (("guiding", self.guide), ("judging", self.judge)):
            found[f"{name}_reward_mean"] = float(rewards.mean())
            found[f"{name}_reward_mean_error"] = mean_error(rewards)
            quantiles = np.quantile(rewards, QUANTILES).tolist()
            found[f"{name}_reward_quantiles"] = dict(
                zip((f"{q:g}" for q in QUANTILES), quantiles, strict=True)
            )
        if self.fit is not None:
            found["fit"] = self.fit
        return found


@dataclass
class Gallery:
    """Everything a report on pictures shows.

    Attributes:
        task: name.   card: of the task.   settings: what was run.
        reward: its name.   alphas: that were run, ascending.
        runs: one entry per method, in the order of `methods.TABLE`, alphas ascending.
        reference: the unguided samples that the others are compared with.
        drawings: [N, H, W] uint8, some of the training data.
        left_out: label of a method -> why it cannot be run.
        candidates, temperatures: SVDD with few to many candidates, and with small to large alpha.
        seconds: wall-clock and CPU seconds of the whole comparison.
    """

    task: str
    card: dict[str, Any]
    settings: GallerySettings
    reward: str
    alphas: tuple[float, ...]
    runs: list[Pictures]
    reference: Pictures
    drawings: Tensor
    left_out: dict[str, str]
    candidates: list[Pictures] = field(default_factory=list)
    temperatures: list[Pictures] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def reward_axis(self) -> str:
        """The reward with its unit."""
        unit = UNITS.get(self.reward.split(":")[0])
        return f"{self.reward} ({unit})" if unit else self.reward

    @property
    def exact(self) -> bool:
        """The judge is the guide: a reward that is computed and not learned."""
        return bool((self.reference.guide == self.reference.judge).all())

    @property
    def digits(self) -> int:
        """Decimals that show a hundredth of the spread of unguided rewards, at least 2."""
        spread = float(self.reference.guide.std())
        return max(2, 2 - math.floor(math.log10(spread))) if spread > 0 else 2

    @property
    def usual_distance(self) -> tuple[float, float]:
        """Between which the nearest distances of the middle 90 % of held-out drawings lie."""
        known = self.card["metrics"]["nearest_distance"]
        low, high = (known["quantiles"].index(q) for q in (0.05, 0.95))
        return known["held_out_characters"][low], known["held_out_characters"][high]

    def figures(self) -> list[dict[str, Any]]:
        """`Pictures.figures` of each method."""
        return [made.figures(self.usual_distance) for made in self.runs]


def picture_rewards(task: PictureTask, name: str | None = None) -> tuple[str, Reward, Reward]:
    """Name, guide and judge of a reward of `task` or of FILE_SIZES; None is the task's usual one.

    A file size is exact, and judges itself.

    Raises:
        ArgumentError: an unknown name.   MissingExtraError: a file size needs Pillow.
    """
    name = task.default if name is None else name
    if name in task.rewards:
        return name, task.rewards[name], task.oracles[name]
    if name in FILE_SIZES:
        size = FILE_SIZES[name](value_range=(-1, 1))
        return name, size, size
    known = ", ".join([*task.rewards, *FILE_SIZES])
    raise ArgumentError(f"reward must be one of {known}; got {name!r}")
