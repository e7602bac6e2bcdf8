"""Every method that a comparison can run, with the size that decides its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from fastguide.diffusion import Diffusion
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
    """What a method is built from; a task is one."""

    @property
    def diffusion(self) -> Diffusion:
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
        about: what it does, in a sentence for people.
        alpha: "none"; "any": 0 takes the best; "positive": a run at 0 is left out.
    """

    label: str
    build: Callable[[Guided, Shape], Sampler]
    size: str = ""
    widths: tuple[int, ...] = (1,)
    alpha: Literal["none", "any", "positive"] = "none"
    about: str = ""

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
        about="SVDD on several chains side by side; at each step the worst few become copies of "
        "good ones.",
    ),
    "beam_search": Method(
        "Beam search",
        lambda task, shape: BeamSearch(
            task.diffusion, task.reward, num_particles=shape.size, num_candidates=shape.width
        ),
        "num_particles",
        WIDTHS,
        about="The best few of all continuations of the best few so far are kept.",
    ),
    "scheduled_search": Method(
        "Scheduled search",
        lambda task, shape: ScheduledSearch(
            task.diffusion, task.reward, num_candidates=shape.size, num_steps=shape.num_steps
        ),
        "num_candidates",
        about="A search for the best continuation, with few candidates early and many late.",
    ),
    "blockwise": Method(
        "Blockwise best of N",
        lambda task, shape: BlockwiseBestOfN(
            task.diffusion, task.reward, num_candidates=shape.size, alpha=shape.alpha
        ),
        "num_candidates",
        alpha="any",
        about="Plain chains side by side for a block of steps; then all go on from one of them.",
    ),
    "smc": Method(
        "SMC",
        lambda task, shape: SMC(
            task.diffusion, task.reward, num_particles=shape.size, alpha=shape.alpha
        ),
        "num_particles",
        alpha="positive",
        about="Sequential Monte Carlo: particles move plainly, are weighed by what they gain, "
        "and the heavy ones are copied.",
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
        about="SVDD within each particle, with weights across particles that make up for its bias.",
    ),
    "fk_steering": Method(
        "FK steering",
        lambda task, shape: FKSteering(
            task.diffusion, task.reward, num_particles=shape.size, alpha=shape.alpha
        ),
        "num_particles",
        alpha="positive",
        about="SMC whose particles are weighed every few steps only.",
    ),
    "classifier_guidance": Method(
        "Classifier guidance",
        _classifier,
        alpha="positive",
        about="Plain chains pulled along the gradient of a value of the unfinished sequence; "
        "here the reward with all letters in equal parts at hidden sites, which asks "
        "nothing of the denoiser.",
    ),
    "dps": Method(
        "DPS",
        lambda task, shape: DPS(task.diffusion, task.reward, shape.alpha),
        alpha="positive",
        about="Plain chains pulled along the gradient of the predicted reward through the "
        "denoiser.",
    ),
    "tds": Method(
        "TDS",
        lambda task, shape: TDS(task.diffusion, task.reward, shape.size, shape.alpha),
        "num_particles",
        alpha="positive",
        about="SMC whose particles are pulled along that gradient, with weights that correct it.",
    ),
    "das": Method(
        "DAS",
        lambda task, shape: DAS(
            task.diffusion, task.reward, shape.size, shape.alpha, num_steps=shape.num_steps
        ),
        "num_particles",
        alpha="positive",
        about="TDS with a reward that is turned up from nothing to all along the steps.",
    ),
}
"""In the order of every table."""
