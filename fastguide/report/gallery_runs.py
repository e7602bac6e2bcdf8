"""Running several methods on pictures, each at the same number of executed denoiser rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fastguide.diffusion import Diffusion
from fastguide.errors import ArgumentError, GradientError
from fastguide.modes import evaluation_mode
from fastguide.report.budget import TOLERANCE, SizeSearch
from fastguide.report.gallery import (
    ALPHA_FACTORS,
    CANDIDATES,
    NATURAL_JUDGE,
    Gallery,
    GallerySettings,
    Pictures,
    PictureTask,
    Reward,
    picture_rewards,
)
from fastguide.report.methods import TABLE, Method, Shape
from fastguide.report.metrics import Array
from fastguide.result import Result

PILOT_SAMPLES = 2
"""Pictures of the runs that look for a size: states are never equal, so rows hardly differ."""

SHOWN_DRAWINGS = 32

NOT_FOR_PICTURES = {
    "classifier_guidance": "it needs a value of noisy pictures, trained for the reward, and there "
    "is none"
}
"""Methods whose entry in TABLE is about sequences, and why."""


def assess_pictures(
    task: PictureTask, reward: str | None, key: str, label: str, result: Result
) -> Pictures:
    """The pictures of a run guided by `reward`, judged, and with their nearest distance."""
    assert result.rewards is not None
    _, _, judge = picture_rewards(task, reward)
    natural = task.oracles[NATURAL_JUDGE]
    with evaluation_mode(judge, natural):
        return Pictures(
            key=key,
            label=label,
            result=result,
            images=task.decode(result.samples).cpu(),
            guide=_numbers(result.rewards),
            judge=_numbers(judge(result.samples)),
            natural=_numbers(natural(result.samples)),
            distance=_numbers(task.nearest_distance(result.samples)),
        )


def compare_pictures(
    task: PictureTask,
    settings: GallerySettings,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
    keep: Callable[[Pictures], None] = lambda made: None,
) -> Gallery:
    """Run the methods of `settings` on `task`.

    A method that asks for a gradient that the reward does not have is left out, and named.

    Args:
        progress: show bars.   say: is told what starts.
        keep: is given each run's pictures as soon as they are there.

    Raises:
        ArgumentError: an unknown reward, one without spread where it is to choose alpha, or no
            method that can be run.
    """
    wall, processor = time.perf_counter(), time.process_time()
    name, reward, _ = picture_rewards(task, settings.reward)
    runner = _Runner(task, _Guided(task.diffusion, reward), name, settings, progress, say, keep)
    plain = runner.one("unguided", "unguided", TABLE["unguided"].label, runner.shape(1))
    reference = runner.reference(plain)
    alphas = tuple(sorted(settings.alphas)) or (half_deviation(reference.guide),)
    if not settings.alphas:
        say(f"alpha {alphas[0]:g}: half the standard deviation of unguided samples, rounded")
    runs: list[Pictures] = []
    left_out: dict[str, str] = {}
    for key, method in TABLE.items():
        if key not in settings.methods:
            continue
        if key == "unguided":
            runs.append(replace(plain, fit=runner.fit(plain.result, {})))
        elif key in NOT_FOR_PICTURES:
            left_out[method.label] = NOT_FOR_PICTURES[key]
        elif not method.alphas(alphas):
            left_out[method.label] = "it divides by alpha, and only alpha 0 was to be run"
        else:
            try:
                runs += [
                    runner.within(key, method, alpha, many=len(alphas) > 1)
                    for alpha in method.alphas(alphas)
                ]
            except GradientError as error:
                left_out[method.label] = str(error)
    if not runs:
        why = "; ".join(f"{label}: {reason}" for label, reason in left_out.items())
        raise ArgumentError(f"methods: none of those given can be run on {name!r}. {why}")
    gallery = Gallery(
        task=task.name,
        card=task.card,
        settings=settings,
        reward=name,
        alphas=alphas,
        runs=runs,
        reference=reference,
        drawings=task.references[:: max(1, len(task.references) // SHOWN_DRAWINGS)],
        left_out=left_out,
    )
    if settings.ablate:
        gallery.candidates, gallery.temperatures = runner.ablations(alphas[len(alphas) // 2])
    gallery.seconds = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - processor,
    }
    return gallery


def half_deviation(rewards: Array) -> float:
    """Half the standard deviation of rewards [N], rounded to one digit.

    Raises:
        ArgumentError: they are all alike.
    """
    half = float(f"{rewards.std(ddof=1) / 2:.1g}")
    if not half > 0:
        raise ArgumentError(
            "alphas cannot be chosen from the spread of the reward: it is the same for all "
            f"{len(rewards)} unguided samples; choose another reward, or give alphas"
        )
    return half


@dataclass(frozen=True)
class _Guided:
    """What `methods.TABLE` builds from."""

    diffusion: Diffusion
    reward: Reward


@dataclass
class _Runner:
    task: PictureTask
    guided: _Guided
    reward: str
    settings: GallerySettings
    progress: bool
    say: Callable[[str], None]
    keep: Callable[[Pictures], None]

    def sample(
        self,
        method: Method,
        shape: Shape,
        num: int | None = None,
        first: int = 0,
        *,
        progress: bool = True,
    ) -> Result:
        return method.build(self.guided, shape).sample(
            self.settings.num_samples if num is None else num,
            num_steps=self.settings.num_steps,
            seed=self.settings.seed,
            first_chain=first,
            fixed_rows=self.settings.fixed_rows,
            progress=self.progress and progress,
        )

    def shape(self, size: int, width: int = 1, alpha: float | None = None) -> Shape:
        return Shape(size, width, math.nan if alpha is None else alpha, self.settings.num_steps)

    def assess(
        self, key: str, label: str, result: Result, fit: dict[str, Any] | None = None
    ) -> Pictures:
        made = replace(assess_pictures(self.task, self.reward, key, label, result), fit=fit)
        self.keep(made)
        return made

    def one(self, name: str, key: str, label: str, shape: Shape) -> Pictures:
        """A run of the method `name` of a known size."""
        self.say(label)
        return self.assess(key, label, self.sample(TABLE[name], shape))

    def reference(self, plain: Pictures) -> Pictures:
        """The unguided pictures and as many more as are missing to num_reference."""
        settings = self.settings
        missing = settings.num_reference - settings.num_samples
        label = f"{settings.num_reference:,} unguided samples"
        if not missing:
            return replace(plain, key="reference", label=label)
        self.say(f"Unguided, {missing:,} more for reference")
        result = self.sample(TABLE["unguided"], self.shape(1), missing, settings.num_samples)
        more = self.assess("reference", label, result)
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(plain, name), getattr(more, name)])
            for name in ("guide", "judge", "natural", "distance")
        }
        return replace(more, images=torch.cat([plain.images, more.images]), **arrays)

    def within(self, key: str, method: Method, alpha: float | None, *, many: bool) -> Pictures:
        """The run that spends closest to the budget, and how its size was found."""
        label = method.label
        if alpha is not None:
            key = f"{key}_alpha_{alpha:g}"
            label += f", alpha {alpha:g}" if many else ""
        if not method.size:
            self.say(label)
            result = self.sample(method, self.shape(1, 1, alpha))
            return self.assess(key, label, result, self.fit(result, {}))

        def pilot(size: int, width: int) -> float:
            num = min(PILOT_SAMPLES, self.settings.num_samples)
            shape = self.shape(size, width, alpha)
            return _rows(self.sample(method, shape, num, progress=False))

        def run(size: int, width: int) -> tuple[float, Result]:
            shown = f" of {width} candidates" if len(method.widths) > 1 else ""
            self.say(f"{label}: {method.size}={size}{shown}")
            result = self.sample(method, self.shape(size, width, alpha))
            return _rows(result), result

        found, result = SizeSearch(self.settings.rows_per_design, pilot, run, method.widths).find()
        if len(method.widths) == 1:
            del found["width"]
        return self.assess(key, label, result, self.fit(result, {"argument": method.size, **found}))

    def fit(self, result: Result, found: dict[str, Any]) -> dict[str, Any]:
        """A record of what a picture cost, against the budget."""
        spent = _rows(result)
        off = spent / self.settings.rows_per_design - 1
        return {
            "unit": "denoiser rows",
            "due": self.settings.rows_per_design,
            "spent": spent,
            "off": off,
            "met": abs(off) <= TOLERANCE,
            **found,
        }

    def ablations(self, alpha: float) -> tuple[list[Pictures], list[Pictures]]:
        """SVDD at `alpha` with CANDIDATES, and at ALPHA_FACTORS with those that the budget buys."""
        middle = max(1, round(self.settings.rows_per_design / self.settings.num_steps))
        alphas = sorted({float(f"{factor * alpha:.3g}") for factor in ALPHA_FACTORS})
        made: dict[tuple[int, float], Pictures] = {}
        for size, each in [*((m, alpha) for m in CANDIDATES), *((middle, a) for a in alphas)]:
            if (size, each) not in made:
                key, label = f"svdd_{size}_alpha_{each:g}", f"SVDD, M = {size}, alpha {each:g}"
                shape = self.shape(size, 1, each)
                made[size, each] = self.one("svdd", key, label, shape)
        return [made[m, alpha] for m in CANDIDATES], [made[middle, a] for a in alphas]


def _rows(result: Result) -> float:
    """Denoiser rows per picture."""
    return result.cost.denoiser_rows / len(result)


def _numbers(values: Any) -> Array:
    return torch.as_tensor(values).detach().double().cpu().numpy()
