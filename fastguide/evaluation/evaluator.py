"""Evaluating states: each distinct one once, under the reuse rules of `savings`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch

from fastguide import ops
from fastguide.diffusion import Diffusion, Outputs, Step
from fastguide.errors import NonFiniteError
from fastguide.evaluation.calls import Limits, call_in_chunks
from fastguide.evaluation.cost import Cost
from fastguide.evaluation.rows import Rows, mix_tag, row_bytes
from fastguide.evaluation.scorer import Scorer
from fastguide.evaluation.store import OutputStore

Tensor = torch.Tensor


@runtime_checkable
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

    def evaluate(self, evaluator: Evaluator, rows: Rows, step: Step) -> Tensor:
        """Values [R] float64 of `rows`, which stand at `step.next_time`."""


class Evaluator:
    """Denoiser outputs, values and rewards of rows, evaluated once per distinct state.

    One evaluator serves a whole run: what it remembers is shared by all its chains and steps.
    """

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
        self.diffusion = diffusion
        self.savings = savings
        self.seed = seed
        self.cost = Cost()
        self._cond = cond
        self._limits = limits
        self._reject = reject
        self._cache_bytes = cache_bytes
        self._store = OutputStore(diffusion.output_shape, cache_bytes, diffusion.device)
        self._bad_slots: set[int] = set()
        self._scorers: dict[tuple[Callable[..., Any], str], Scorer] = {}
        self._inherited: list[dict[bytes, float]] = []

    def outputs_of(self, rows: Rows, step: int) -> Outputs:
        """The denoiser outputs of `rows`, for the diffusion to read."""

        def call_head(head: Callable[[Tensor], Tensor], hidden: Tensor, owner: Tensor) -> Tensor:
            return self._call_head(head, hidden, rows, owner, step)

        return Outputs(self._store.buffer, rows.slot, call_head)

    def _call_head(
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

    def advance(self, live: Rows) -> None:
        """Begin a step whose current states are `live`; other outputs may now be forgotten."""
        self._store.advance([slot for slot in live.slot.tolist() if slot > 0])

    def denoise(self, rows: Rows, time: float, step: int) -> None:
        """Fill `rows.slot` wherever an output will be read and is not known yet.

        Raises:
            NonFiniteError: an output holds NaN or infinity; names step, chain and candidate.
        """
        with self.cost.timed("kernels"):
            needed = self.diffusion.needs_output(rows.batch.x)
        width = self.diffusion.rows_per_state
        requested = int(needed.sum()) * width
        self.cost.denoiser_rows_requested += requested
        if self.diffusion.head is not None:
            self.cost.head_rows_requested += requested * rows.batch.x.shape[1]
        rows.slot[~needed] = 0  # the blank slot: nothing of a clean state is ever read
        wanted = (rows.slot < 0).nonzero()[:, 0]
        if len(wanted):
            self._fill(rows, wanted, time, step)

    def _fill(self, rows: Rows, wanted: Tensor, time: float, step: int) -> None:
        first, inverse = self._distinct(rows, wanted)
        distinct = wanted[first]
        slots = [-1] * len(distinct)
        names = None
        keyed = rows.batch.keys is not None
        if "history" in self.savings and keyed and not self.diffusion.time_conditioned:
            names = row_bytes(rows.batch.x[distinct], rows.cond_row[distinct])
            slots = [self._store.find(name) for name in names]
        missing = [row for row, slot in enumerate(slots) if slot < 0]
        if missing:
            index = distinct[torch.tensor(missing, device=distinct.device)]
            outputs = self._call(rows, index, time)
            fresh = self._store.put(outputs, names and [names[row] for row in missing])
            self._check_outputs(rows, index, outputs, fresh, step)
            for row, slot in zip(missing, fresh, strict=True):
                slots[row] = slot
        rows.slot[wanted] = torch.tensor(slots, device=rows.slot.device)[inverse]

    def _distinct(self, rows: Rows, wanted: Tensor) -> tuple[Tensor, Tensor]:
        everything = torch.arange(len(wanted), device=wanted.device)
        if "duplicates" not in self.savings or rows.batch.keys is None:
            return everything, everything
        with self.cost.timed("kernels"):
            x, keys = rows.batch.x[wanted], rows.batch.keys[wanted]
            if self._cond:
                tag = rows.cond_row[wanted]
                x, keys = torch.cat([x, tag[:, None]], dim=1), mix_tag(keys, tag)
            first, inverse, count = ops.unique_rows(x, keys)
        return first[: int(count)], inverse

    def _call(self, rows: Rows, index: Tensor, time: float) -> Tensor:
        x, cond_row = rows.batch.x, rows.cond_row

        def model(chunk: Tensor) -> Tensor:
            picked = index[chunk]
            cond = {name: value[cond_row[picked]] for name, value in self._cond.items()}
            return self.diffusion.denoise(x[picked], time, cond)

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

    def _check_outputs(
        self, rows: Rows, index: Tensor, outputs: Tensor, slots: list[int], step: int
    ) -> None:
        self._bad_slots.difference_update(slots)
        invalid = self.diffusion.invalid_outputs(rows.batch.x[index], outputs)
        if not bool(invalid.any()):
            return
        bad = invalid.nonzero()[:, 0].tolist()
        if not self._reject:
            raise NonFiniteError(
                f"denoiser returned NaN, infinity or no allowed token at step {step} for "
                f"{rows.name(int(index[bad[0]]))} ({len(bad)} of {len(index)} rows); check its "
                "input range and precision, or pass on_invalid='reject' to give such candidates "
                "zero weight"
            )
        self._bad_slots.update(slots[row] for row in bad)

    def check_proposable(self, rows: Rows, step: int) -> None:
        """Raise NonFiniteError if a current state's output cannot be sampled from."""
        if not self._bad_slots:
            return
        for row, slot in enumerate(rows.slot.tolist()):
            if slot in self._bad_slots:
                raise NonFiniteError(
                    f"denoiser returned NaN, infinity or no allowed token at step {step} for "
                    f"{rows.name(row)}, and no valid candidate was left to replace it; check the "
                    "denoiser's input range and precision"
                )

    def values(self, value: Value | Callable[..., Any], rows: Rows, step: Step) -> Tensor:
        """Values [R] float64 of candidates at `step.next_time`; -inf where rejected as invalid."""
        if not isinstance(value, Value):
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

    def reuses(self, value: Value | Callable[..., Any]) -> bool:
        """Whether values of equal states are equal at every step."""
        if getattr(value, "time_conditioned", True) or not getattr(value, "deterministic", True):
            return False
        # what reads the denoiser's output inherits its dependence on time
        return not (getattr(value, "needs_denoiser", False) and self.diffusion.time_conditioned)

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
        self, rows: Rows, evaluate: Callable[[Rows], Tensor], copies: int = 1
    ) -> Tensor:
        """`rows.value` where known, `evaluate(unknown rows)` [U] elsewhere; [R] float64."""
        unknown = (~rows.value.isfinite()).nonzero()[:, 0]
        self.cost.reward_rows_requested += (len(rows) - len(unknown)) * copies
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
