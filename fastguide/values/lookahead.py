"""Values from a few cheap steps ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fastguide.diffusion import Step
from fastguide.diffusion.lookahead import lookahead_paths
from fastguide.errors import ArgumentError
from fastguide.evaluation import Evaluator, Rows
from fastguide.values.samples import Average

Tensor = torch.Tensor

PATH_BYTES = 64 * 2**20
"""Paths that are walked at a time have states and outputs of about this much memory."""


class Lookahead:
    """The reward of the sample that is predicted after k steps of the plain chain.

    Masked: k steps reveal the masks in equal parts, with tokens drawn from the denoiser, and the
    prediction fills the last part. All draws are keyed by the state, so equal states have equal
    values. Gaussian: k noise-free steps along the remaining noise levels.

    Args:
        reward: callable(samples [B, ...]) -> [B].
        num_steps: k; 0 is `PosteriorMean`, or with x0="sample" `PosteriorSamples`.
        num_samples: S paths per state (Gaussian: 1).
        x0: the prediction takes the most likely tokens ("mode"), or draws them ("sample", masked
            only), which is far nearer to the soft value where S > 1.
        alpha: average them as alpha log-mean-exp(r / alpha), the soft value.
        tau: average the worst tau share of them; 1 is the mean. One of the two if S > 1.

    A state costs at most 1 + k S denoiser rows and S reward rows: equal states on the way are
    evaluated once, remembered where the denoiser does not read the time, and a path asks only
    where it has something to reveal. Bias: that of predicting the last 1 / (k + 1) of the masks
    at once, that of revealing by larger steps than the chain's, and O(1/S) from the logarithm.

    Source: the lookahead of Oshima et al. 2025 (DLBS, arXiv 2501.19252), with masks.

    Raises:
        ArgumentError: a number out of range, by name.
    """

    needs_denoiser = True
    time_conditioned = False

    def __init__(
        self,
        reward: Callable[..., Any],
        num_steps: int = 1,
        num_samples: int = 1,
        *,
        x0: str = "mode",
        alpha: float | None = None,
        tau: float | None = None,
    ) -> None:
        if num_steps < 0:
            raise ArgumentError(f"num_steps must not be negative, got {num_steps}")
        if x0 not in ("mode", "sample"):
            raise ArgumentError(f"x0 must be 'mode' or 'sample', got {x0!r}")
        self.average = Average(num_samples, alpha, tau)
        self.reward = reward
        self.num_steps = num_steps
        self.num_samples = num_samples
        self.x0 = x0
        self.deterministic = bool(getattr(reward, "deterministic", True))
        drawn = ", x0='sample'" if x0 == "sample" else ""
        self.__name__ = f"Lookahead(num_steps={num_steps}, {self.average}{drawn})"

    @property
    def denoiser_rows(self) -> int:
        """Most denoiser rows per evaluated state, its own included."""
        return 1 + self.num_steps * self.num_samples

    def evaluate(self, evaluator: Evaluator, rows: Rows, step: Step) -> Tensor:
        """See `fastguide.evaluation.Value`."""
        copies = self.num_samples

        def soft_value_of(unknown: Rows) -> Tensor:
            most = max(1, PATH_BYTES // (evaluator.diffusion.row_bytes * copies))
            places = torch.arange(len(unknown), device=unknown.slot.device)
            ends = [self._ends(evaluator, unknown.take(p), step) for p in places.split(most)]
            x0, invalid = (torch.cat(part) for part in zip(*ends, strict=True))
            rewards = evaluator.reward(self.reward, x0, unknown, step.index, copies=copies)
            return self.average(rewards.masked_fill(invalid, float("-inf")))

        def rows_of(known: Rows) -> int:
            return self._rows_of(evaluator, known, step)

        return evaluator.fill_values(rows, soft_value_of, copies, rows_of)

    def _ends(self, evaluator: Evaluator, rows: Rows, step: Step) -> tuple[Tensor, Tensor]:
        """Predictions [R * S, ...] at the ends of the paths, and [R * S] which met a bad output."""
        diffusion, spread = evaluator.diffusion, self._spread(rows)
        with evaluator.cost.timed("kernels"):
            paths = self._paths(evaluator, rows, step)
            at = rows.take(spread)
        invalid = torch.zeros_like(spread, dtype=torch.bool)
        outputs = evaluator.outputs_of(at, step.index)
        last = len(paths.times) - 1
        for look in range(last):
            reads = paths.reads(look)
            with evaluator.cost.timed("kernels"):
                batch = paths.move(look, at.batch, outputs)
            # the output of the origin serves until something is revealed or the time is read
            gone = torch.ones_like(reads) if diffusion.time_conditioned else reads
            at = replace(at, batch=batch, slot=torch.where(gone, -1, at.slot))
            outputs, bad = evaluator.explore(
                at, paths.reads(look + 1), paths.times[look + 1], step.index
            )
            invalid = invalid | bad
        with evaluator.cost.timed("kernels"):
            if self.x0 == "sample":
                return paths.move(last, at.batch, outputs).x, invalid
            return diffusion.predict_mode(at.batch, outputs), invalid

    def _rows_of(self, evaluator: Evaluator, rows: Rows, step: Step) -> int:
        """Denoiser rows that the paths of `rows` ask for, besides the states' own."""
        paths = self._paths(evaluator, rows, step)
        moved = paths.reads(0)
        asked = 0
        for look in range(1, len(paths.times)):
            reads = paths.reads(look)
            asked += int((reads & moved).sum())
            moved = moved | reads
        return asked

    def _spread(self, rows: Rows) -> Tensor:
        places = torch.arange(len(rows), device=rows.slot.device)
        return places.repeat_interleave(self.num_samples)

    def _paths(self, evaluator: Evaluator, rows: Rows, step: Step) -> Any:
        return lookahead_paths(
            evaluator.diffusion,
            rows.batch,
            step.next_time,
            self.num_steps,
            self.num_samples,
            evaluator.seed,
        )
