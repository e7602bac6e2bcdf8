"""Noise levels of a scheduler at its current step, and what they make of the model's output.

A timestep is never interpreted: the scheduler's own tables give x = alpha x0 + sigma noise before
and after the step. Three kinds of table exist: alphas_cumprod by timestep (DDPM, DDIM, LCM, TCD),
sigmas at alpha = 1 (Euler, Heun and their kin), and sigmas that stand for a pair (the DPM-Solver
family, and flow matching with alpha = 1 - sigma).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from fastguide.diffusion.universal import Kernel, Level, ancestral_deviation, universal_step
from fastguide.errors import ArgumentError

Tensor = torch.Tensor

UNCLIPPED = ("CogVideoX", "TCD")
"""Schedulers, by the start of their name, that take clip_sample and leave it at that."""


@dataclass(frozen=True)
class Place:
    """Where a scheduler stands.

    Attributes:
        position: of the step in `scheduler.timesteps`.   last: it is the last one.
        before, after: noise levels, or None for a scheduler whose tables are not known.
        flow: a straight path from noise to samples, with a velocity as the model's output.
    """

    position: int
    last: bool
    before: Level | None
    after: Level | None
    flow: bool = False


def place(scheduler: Any, timestep: Any) -> Place:
    """Where the scheduler stands before it steps at `timestep`."""
    position = _position(scheduler, timestep)
    last = position == len(scheduler.timesteps) - 1
    time = float(timestep)
    if getattr(scheduler, "sigmas", None) is None:
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is None:
            return Place(position, last, None, None)
        before = _preserving(time, float(table[int(timestep)]))
        if last:
            end = getattr(scheduler, "final_alpha_cumprod", 1.0)
            return Place(position, last, before, _preserving(-1.0, float(end)))
        following = scheduler.timesteps[position + 1]
        after = _preserving(float(following), float(table[int(following)]))
        return Place(position, last, before, after)
    sigmas = scheduler.sigmas
    following = time if last else float(scheduler.timesteps[position + 1])
    here, there = float(sigmas[position]), float(sigmas[position + 1])
    flow = _flows(scheduler)
    if flow:
        return Place(
            position, last, Level(time, 1 - here, here), Level(following, 1 - there, there), True
        )
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t") and not hasattr(
        scheduler, "precondition_outputs"
    ):
        before, after = (_scaled(t, s) for t, s in ((time, here), (following, there)))
        return Place(position, last, before, after)
    if hasattr(scheduler, "alphas_cumprod") or hasattr(scheduler, "precondition_outputs"):
        return Place(position, last, Level(time, 1.0, here), Level(following, 1.0, there))
    return Place(position, last, None, None)


def predict_clean(scheduler: Any, at: Place, output: Tensor, x: Tensor) -> Tensor:
    """x0_hat [R, ...] float32 of states x and the model's (guided) outputs, [R, ...] each.

    Raises:
        ArgumentError: the scheduler's tables or its prediction_type are not known.
    """
    before = at.before
    if before is None:
        raise ArgumentError(
            f"scheduler {type(scheduler).__name__} has no known noise levels, so the clean sample "
            "cannot be predicted; use one of the DDPM, DDIM, Euler, DPM-Solver, LCM, TCD or flow "
            "matching schedulers, or pass value=callable(x, t)"
        )
    config = scheduler.config
    channels = x.shape[1] if x.dim() > 1 else 0
    learned = str(getattr(config, "variance_type", None)).startswith("learned")
    if learned and output.shape[1] == 2 * channels:
        output = output[:, :channels]
    if hasattr(scheduler, "precondition_outputs"):
        x0: Tensor = scheduler.precondition_outputs(x, output, torch.tensor(before.sigma))
        return x0
    kind = getattr(config, "prediction_type", "epsilon")
    if at.flow:
        return x - before.sigma * output
    if kind == "sample":
        x0 = output
    elif kind == "epsilon":
        x0 = (x - before.sigma * output) / before.alpha
    elif kind == "v_prediction":
        # the velocity is that of the state scaled to unit variance
        norm = math.hypot(before.alpha, before.sigma)
        x0 = (before.alpha * x / norm - before.sigma * output) / norm
    else:
        raise ArgumentError(
            f"scheduler {type(scheduler).__name__} has prediction_type={kind!r}; known are "
            "'epsilon', 'sample', 'v_prediction' and flow matching; pass value=callable(x, t)"
        )
    if type(scheduler).__name__.startswith(UNCLIPPED):
        return x0
    if getattr(config, "thresholding", False):
        x0 = scheduler._threshold_sample(x0)
    elif getattr(config, "clip_sample", False):
        x0 = x0.clamp(-config.clip_sample_range, config.clip_sample_range)
    return x0


def takes_eta(scheduler: Any) -> bool:
    """Whether its grid has one level for every model call, so that `kernel` can serve."""
    times = torch.as_tensor(scheduler.timesteps)
    return getattr(scheduler, "order", 1) == 1 and len(times.unique()) == len(times)


def kernel(scheduler: Any, at: Place, eta: float) -> Kernel:
    """The universal step of the scheduler's grid with noise eta: x' = a x + b x0_hat + s z.

    s = eta times the ancestral deviation; on a flow sigma' sin(eta pi / 2).
    """
    if at.before is None or at.after is None or getattr(scheduler, "order", 1) != 1:
        raise ArgumentError(
            f"eta={eta} cannot be given to scheduler {type(scheduler).__name__}: it has no known "
            "noise levels or takes two model calls a step; replace it, for example "
            "pipe.scheduler = fastguide.integrations.diffusers.stochastic_scheduler(pipe)"
        )
    if at.before.sigma == at.after.sigma:
        raise ArgumentError(
            f"eta={eta} cannot be given to scheduler {type(scheduler).__name__}: it visits one "
            "noise level twice; use DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    if at.flow:
        s = at.after.sigma * math.sin(eta * math.pi / 2)
    else:
        s = eta * ancestral_deviation(at.before, at.after)
    return universal_step(at.before, at.after, s)


def _position(scheduler: Any, timestep: Any) -> int:
    if hasattr(scheduler, "step_index"):
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        return int(scheduler.step_index)
    found = (torch.as_tensor(scheduler.timesteps).cpu() == float(timestep)).nonzero()
    if len(found) != 1:
        raise ArgumentError(
            f"scheduler {type(scheduler).__name__} steps at timestep {float(timestep):g}, which "
            f"stands {len(found)} times among its timesteps; use a scheduler that visits each "
            "once, such as DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    return int(found[0, 0])


def _flows(scheduler: Any) -> bool:
    config = scheduler.config
    if getattr(config, "use_flow_sigmas", False):
        return True
    if hasattr(scheduler, "alphas_cumprod") or hasattr(scheduler, "precondition_outputs"):
        return False
    # flow-matching schedulers have no betas, and their levels are shares of noise
    return float(scheduler.sigmas.max()) <= 1.0


def _preserving(time: float, signal: float) -> Level:
    return Level(time, math.sqrt(signal), math.sqrt(max(1 - signal, 0.0)))


def _scaled(time: float, sigma: float) -> Level:
    alpha = 1 / math.sqrt(1 + sigma**2)
    return Level(time, alpha, sigma * alpha)
