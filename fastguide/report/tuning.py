"""Fine-tuning a task's model, and its plain samples against guidance while sampling."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastguide.errors import ArgumentError
from fastguide.finetune import (
    PPO,
    ForwardProcess,
    History,
    Method,
    PathConsistency,
    RewardBackprop,
    RewardWeightedMLE,
    ValueWeighted,
)
from fastguide.finetune.laws import laws_of
from fastguide.finetune.rollout import roll
from fastguide.report.compare import assess, compare
from fastguide.report.designs import Comparison, Designs, Settings, Task
from fastguide.report.metrics import Array, mean_error
from fastguide.rng import chain_ids
from fastguide.samplers import Unguided

TUNERS: dict[str, type[Method]] = {
    "backprop": RewardBackprop,
    "ppo": PPO,
    "rwmle": RewardWeightedMLE,
    "value_weighted": ValueWeighted,
    "pcl": PathConsistency,
    "nft": ForwardProcess,
}
"""The methods of `fastguide.finetune` by short name."""

LINES = 20
"""Most lines that are said of a training."""

_AVERAGE = {"ema": 0.95}


@dataclass(frozen=True)
class TuningSettings:
    """What is trained, and how its samples are compared.

    Attributes:
        method: name out of TUNERS.   alpha: reward units per nat, of training and of SVDD.
        num_iterations, batch_size, learning_rate, adapter, seed: see `fastguide.finetune.Method`.
        num_steps: T of the paths that are trained on.   options: further ones of the method.
        max_minutes: of this training.   kl_budget: nats per path at num_steps; see `Method`.
        num_samples: designs per method of the comparison.   sample_steps: T of all of them.
        num_candidates: of best of N and of SVDD.
        num_reference, num_masks: see `Settings`.

    Raises:
        ArgumentError: an unknown method, a limit out of range, or one that the method cannot keep.
    """

    method: str
    alpha: float
    num_iterations: int
    batch_size: int
    num_steps: int
    learning_rate: float
    adapter: str = "full"
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    max_minutes: float | None = None
    kl_budget: float | None = None
    num_samples: int = 64
    sample_steps: int = 128
    num_candidates: int = 10
    num_reference: int = 1000
    num_masks: int = 64

    def __post_init__(self) -> None:
        if self.method not in TUNERS:
            raise ArgumentError(f"method must be one of {', '.join(TUNERS)}, got {self.method!r}")
        for name in ("max_minutes", "kl_budget"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ArgumentError(f"{name} must be positive, got {limit}")
        if self.kl_budget is not None and not TUNERS[self.method].knows_kl:
            raise ArgumentError(
                f"kl_budget: {self.method} does not know its divergence while it trains; leave it "
                "away, or use backprop, ppo, value_weighted or pcl"
            )

    def rivals(self) -> Settings:
        """The comparison with the pre-trained model, plain and guided."""
        return Settings(
            methods=("unguided", "best_of_n", "svdd"),
            num_samples=self.num_samples,
            num_candidates=self.num_candidates,
            alphas=(self.alpha,),
            num_steps=self.sample_steps,
            seed=self.seed,
            num_reference=max(self.num_reference, self.num_samples),
            num_masks=self.num_masks,
        )


TUNINGS = {
    "backprop": TuningSettings("backprop", 0.015, 100, 64, 8, 3e-4, options={"ema": 0.98}),
    "ppo": TuningSettings("ppo", 0.015, 20, 256, 8, 5e-4, options={"minibatches": 4, **_AVERAGE}),
    "rwmle": TuningSettings(
        "rwmle", 0.05, 20, 256, 8, 5e-4, options={"rounds": 20, "minibatches": 4, **_AVERAGE}
    ),
    "value_weighted": TuningSettings("value_weighted", 0.05, 20, 16, 16, 3e-4, options=_AVERAGE),
    "pcl": TuningSettings("pcl", 0.05, 20, 128, 8, 3e-4, options=_AVERAGE),
    "nft": TuningSettings(
        "nft", 0.015, 24, 256, 8, 3e-4, options={"rounds": 12, "minibatches": 4, **_AVERAGE}
    ),
}
"""The defaults of each method; benches/tune_utr.py chose each alpha on task utr, by its guide."""


@dataclass
class Tuning:
    """Everything that a report on fine-tuning shows.

    Attributes:
        settings: what was run.   history: of the training.
        comparison: the pre-trained model, plain and guided, and last the tuned one's samples.
        divergence: [N] float64 KL of the tuned model to the pre-trained one along its own paths,
            nats, summed over sites and steps; its mean is that of the whole-path KL.
        seconds: "training" of the whole history, "training_cpu" of all threads of one process.
    """

    settings: TuningSettings
    history: History
    comparison: Comparison
    divergence: Array
    seconds: dict[str, float]

    @property
    def tuned(self) -> Designs:
        """Plain samples of the tuned model."""
        return self.comparison.designs[-1]

    @property
    def guided(self) -> Designs:
        """SVDD on the pre-trained model."""
        return next(one for one in self.comparison.designs if one.key.startswith("svdd_alpha"))

    def figures(self) -> dict[str, Any]:
        """What the comparison does not have: divergence, training, and when it has paid off."""
        each = {
            key: made.result.cost.seconds["total"] / len(made.sequences)
            for key, made in (("tuned", self.tuned), ("guided", self.guided))
        }
        saved = each["guided"] - each["tuned"]
        return {
            "kl_nats_per_path": float(self.divergence.mean()),
            "kl_nats_per_path_error": mean_error(self.divergence),
            "iterations": len(self.history.rows),
            "stopped": self.history.stopped,
            "training_seconds": self.seconds["training"],
            "training_cpu_seconds": self.seconds["training_cpu"],
            "seconds_per_design": each["tuned"],
            "seconds_per_design_guided": each["guided"],
            "designs_to_break_even": (
                math.ceil(self.seconds["training"] / saved) if saved > 0 else math.inf
            ),
        }


def tuner(task: Task, settings: TuningSettings) -> Method:
    """The method of `settings`, ready to train the task's model on its guiding reward.

    The judging oracle is watched along the way and changes nothing.
    """
    return TUNERS[settings.method](
        task.diffusion,
        task.reward,
        alpha=settings.alpha,
        adapter=settings.adapter,
        learning_rate=settings.learning_rate,
        kl_budget=settings.kl_budget,
        held_out=task.oracle,
        # longer than the training, so that the judge never decides anything
        patience=max(1, settings.num_iterations),
        **settings.options,
    )


def tune(
    task: Task,
    settings: TuningSettings,
    *,
    checkpoint: str | Path | None = None,
    save: str | Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Fine-tune the model of `task` and compare its plain samples with guidance.

    Args:
        checkpoint: folder of the training's state, from which the same settings go on.
        save: file for the tuned weights, written as soon as they are there.
        progress: show bars.   say: is told what starts, and how training goes.
    """
    wall, processor = time.perf_counter(), time.process_time()
    rivals = settings.rivals()
    method = tuner(task, settings)
    say(f"Training: {settings.method}, {settings.num_iterations} iterations")
    every = math.ceil(settings.num_iterations / LINES)

    def told(row: dict[str, float]) -> None:
        if (row["iteration"] + 1) % every == 0:
            say("  " + ", ".join(f"{name} {row[name]:.4g}" for name in _TOLD if name in row))

    history = method.train(
        settings.num_iterations,
        settings.batch_size,
        num_steps=settings.num_steps,
        seed=settings.seed,
        checkpoint=checkpoint,
        max_seconds=None if settings.max_minutes is None else 60 * settings.max_minutes,
        callback=None if progress else told,
        progress=progress,
    )
    seconds = {
        "training": history.rows[-1]["seconds"],
        "training_cpu": history.rows[-1]["cpu_seconds"],
    }
    if save is not None:
        method.save(save)
    tuned = method.diffusion
    say("Tuned model, plain samples")
    result = Unguided(tuned, task.reward).sample(
        settings.num_samples,
        num_steps=settings.sample_steps,
        seed=settings.seed,
        progress=progress,
    )
    made = assess(
        task,
        "tuned",
        f"Tuned by {settings.method}",
        result,
        num_masks=settings.num_masks,
        progress=progress,
    )
    divergence = path_divergence(tuned, task.diffusion, settings)
    comparison = compare(task, rivals, progress=progress, say=say)
    comparison = replace(
        comparison,
        designs=[*comparison.designs, made],
        seconds={
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - processor,
        },
    )
    return Tuning(settings, history, comparison, divergence, seconds)


def path_divergence(tuned: Any, natural: Any, settings: TuningSettings) -> Array:
    """[N] float64 nats: the sum over each path's steps of the exact KL of the step.

    The paths are those of the tuned model's samples, one for each of num_samples.
    """
    paths = roll(
        laws_of(tuned, settings.sample_steps),
        laws_of(natural, settings.sample_steps),
        settings.seed,
        chain_ids(settings.num_samples, 0, natural.device),
    )
    assert paths.kl is not None
    kl: Array = paths.kl.sum(dim=1).cpu().numpy()
    return kl


_TOLD = ("iteration", "reward", "held_out", "kl", "ess", "clip_fraction", "seconds")
