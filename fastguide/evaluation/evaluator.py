"""Evaluating states: each distinct one once, under the reuse rules of `savings`."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion import Diffusion, Outputs, Step
from fastguide.evaluation.calls import Limits
from fastguide.evaluation.models import (
    GRADIENT,
    Models,
    is_value,
    output_fault,
    proposal_fault,
    score_fault,
    without_wrong,
)
from fastguide.evaluation.rows import Rows, place_numbers, row_bytes
from fastguide.evaluation.scorer import Scorer
from fastguide.evaluation.store import OutputStore

Tensor = torch.Tensor


class Evaluator(Models):
    """Denoiser outputs, values and rewards of rows, evaluated once per distinct state.

    One evaluator serves a whole run: what it remembers is shared by all its chains and steps.
    """

    resident = False

    def __init__(
        self,
        diffusion: Diffusion,
        *,
        savings: frozenset[str],
        cond: dict[str, Tensor],
        limits: Limits,
        reject: bool,
        cache_bytes: int,
        seed: int,
    ) -> None:
        super().__init__(
            diffusion, savings=savings, cond=cond, limits=limits, reject=reject, seed=seed
        )
        self._cache_bytes = cache_bytes
        self._store = OutputStore(diffusion.output_shape, cache_bytes, diffusion.device)
        self._bad_slots: set[int] = set()
        self._explored: frozenset[int] = frozenset()
        self._scorers: dict[tuple[Callable[..., Any], str], Scorer] = {}
        self._inherited: list[dict[bytes, float]] = []

    def outputs_of(self, rows: Rows, step: int) -> Outputs:
        """The denoiser outputs of `rows`, for the diffusion to read."""
        return self._outputs(self._store.buffer, rows, step)

    def advance(self, live: Rows) -> None:
        """Begin a step whose current states are `live`; other outputs may now be forgotten."""
        self._store.advance([slot for slot in live.slot.tolist() if slot > 0])
        self._explored = frozenset()

    def denoise(self, rows: Rows, time: float, step: int) -> int:
        """Fill `rows.slot` wherever an output will be read and is not known yet.

        Returns:
            how many rows have outputs that will be read.

        Raises:
            NonFiniteError: an output holds NaN or infinity; names step, chain and candidate.
        """
        with self.cost.timed("kernels"):
            needed = self.diffusion.needs_output(rows.batch.x)
        count = int(needed.sum())
        self._count_requested(count, rows.batch.x.shape[1])
        if count < len(rows):  # the blank slot: nothing of a clean state is ever read
            rows.slot = rows.slot.where(needed, 0)
        wanted = (rows.slot < 0).nonzero()[:, 0]
        if len(wanted):
            self._fill(rows, wanted, time, step)
        return count

    def explore(self, rows: Rows, reads: Tensor, time: float, step: int) -> tuple[Outputs, Tensor]:
        """Outputs of states that no chain is in, until the next call.

        Args:
            reads: [R] bool, rows whose output will be read; `rows.slot` is taken where known.

        Returns:
            outputs of the rows; invalid [R] bool, where zeros stand for an output that is rejected.
        """
        self._store.release(self._explored)
        before = self._store.pinned
        looked = replace(rows, slot=rows.slot.where(reads, 0))
        wanted = (looked.slot < 0).nonzero()[:, 0]
        self._count_requested(len(wanted), rows.batch.x.shape[1])
        if len(wanted):
            self._fill(looked, wanted, time, step)
        self._explored = self._store.pinned - before
        if not self._bad_slots:
            return self.outputs_of(looked, step), torch.zeros_like(reads)
        bad = torch.tensor(sorted(self._bad_slots), dtype=torch.int64, device=rows.slot.device)
        self._store.buffer[bad] = 0  # an op that read them would report a fault of its own
        return self.outputs_of(looked, step), torch.isin(looked.slot, bad)

    def _fill(self, rows: Rows, wanted: Tensor, time: float, step: int) -> None:
        names = self._names(rows, wanted)
        distinct, groups = wanted, self._groups(rows, wanted, names)
        if groups is not None:
            distinct = wanted.index_select(0, groups.first)
            names = names and [names[row] for row in groups.first.tolist()]
        slots = [self._store.find(name) for name in names] if names else [-1] * len(distinct)
        missing = [row for row, slot in enumerate(slots) if slot < 0]
        if missing:
            index = distinct
            if len(missing) < len(slots):
                index = distinct.index_select(0, place_numbers(missing, distinct.device))
                names = names and [names[row] for row in missing]
            outputs = self._run_denoiser(rows, index, time)
            fresh = self._store.put(outputs, names)
            self._check_outputs(rows, index, outputs, fresh, step)
            for row, slot in zip(missing, fresh, strict=True):
                slots[row] = slot
        found = place_numbers(slots, rows.slot.device)
        found = found if groups is None else found.index_select(0, groups.inverse)
        rows.slot = rows.slot.index_copy(0, wanted, found)

    def _names(self, rows: Rows, wanted: Tensor) -> list[bytes] | None:
        """What the outputs of rows `wanted` are remembered by; None if they are not."""
        if "history" not in self.savings or rows.batch.keys is None:
            return None
        if self.diffusion.time_conditioned:
            return None
        tags = rows.cond_row.index_select(0, wanted) if self._cond else None
        return row_bytes(rows.batch.x.index_select(0, wanted), tags)

    def _groups(
        self, rows: Rows, wanted: Tensor, names: list[bytes] | None = None
    ) -> ops.UniqueRows | None:
        """Equal rows of `wanted` taken together, `first` cut to their number; None if all differ.

        Also None where equal ones are not to be merged.   names: of `wanted`, if there are any.
        """
        keys = rows.batch.keys
        if keys is None or not self._merges(rows):
            return None
        keys = keys.index_select(0, wanted)
        # equal rows have equal keys: where all first words differ, which is soon seen, so do rows
        if len(set(names or (word for word, _ in keys.tolist()))) == len(wanted):
            return None
        x, tags = rows.batch.x.index_select(0, wanted), rows.cond_row.index_select(0, wanted)
        first, inverse, count = self._unique(x, keys, tags)
        return ops.UniqueRows(first[: int(count)], inverse, count)

    def _check_outputs(
        self, rows: Rows, index: Tensor, outputs: Tensor, slots: list[int], step: int
    ) -> None:
        self._bad_slots.difference_update(slots)
        if math.isfinite(outputs.sum()):  # what is nearly always so, in one cheap pass
            return
        invalid = self.diffusion.invalid_outputs(rows.batch.x[index], outputs)
        if not bool(invalid.any()):
            return
        bad = invalid.nonzero()[:, 0].tolist()
        if not self._reject:
            name = rows.name(int(index[bad[0]]))
            raise output_fault(step, name, len(bad), len(index))
        self._bad_slots.update(slots[row] for row in bad)

    def check_proposable(self, rows: Rows, step: int) -> None:
        """Raise NonFiniteError if a current state's output cannot be sampled from."""
        if not self._bad_slots:
            return
        for row, slot in enumerate(rows.slot.tolist()):
            if slot in self._bad_slots:
                raise proposal_fault(step, rows.name(row))

    def values(self, value: Any, rows: Rows, step: Step) -> Tensor:
        """Values [R] float64 of candidates at `step.next_time`; -inf where rejected as invalid.

        `value` is a `Value` or a callable(x, t).
        """
        if not is_value(value):
            return self.score_states(value, rows, step)
        if value.needs_denoiser:
            self.denoise(rows, step.next_time, step.index)
        if not self._bad_slots:
            return value.evaluate(self, rows, step)
        usable = torch.tensor(
            [slot not in self._bad_slots for slot in rows.slot.tolist()], device=rows.slot.device
        )
        values = torch.full_like(rows.value, float("-inf"))
        values[usable] = value.evaluate(self, rows.take(usable.nonzero()[:, 0]), step)
        return values

    def differentiate(self, value: Any, rows: Rows, step: Step) -> Tensor:
        """Values [R] float64 of `rows` with `rows.gradient`, and their outputs where it has any.

        `value` is what `gradients.differentiate` takes. Equal states are looked at once.
        """
        distinct = torch.arange(len(rows), device=rows.slot.device)
        groups = self._groups(rows, distinct)
        distinct = distinct if groups is None else groups.first
        values, gradient, outputs = self._differentiate(value, rows, distinct, step)
        if not math.isfinite(values.sum() + gradient.sum()):
            values, gradient, wrong = without_wrong(values, gradient)
            if not self._reject and bool(wrong.any()):
                name = rows.name(int(distinct[wrong.nonzero()[0, 0]]))
                raise score_fault(GRADIENT, "NaN or infinity", step.index, name)
        if outputs is not None:
            rows.slot = place_numbers(self._store.put(outputs, None), rows.slot.device)
        if groups is not None:
            values = values.index_select(0, groups.inverse)
            gradient = gradient.index_select(0, groups.inverse)
            rows.slot = rows.slot if outputs is None else rows.slot.index_select(0, groups.inverse)
        rows.gradient = gradient
        return values

    def score_states(self, value: Callable[..., Any], rows: Rows, step: Step) -> Tensor:
        """A plain callable value(x, t) of rows, [R] float64; `rows.value` is taken where known."""
        scorer = self._scorer(
            value,
            "value",
            merge="duplicates" in self.savings,
            remember="history" in self.savings and self.reuses(value),
        )
        return self.fill_values(
            rows,
            lambda unknown: scorer.score(unknown.batch.x, unknown, step.index, time=step.next_time),
        )

    def fill_values(
        self,
        rows: Rows,
        evaluate: Callable[[Rows], Tensor],
        copies: int = 1,
        explored: Callable[[Rows], int] | None = None,
    ) -> Tensor:
        """`rows.value` where known, `evaluate(unknown rows)` [U] elsewhere; [R] float64.

        `copies`, `explored(known rows)`: rewards per row, and outputs by `explore` of all of them,
        that `evaluate` would have asked for where the value is known.
        """
        unknown = (~rows.value.isfinite()).nonzero()[:, 0]
        self.cost.reward_rows_requested += (len(rows) - len(unknown)) * copies
        if explored is not None and len(unknown) < len(rows):
            known = rows.take(rows.value.isfinite().nonzero()[:, 0])
            self._count_requested(explored(known), rows.batch.x.shape[1])
        values = rows.value.clone()
        if len(unknown):
            values[unknown] = evaluate(rows if len(unknown) == len(rows) else rows.take(unknown))
        return values

    def reward(
        self,
        reward: Callable[..., Any],
        samples: Tensor,
        rows: Rows,
        step: int,
        *,
        copies: int = 1,
        identity: Tensor | None = None,
    ) -> Tensor:
        """Rewards of predictions [R * copies, ...], `copies` per row; [R * copies] float64.

        `identity` [R, L]: states that determine the samples; they are merged by it.
        """
        share = "rewards" in self.savings and bool(getattr(reward, "deterministic", True))
        scorer = self._scorer(
            reward,
            "reward",
            merge=not self.savings.isdisjoint({"rewards", "duplicates"}),
            remember=share and not (identity is not None and self.diffusion.time_conditioned),
        )
        return scorer.score(samples, rows, step, copies=copies, identity=identity)

    def collect_faults(self) -> AbstractContextManager[None]:
        """Around the ops of a step: here they raise at once."""
        return nullcontext()

    def check(self) -> None:
        """Nothing waits to be reported."""

    @property
    def memory(self) -> list[dict[bytes, float]]:
        """Remembered rewards and values, in the order their functions were first called."""
        return [scorer.memory for scorer in self._scorers.values() if scorer.remembers]

    def recall(self, memory: list[dict[bytes, float]]) -> None:
        """Take over what an earlier part of the same run remembered."""
        self._inherited = list(memory)

    def _scorer(
        self, function: Callable[..., Any], label: str, *, merge: bool, remember: bool
    ) -> Scorer:
        key = (function, label)
        if key not in self._scorers:
            self._scorers[key] = scorer = Scorer(
                function,
                label,
                merge=merge,
                remember=remember,
                reject=self._reject,
                limits=self._limits,
                cost=self.cost,
                cond=self._cond,
                cache_bytes=self._cache_bytes,
            )
            if remember and self._inherited:
                scorer.recall(self._inherited.pop(0))
        return self._scorers[key]
