"""A few large steps from a state to where its clean prediction is worth more.

Values look ahead along these paths; samplers never take them.
"""

from __future__ import annotations

from typing import Protocol

import torch

from fastguide import ops
from fastguide.diffusion.base import Batch, Diffusion, Outputs, Step
from fastguide.diffusion.flow import FlowMatching
from fastguide.diffusion.gaussian import GaussianDiffusion
from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.diffusion.karras import KarrasDiffusion
from fastguide.diffusion.masked import MaskedDiffusion
from fastguide.diffusion.schedules import invert
from fastguide.diffusion.universal import Level, spaced, universal_step
from fastguide.errors import ArgumentError
from fastguide.rng import Purpose

Tensor = torch.Tensor

# 2**64 over the golden ratio, as a signed integer: consecutive multiples differ in every bit
_GOLDEN = -7046029254386353131


class Paths(Protocol):
    """S paths from each of R states, path r * S + s, in K steps.

    Attributes:
        times: K + 1 floats: the times of the K steps, and that of the prediction after them.
    """

    times: list[float]

    def reads(self, step: int) -> Tensor:
        """[R * S] bool: paths whose denoiser output is read at this step (K: at the prediction)."""

    def move(self, step: int, batch: Batch, outputs: Outputs) -> Batch:
        """The states after this step; after the K-th, the prediction drawn, if it can be."""


def lookahead_paths(
    diffusion: Diffusion, batch: Batch, time: float, num_steps: int, num_samples: int, seed: int
) -> Paths:
    """Paths of at most `num_steps` steps from the states `batch`, which stand at `time`.

    Raises:
        ArgumentError: the diffusion is of no kind that has them, or has one path a state only.
    """
    if isinstance(diffusion, MaskedDiffusion):
        return _MaskedPaths(diffusion, batch, time, num_steps, num_samples, seed)
    if isinstance(diffusion, GaussianChain):
        return _GaussianPaths(diffusion, batch, time, num_steps, num_samples)
    raise ArgumentError(
        f"Lookahead knows the steps of masked and Gaussian diffusions, not of "
        f"{type(diffusion).__name__}; use PosteriorMean, or a callable value(x, t)"
    )


class _MaskedPaths:
    """Each masked site is revealed at one of the K steps or by the prediction, with equal chances.

    So the share of the masks that is left goes down in equal parts, at every time and whatever the
    schedule; for K to infinity a path is one of the continuous-time chain.
    """

    def __init__(
        self,
        diffusion: MaskedDiffusion,
        batch: Batch,
        time: float,
        num_steps: int,
        num_samples: int,
        seed: int,
    ) -> None:
        assert batch.keys is not None
        self._diffusion = diffusion
        self._mask = diffusion.mask_token
        self._seed = seed
        self.times = [time] * (num_steps + 1)
        if diffusion.time_conditioned:
            self.times = _times_of_shares(diffusion, time, num_steps + 1)
        masked = batch.x == self._mask
        # the step of each site is a draw from num_steps + 1 equally likely tokens
        step = ops.masked_posterior(
            batch.x.new_zeros((1, batch.x.shape[1], num_steps + 1), dtype=torch.float32),
            torch.where(masked, -1, 0),
            mask_token=-1,
            index=torch.zeros_like(batch.keys[:, 0]),
            num_samples=num_samples,
            keys=batch.keys,
            seed=seed,
            purpose=Purpose.LOOKAHEAD,
        )
        self._step = torch.where(masked[:, None], step, -1).flatten(0, 1)
        self._tag = torch.arange(num_samples, device=step.device).repeat(len(batch)) * _GOLDEN

    def reads(self, step: int) -> Tensor:
        return (self._step == step).any(dim=-1)

    def move(self, step: int, batch: Batch, outputs: Outputs) -> Batch:
        assert batch.keys is not None
        revealed = self._step == step
        # sites of later steps stand in as known, so that nothing is read or drawn for them
        stand_in = 0 if self._mask != 0 else 1
        known = torch.where(batch.x == self._mask, stand_in, batch.x)
        # equal states of two paths of one origin draw anew; a state is left only once by a path
        keys = batch.keys ^ self._tag[:, None]
        tokens = self._diffusion.predict_samples(
            Batch(torch.where(revealed, self._mask, known), keys), outputs, 1, self._seed
        )
        x = torch.where(revealed, tokens[:, 0], batch.x)
        return Batch(x, ops.masked_keys(x))


def _times_of_shares(diffusion: MaskedDiffusion, time: float, parts: int) -> list[float]:
    """Times from `time` on at which the share of masks has gone down by 0, 1, ... of `parts`."""
    now = diffusion.schedule(torch.tensor([time], dtype=torch.float64))
    left = torch.arange(parts - 1, 0, -1, dtype=torch.float64) / parts
    later: list[float] = invert(diffusion.schedule, now * left).tolist()
    return [time, *later]


class _GaussianPaths:
    """Noise-free steps (DDIM with eta = 0, Euler on the probability-flow ODE), one path a state.

    Tables of noise levels are thinned out evenly, like a run of fewer steps; a flow's time goes
    down in equal parts. Where fewer levels are left than steps are asked for, there are fewer.
    """

    def __init__(
        self, chain: GaussianChain, batch: Batch, time: float, num_steps: int, num_samples: int
    ) -> None:
        if num_samples > 1:
            raise ArgumentError(
                f"num_samples must be 1 for {type(chain).__name__}, whose lookahead steps add no "
                f"noise, got {num_samples}"
            )
        self._chain = chain
        self._all = torch.ones(len(batch), dtype=torch.bool, device=batch.x.device)
        self._levels = _levels_from(chain, time, num_steps + 1)
        self.times = [level.time for level in self._levels]

    def reads(self, step: int) -> Tensor:
        return self._all

    def move(self, step: int, batch: Batch, outputs: Outputs) -> Batch:
        if step == len(self._levels) - 1:
            raise ArgumentError(
                f"x0='sample' needs a law to draw from, but {type(self._chain).__name__} predicts "
                "the mean of the clean sample only; use x0='mode'"
            )
        before, after = self._levels[step : step + 2]
        kernel = universal_step(before, after, 0.0)
        moved, _ = self._chain.propose(
            batch,
            outputs,
            Step(step, before.time, after.time, clean=False, varies=False, params=kernel),
            seed=0,
            chains=torch.zeros(len(batch), dtype=torch.int64, device=batch.x.device),
            num_candidates=1,
            first_candidate=torch.zeros(len(batch), dtype=torch.int64, device=batch.x.device),
        )
        return moved


def _levels_from(chain: GaussianChain, time: float, most: int) -> list[Level]:
    """At most `most` noise levels from `time` down, evenly, without the clean one."""
    if isinstance(chain, FlowMatching):
        times = [time * (most - i) / most for i in range(most)]
        return [Level(t, 1 - t, t) for t in times]
    if isinstance(chain, GaussianDiffusion):
        size = len(chain.alphas_cumprod)
    elif isinstance(chain, KarrasDiffusion):
        size = len(chain.sigmas)
    else:
        raise ArgumentError(
            f"Lookahead does not know the noise levels of {type(chain).__name__}; use PosteriorMean"
        )
    left = [level for level in reversed(chain.levels(size)[:-1]) if level.time <= time]
    return [left[i] for i in spaced(len(left), min(most, len(left)), "trailing", "levels")]
