"""What every evaluator does with the user's denoiser: find distinct rows, call, count, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeGuard

import torch

from fastguide import ops
from fastguide.diffusion import Diffusion, Outputs, Step
from fastguide.errors import NonFiniteError
from fastguide.evaluation.calls import Limits, call_in_chunks
from fastguide.evaluation.cost import Cost
from fastguide.evaluation.gradients import differentiate
from fastguide.evaluation.rows import Rows, mix_tag

Tensor = torch.Tensor
Denoise = Callable[[Tensor, float, dict[str, Tensor]], Tensor]

GRADIENT = "the value or its gradient"


class Value(Protocol):
    """A soft-value estimate that reads the denoiser's output.

    Attributes:
        needs_denoiser: candidates need a denoiser output before `evaluate`.
        time_conditioned: the value of a state depends on the time; False allows reuse by state.
        deterministic: equal states always get equal values; False forbids reuse across steps.
    """

    needs_denoiser: bool
    time_conditioned: bool
    deterministic: bool

    def evaluate(self, evaluator: Any, rows: Rows, step: Step) -> Tensor:
        """Values [R] float64 of `rows`, which stand at `step.next_time`."""


def is_value(value: Any) -> TypeGuard[Value]:
    """Whether it is a `Value`; others are plain callables value(x, t)."""
    members = ("evaluate", "needs_denoiser", "time_conditioned", "deterministic")
    return all(hasattr(value, name) for name in members)


class Models:
    """The models of a run and what calling them has cost.

    Attributes:
        diffusion, savings, seed: of the run.   cost: so far.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        *,
        savings: frozenset[str],
        cond: dict[str, Tensor],
        limits: Limits,
        reject: bool,
        seed: int,
    ) -> None:
        self.diffusion = diffusion
        self.savings = savings
        self.seed = seed
        self.cost = Cost()
        self._cond = cond
        self._limits = limits
        self._reject = reject

    def reuses(self, value: Value | Callable[..., Any]) -> bool:
        """Whether values of equal states are equal at every step."""
        if getattr(value, "time_conditioned", True) or not getattr(value, "deterministic", True):
            return False
        # what reads the denoiser's output inherits its dependence on time
        return not (getattr(value, "needs_denoiser", False) and self.diffusion.time_conditioned)

    def _merges(self, rows: Rows) -> bool:
        return "duplicates" in self.savings and rows.batch.keys is not None

    def _unique(self, batch_x: Tensor, keys: Tensor, tag: Tensor) -> ops.UniqueRows:
        """`ops.unique_rows` of states [R, L] with their conditioning rows [R]."""
        with self.cost.timed("kernels"):
            if self._cond:
                batch_x, keys = torch.cat([batch_x, tag[:, None]], dim=1), mix_tag(keys, tag)
            return ops.unique_rows(batch_x, keys)

    def _run_denoiser(
        self, rows: Rows, index: Tensor, time: float, denoise: Denoise | None = None
    ) -> Tensor:
        """Outputs [S, ...] of rows `index` [S], by `denoise` or the diffusion's own."""
        x, cond_row = rows.batch.x, rows.cond_row
        denoise = denoise or self.diffusion.denoise

        def model(chunk: Tensor) -> Tensor:
            picked = index[chunk]
            cond = {name: value[cond_row[picked]] for name, value in self._cond.items()}
            return denoise(x.index_select(0, picked), time, cond)

        width = self.diffusion.rows_per_state
        with self.cost.timed("denoiser"):
            outputs = call_in_chunks(
                model,
                len(index),
                self._limits,
                self.cost,
                name="denoiser",
                rows_per_item=width,
                device=index.device,
            )
        self.cost.denoiser_rows += len(index) * width
        return outputs

    def _outputs(self, buffer: Tensor, rows: Rows, step: int) -> Outputs:
        """Outputs of `rows`, whose slots point into `buffer`, for the diffusion to read."""

        def call_head(head: Callable[[Tensor], Tensor], hidden: Tensor, owner: Tensor) -> Tensor:
            return self._run_head(head, hidden, rows, owner, step)

        return Outputs(buffer, rows.slot, call_head)

    def _run_head(
        self,
        head: Callable[[Tensor], Tensor],
        hidden: Tensor,
        rows: Rows,
        owner: Tensor,
        step: int,
    ) -> Tensor:
        width, limits = self.diffusion.rows_per_state, self._limits
        if not len(hidden):
            return head(hidden)
        if limits.max_rows is not None:
            limits = replace(limits, max_rows=limits.max_rows * rows.batch.x.shape[1])
        with self.cost.timed("denoiser"):
            logits = call_in_chunks(
                lambda index: head(hidden[index]),
                len(hidden),
                limits,
                self.cost,
                name="head",
                rows_per_item=width,
                device=hidden.device,
            )
        self.cost.head_rows += len(hidden) * width
        wrong = ~logits.amax(dim=-1).isfinite()
        if bool(wrong.any()):
            row = int(owner[wrong.nonzero()[0, 0]])
            raise NonFiniteError(
                f"head returned NaN, infinity or no allowed token at step {step} for "
                f"{rows.name(row)} ({int(wrong.sum())} of {len(hidden)} sites); check its input "
                "range and precision"
            )
        return logits

    def components(self, reward: Callable[..., Any], rows: Rows) -> dict[str, Tensor]:
        """`reward.components` of clean rows by name, [R] float64 each; each distinct row once."""
        samples, count = rows.batch.x, len(rows)
        first = inverse = torch.arange(count, device=samples.device)
        if self._merges(rows):
            assert rows.batch.keys is not None
            first, inverse, distinct = self._unique(samples, rows.batch.keys, rows.cond_row)
            count = int(distinct)
        wanted = self._cond if getattr(reward, "needs_cond", False) else {}
        names: list[str] = []

        def model(index: Tensor) -> Tensor:
            picked = first[index]
            cond = {name: value[rows.cond_row[picked]] for name, value in wanted.items()}
            parts = reward.components(samples[picked], **cond)  # type: ignore[attr-defined]
            names[:] = parts
            return torch.stack([part.detach().double() for part in parts.values()], dim=1)

        with self.cost.timed("reward"):
            columns = call_in_chunks(
                model, count, self._limits, self.cost, name="reward", device=samples.device
            )
        self.cost.reward_rows += count
        self.cost.reward_rows_requested += len(rows)
        return dict(zip(names, columns[inverse].unbind(1), strict=True))

    def _differentiate(
        self, value: Any, rows: Rows, index: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values [S], gradients, outputs or None of rows `index` [S]."""
        cond = {name: each[rows.cond_row[index]] for name, each in self._cond.items()}
        with self.cost.timed("denoiser"):
            values, gradient, outputs = differentiate(
                self.diffusion,
                value,
                rows.batch.x.index_select(0, index),
                step.next_time,
                cond,
                limits=self._limits,
                cost=self.cost,
            )
        self.cost.reward_rows += len(index)
        self.cost.reward_rows_requested += len(rows)
        if outputs is not None:
            self.cost.denoiser_rows += len(index) * self.diffusion.rows_per_state
            self._count_requested(len(rows), rows.batch.x.shape[1])
        return values, gradient, outputs

    def _count_requested(self, rows: int, length: int) -> None:
        """Rows that savings="none" would run, and their sites if a head is lazy."""
        rows *= self.diffusion.rows_per_state
        self.cost.denoiser_rows_requested += rows
        if self.diffusion.head is not None:
            self.cost.head_rows_requested += rows * length


def without_wrong(values: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values [S] and gradients with -inf and 0 where one of them is not finite; where that is."""
    wrong = ~(values.isfinite() & gradient.flatten(1).isfinite().all(dim=1))
    blank = wrong.view(-1, *[1] * (gradient.dim() - 1))
    return values.masked_fill(wrong, float("-inf")), gradient.masked_fill(blank, 0), wrong


def output_fault(step: int, name: str, bad: int, total: int) -> NonFiniteError:
    """The error of a denoiser output that cannot be sampled from."""
    return NonFiniteError(
        f"denoiser returned NaN, infinity or no allowed token at step {step} for {name} "
        f"({bad} of {total} rows); check its input range and precision, or pass "
        "on_invalid='reject' to give such candidates zero weight"
    )


def proposal_fault(step: int, name: str) -> NonFiniteError:
    """The error of a current state whose output cannot be sampled from."""
    return NonFiniteError(
        f"denoiser returned NaN, infinity or no allowed token at step {step} for {name}, and no "
        "valid candidate was left to replace it; check the denoiser's input range and precision"
    )


def score_fault(label: str, score: float | str, step: int, name: str) -> NonFiniteError:
    """The error of a reward or value that is not finite."""
    return NonFiniteError(
        f"{label} returned {score} at step {step} for {name}; return a finite number, or pass "
        "on_invalid='reject' to give such candidates zero weight"
    )
