"""Every method that a comparison can run, with the size that decides its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from fastguide.diffusion import MaskedDiffusion
from fastguide.samplers import (
    DAS,
    DPS,
    SMC,
    SVDD,
    SVDDR,
    TDS,
    BeamSearch,
    BestOfN,
    BlockwiseBestOfN,
    ClassifierGuidance,
    FKSteering,
    NestedSMC,
    ScheduledSearch,
    Unguided,
)
from fastguide.samplers.base import Sampler

Tensor = torch.Tensor


class Guided(Protocol):
    """What a method is built from; a `Task` is one."""

    @property
    def diffusion(self) -> MaskedDiffusion:
        """The pre-trained model."""

    @property
    def reward(self) -> Callable[[Tensor], Any]:
        """Guides."""


@dataclass(frozen=True)
class Shape:
    """What a method is built with; it takes what it has a use for.

    Attributes:
        size: num_particles where it has particles, else num_candidates.
        width: num_candidates of a method that has both.
        alpha: reward units per nat.   num_steps: T.
    """

    size: int
    width: int
    alpha: float
    num_steps: int


@dataclass(frozen=True)
class Method:
    """One method; every argument that is not named here has its default.

    Attributes:
        label: for people.
        build: makes its sampler.
        size: the argument that a budget chooses, or "" where there is none.
        widths: num_candidates to try, where `size` is num_particles and there are candidates too.
        alpha: "none"; "any": 0 takes the best; "positive": a run at 0 is left out.
    """

    label: str
    build: Callable[[Guided, Shape], Sampler]
    size: str = ""
    widths: tuple[int, ...] = (1,)
    alpha: Literal["none", "any", "positive"] = "none"

    def alphas(self, given: tuple[float, ...]) -> list[float | None]:
        """One entry per run, ascending; None for a method without a temperature."""
        if self.alpha == "none":
            return [None]
        return [one for one in sorted(given) if one > 0 or self.alpha == "any"]


class EvenLetters:
    """A value of unfinished sequences that needs no training and no denoiser.

    The reward's `soft` method where every hidden site holds all letters in equal parts.

    Args:
        score: differentiable, probabilities [B, L, V] -> [B].
    """

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        self._score = score

    def soft(self, onehot: Tensor, t: Tensor) -> Tensor:
        """Values [B] of relaxed states [B, L, V + 1], whose last column is the mask."""
        letters, hidden = onehot[..., :-1], onehot[..., -1:]
        return self._score(letters + hidden / letters.shape[-1])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Values [B] of states [B, L] in which the mask is V."""
        raise AssertionError("guidance along a gradient asks for soft")


def _classifier(task: Guided, shape: Shape) -> Sampler:
    value = EvenLetters(task.diffusion.relaxed_reward(task.reward))
    return ClassifierGuidance(task.diffusion, value, task.reward, shape.alpha)


WIDTHS = (2, 3, 4)
"""Candidates per particle: the first with which the particles meet a budget is taken."""

TABLE: dict[str, Method] = {
    "unguided": Method("Unguided", lambda task, shape: Unguided(task.diffusion, task.reward)),
    "best_of_n": Method(
        "Best of N",
        lambda task, shape: BestOfN(task.diffusion, task.reward, shape.size),
        "num_candidates",
    ),
    "svdd": Method(
        "SVDD",
        lambda task, shape: SVDD(
            task.diffusion, task.reward, num_candidates=shape.size, alpha=shape.alpha
        ),
        "num_candidates",
        alpha="any",
    ),
    "svdd_r": Method(
        "SVDD-R",
        lambda task, shape: SVDDR(
            task.diffusion,
            task.reward,
            num_particles=shape.size,
            num_candidates=shape.width,
            alpha=shape.alpha,
        ),
        "num_particles",
        WIDTHS,
        "any",
    ),
    "beam_search": Method(
        "Beam search",
        lambda task, shape: BeamSearch(
            task.diffusion, task.reward, num_particles=shape.size, num_candidates=shape.width
        ),
        "num_particles",
        WIDTHS,
    ),
    "scheduled_search": Method(
        "Scheduled search",
        lambda task, shape: ScheduledSearch(
            task.diffusion, task.reward, num_candidates=shape.size, num_steps=shape.num_steps
        ),
        "num_candidates",
    ),
    "blockwise": Method(
        "Blockwise best of N",
        lambda task, shape: BlockwiseBestOfN(
            task.diffusion, task.reward, num_candidates=shape.size, alpha=shape.alpha
        ),
        "num_candidates",
        alpha="any",
    ),
    "smc": Method(
        "SMC",
        lambda task, shape: SMC(
            task.diffusion, task.reward, num_particles=shape.size, alpha=shape.alpha
        ),
        "num_particles",
        alpha="positive",
    ),
    "nested_smc": Method(
        "Nested SMC",
        lambda task, shape: NestedSMC(
            task.diffusion,
            task.reward,
            num_particles=shape.size,
            num_candidates=shape.width,
            alpha=shape.alpha,
        ),
        "num_particles",
        WIDTHS,
        "positive",
    ),
    "fk_steering": Method(
        "FK steering",
        lambda task, shape: FKSteering(
            task.diffusion, task.reward, num_particles=shape.size, alpha=shape.alpha
        ),
        "num_particles",
        alpha="positive",
    ),
    "classifier_guidance": Method("Classifier guidance", _classifier, alpha="positive"),
    "dps": Method(
        "DPS",
        lambda task, shape: DPS(task.diffusion, task.reward, shape.alpha),
        alpha="positive",
    ),
    "tds": Method(
        "TDS",
        lambda task, shape: TDS(task.diffusion, task.reward, shape.size, shape.alpha),
        "num_particles",
        alpha="positive",
    ),
    "das": Method(
        "DAS",
        lambda task, shape: DAS(
            task.diffusion, task.reward, shape.size, shape.alpha, num_steps=shape.num_steps
        ),
        "num_particles",
        alpha="positive",
    ),
}
"""In the order of every table."""
