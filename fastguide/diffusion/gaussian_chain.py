"""What the Gaussian chains share: the engine's view, and exact kernel log-probabilities.

The denoiser output that the engine keeps and carries is the prediction x0_hat of the clean sample,
whatever the model returns: values read it as it is, and every step is x' = a x + b x0_hat + s z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion.base import Batch, Outputs, Step
from fastguide.diffusion.conditioning import call_denoiser, check_guidance, device_of
from fastguide.diffusion.learned import LearnedNoise, LearnedStart, fingerprint, multiplied
from fastguide.diffusion.universal import Kernel, Level
from fastguide.errors import ArgumentError, DtypeError, GradientError, ShapeError
from fastguide.rng import Purpose

Tensor = torch.Tensor

ROUNDING = 1e-5
"""Relative distance at which a state counts as the mean of a step without noise."""


class GaussianChain:
    """Base of the chains of Gaussian steps from noise to clean samples.

    A subclass says which noise levels are visited, what a step between two of them is, and how the
    model's output becomes x0_hat. States are float32 [R, *shape] on `device`; two are never equal.
    Fine-tuning may set `learned_start` and `learned_noise`.
    """

    head = None
    time_conditioned = True
    prior_varies = True
    distinct = True
    _name = "denoiser"
    _time_dtype = torch.float32

    def __init__(
        self,
        denoiser: Callable[..., Any],
        shape: Sequence[int],
        *,
        prior_deviation: float,
        null_cond: dict[str, Tensor] | None,
        guidance_scale: float,
        device: torch.device | str | None,
    ) -> None:
        if not callable(denoiser):
            raise DtypeError(f"{self._name} must be callable, got {type(denoiser).__name__}")
        if not isinstance(shape, Sequence) or not shape or any(size < 1 for size in shape):
            raise ArgumentError(
                "shape must hold the positive sizes of one sample, such as (3, 64, 64) or (1,), "
                f"got {shape!r}"
            )
        check_guidance(null_cond, guidance_scale)
        self.denoiser = denoiser
        self.shape = tuple(shape)
        self.prior_deviation = prior_deviation
        self.null_cond = null_cond
        self.guidance_scale = float(guidance_scale)
        self.device = device_of(denoiser) if device is None else torch.device(device)
        self.rows_per_state = 1 if guidance_scale == 1.0 else 2
        self.output_shape: tuple[int, ...] = self.shape
        self.learned_start: LearnedStart | None = None
        self.learned_noise: LearnedNoise | None = None
        self.row_bytes = 8 * math.prod(self.shape)

    # -- what a subclass says ----------------------------------------------------------------

    def levels(self, num_steps: int) -> list[Level]:
        """The num_steps + 1 noise levels of a run, from noise to clean."""
        raise NotImplementedError

    def _kernel(self, before: Level, after: Level) -> Kernel:
        raise NotImplementedError

    def _clean(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """x0_hat of states x and model outputs [B, *shape] at times t [B]."""
        raise NotImplementedError

    # -- the engine's view -------------------------------------------------------------------

    def steps(self, num_steps: int) -> list[Step]:
        """The transitions of a run, with params (a, b, s); the last one ends at clean samples."""
        steps, factors = [], [1.0] * num_steps
        if self.learned_noise is not None:
            factors = self.learned_noise.numbers(num_steps)
        for i, (before, after) in enumerate(pairwise(self.levels(num_steps))):
            a, b, s = self._kernel(before, after)
            kernel = Kernel(a, b, s * factors[i])
            last = i == num_steps - 1
            steps.append(Step(i, before.time, after.time, last, kernel.s > 0, kernel))
        return steps

    def kernel(self, step: Step) -> Kernel:
        """The numbers of a step: x' = a x + b x0_hat + s z, with s the standard deviation."""
        return Kernel(*step.params)

    def _triangle(self, step: Step) -> Tensor | None:
        """The learned triangle [D, D] on the noise of a step, or None."""
        return None if self.learned_noise is None else self.learned_noise.triangle(step.index)

    def start(
        self, chains: Tensor, prompt: Tensor | None, seed: int, candidates: Tensor | None = None
    ) -> Batch:
        """Prior draws of `chains` [R] and candidate numbers `candidates` [R] (None: zeros)."""
        if prompt is not None:
            raise ArgumentError(
                f"prompt fixes tokens of a masked diffusion; {type(self).__name__} has none, so "
                "leave it away and condition the denoiser with cond"
            )
        chains = chains.to(self.device)
        candidates = None if candidates is None else candidates.to(self.device)
        if self.learned_start is not None:
            return Batch(self.learned_start(chains, seed, candidates), None)
        return Batch(self._noise(chains, seed, candidates) * self.prior_deviation, None)

    def _noise(self, chains: Tensor, seed: int, candidates: Tensor | None = None) -> Tensor:
        size, purpose = math.prod(self.shape), Purpose.PRIOR
        noise = ops.philox_normal(
            seed, chains, 0, purpose, num_elements=size, first_candidate=candidates
        )
        return noise.view(-1, *self.shape)

    def batch(self, states: Tensor) -> Batch:
        """States [R, *shape] to go on from."""
        return Batch(self._check_states(states, "states").float(), None)

    def renoise(self, x0: Tensor, level: Level, seed: int, chains: Tensor) -> Tensor:
        """Clean samples x0 [N, *shape] at a noise level: alpha x0 + sigma z, keyed by chain."""
        return level.alpha * x0 + level.sigma * self._noise(chains.to(self.device), seed)

    def denoise(self, x: Tensor, time: float, cond: dict[str, Tensor]) -> Tensor:
        """`predict` with every row at the same time."""
        return self.predict(x, torch.full((len(x),), time, device=x.device), cond)

    def predict(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        """x0_hat [B, *shape] of states x [B, *shape] at times t [B], guided if there is a scale.

        Of the dtype of x, float32 or float64; differentiable in x and in the denoiser.

        Raises:
            ShapeError, DtypeError: the denoiser returned something else; says what was due.
        """
        output = self._call(x, t, cond)
        if self.rows_per_state == 2:
            given, free = output.chunk(2)
            output = free + self.guidance_scale * (given - free)
        return self._clean(x, output, t)

    def predict_pair(self, x: Tensor, time: float, cond: dict[str, Tensor]) -> Tensor:
        """[B, 2, *shape]: x0_hat as guided, and the conditional one minus the unconditional."""
        t = torch.full((len(x),), time, device=x.device)
        given, free = (self._clean(x, half, t) for half in self._call(x, t, cond).chunk(2))
        return torch.stack([free + self.guidance_scale * (given - free), given - free], dim=1)

    def _call(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None) -> Tensor:
        """What the denoiser returns; of a guided pair the conditional rows come first."""
        null_cond = self.null_cond if self.rows_per_state == 2 else None
        output = call_denoiser(self.denoiser, x, t.to(self._time_dtype), cond, null_cond)
        return self._check_output(output, len(x) * self.rows_per_state).to(x.dtype)

    def needs_output(self, x: Tensor) -> Tensor:
        """[R] bool: every row's output is read."""
        return torch.ones(len(x), dtype=torch.bool, device=x.device)

    def invalid_outputs(self, x: Tensor, outputs: Tensor) -> Tensor:
        """[B] bool: rows whose prediction is not finite."""
        return ~outputs.flatten(1).isfinite().all(dim=1)

    def propose(
        self,
        batch: Batch,
        outputs: Outputs,
        step: Step,
        *,
        seed: int,
        chains: Tensor,
        num_candidates: int,
        first_candidate: Tensor,
    ) -> tuple[Batch, Tensor]:
        """K successors of each row by `ops.gaussian_propose`; see `Diffusion.propose`."""
        proposal, changed, _ = self.propose_shifted(
            batch,
            outputs,
            step,
            shift=None,
            seed=seed,
            chains=chains,
            num_candidates=num_candidates,
            first_candidate=first_candidate,
        )
        return proposal, changed

    def propose_shifted(
        self,
        batch: Batch,
        outputs: Outputs,
        step: Step,
        *,
        shift: Tensor | None,
        seed: int,
        chains: Tensor,
        num_candidates: int,
        first_candidate: Tensor,
        weigh: bool = True,
    ) -> tuple[Batch, Tensor, Tensor | None]:
        """K successors of each row from the kernel with `shift` [R, *shape] added to its mean.

        Returns:
            the R*K rows; changed [R, K], all ones; log p - log q [R, K] float64 of each candidate
            under the plain kernel p and the shifted one q, None without a shift.

        Raises:
            ArgumentError: a shift where the step has no noise, or where its covariance is learned.
        """
        a, b, s = step.params
        triangle = self._triangle(step)
        if triangle is not None and shift is not None:
            raise ArgumentError(
                "gradient guidance needs independent noise, and this chain's covariances were "
                "learned; use SVDD, SMC or FKSteering, or train with learn_scale=True"
            )
        candidates, log_ratio = ops.gaussian_propose(
            batch.x,
            outputs.buffer,
            a=a,
            b=b,
            s=s,
            seed=seed,
            chains=chains,
            step=step.index,
            num_candidates=num_candidates,
            index=outputs.slots,
            first_candidate=first_candidate,
            shift=shift,
        )
        changed = torch.ones(candidates.shape[:2], dtype=torch.int32, device=candidates.device)
        if triangle is not None:
            mean = a * batch.x + b * outputs.buffer.index_select(0, outputs.slots)
            noise = (candidates - mean[:, None]).flatten(0, 1)
            candidates = mean[:, None] + multiplied(noise, triangle).view(candidates.shape)
        rows = Batch(candidates.flatten(0, 1), None)
        return rows, changed, None if shift is None else log_ratio

    def predict_mode(self, batch: Batch, outputs: Outputs) -> Tensor:
        """The predicted clean sample x0_hat of each row, [R, *shape]."""
        return outputs.buffer.index_select(0, outputs.slots)

    predict_soft = predict_mode

    def predict_samples(
        self, batch: Batch, outputs: Outputs, num_samples: int, seed: int
    ) -> Tensor:
        """Not known: a denoiser predicts the mean of the clean sample, not its law."""
        raise ArgumentError(
            f"{type(self).__name__} predicts the mean of the clean sample only, so there is "
            "nothing to draw from; use value='posterior_mean'"
        )

    # -- relaxed states: these are smooth already ------------------------------------------------

    def relax(self, x: Tensor) -> Tensor:
        """A copy of the states."""
        return x.clone()

    def predict_relaxed(
        self, x: Tensor, t: Tensor, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """x0_hat [B, *shape], as the output and as the prediction."""
        x0 = self.predict(x, t, cond)
        return x0, x0

    def relaxed_reward(self, reward: Any) -> Callable[[Tensor], Tensor]:
        """The reward itself."""
        return lambda x0: self._check_scores(reward(x0), "reward", len(x0))

    def relaxed_value(self, value: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """The value itself."""
        return lambda x, t: self._check_scores(value(x, t), "value", len(x))

    def shift_along(self, gradient: Tensor, step: Step, scale: Tensor | float) -> Tensor:
        """Shift [R, *shape] of the mean: variance of the step times scale times gradient.

        scale: 1 / alpha times the guidance, one number or [R].
        """
        scale = torch.as_tensor(scale, device=gradient.device).view(-1, *[1] * len(self.shape))
        return (gradient * (scale * self.kernel(step).s ** 2)).to(gradient.dtype)

    def _check_scores(self, scores: Any, name: str, rows: int) -> Tensor:
        if not isinstance(scores, torch.Tensor):
            raise GradientError(
                f"{name} must return a tensor that torch can differentiate, got "
                f"{type(scores).__name__}; SVDD, SMC, NestedSMC and FKSteering need no gradient"
            )
        if scores.shape != (rows,):
            raise ShapeError(
                f"{name} must return one number per row, [{rows}], got {list(scores.shape)}"
            )
        return scores

    def settings(self) -> dict[str, Any]:
        """What besides the denoiser determines the chain, for records and checkpoints."""
        found = {
            "kind": type(self).__name__,
            "shape": list(self.shape),
            "guidance_scale": self.guidance_scale,
        }
        if self.learned_noise is not None:
            found["learned_noise"] = fingerprint(self.learned_noise.factors)
        if self.learned_start is not None:
            found["learned_start"] = fingerprint(self.learned_start.numbers())
        return found

    # -- likelihood --------------------------------------------------------------------------

    def log_prob(
        self,
        x_t: Tensor,
        x_s: Tensor,
        step: int,
        num_steps: int,
        *,
        cond: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """log p(x_s | x_t) of transition `step` of `num_steps`, [B, *shape] x 2 -> [B] float64.

        In nats, summed over the dimensions in float64, differentiable in the denoiser. A step
        without noise has no density: it gives 0 where x_s is the mean up to rounding (1e-5 of the
        terms that make it up), and -inf elsewhere.
        """
        if not 0 <= step < num_steps:
            raise ArgumentError(f"step must lie in [0, num_steps), got {step} of {num_steps}")
        x_t, x_s = self._check_states(x_t, "x_t"), self._check_states(x_s, "x_s")
        move = self.steps(num_steps)[step]
        a, b, s = move.params
        t = torch.full((len(x_t),), move.time, device=x_t.device)
        kept, added = a * x_t.double(), b * self.predict(x_t, t, cond).double()
        gap = x_s.double() - kept - added
        triangle = self._triangle(move)
        log_volume: Tensor | float = 0.0
        if triangle is not None:
            lower = triangle.double()
            gap = torch.linalg.solve_triangular(lower, gap.flatten(1)[..., None], upper=False)
            log_volume = lower.diagonal().log().sum()
        if s > 0:
            each = -0.5 * (gap / s).square() - math.log(s * math.sqrt(2 * math.pi))
            return each.flatten(1).sum(dim=1) - log_volume
        same = (gap.abs() <= ROUNDING * (kept.abs() + added.abs())).flatten(1).all(dim=1)
        return torch.zeros(len(same), dtype=torch.float64, device=same.device).masked_fill(
            ~same, float("-inf")
        )

    # -- checks ------------------------------------------------------------------------------

    def _check_states(self, x: Tensor, name: str) -> Tensor:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
            raise DtypeError(f"{name} must be a floating-point tensor, got {kind}")
        if x.dim() != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape:
            due = ", ".join(map(str, self.shape))
            raise ShapeError(f"{name} must be [B, {due}], got {list(x.shape)}")
        return x.to(self.device, torch.float64 if x.dtype == torch.float64 else torch.float32)

    def _check_output(self, output: Any, rows: int) -> Tensor:
        due = [rows, *self.shape]
        if not isinstance(output, torch.Tensor):
            raise DtypeError(
                f"{self._name} must return a tensor {due}, got {type(output).__name__}"
            )
        if list(output.shape) != due:
            hint = ""
            if output.dim() == len(due) and output.shape[1] == 2 * due[1]:
                hint = "; of a model with a learned variance, give the first half of the channels"
            raise ShapeError(f"{self._name} must return {due}, got {list(output.shape)}{hint}")
        if not output.is_floating_point():
            raise DtypeError(
                f"{self._name} must return a floating-point tensor, got {output.dtype}"
            )
        return output
