"""Evaluating states without a memory of earlier ones; what is known stays on the device.

For states that are never equal, where there is nothing to remember, and for GPUs. There the host
waits at most once a step, for how many rows are distinct, and finds out in the same transfer
whether anything was not finite or an op met a bad input; without "duplicates" it does not wait at
all before a shard ends, so that a whole step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion import Diffusion, Outputs, Step
from fastguide.errors import NonFiniteError
from fastguide.evaluation.calls import Limits, call_in_chunks
from fastguide.evaluation.models import (
    GRADIENT,
    Denoise,
    Models,
    is_value,
    output_fault,
    proposal_fault,
    score_fault,
    without_wrong,
)
from fastguide.evaluation.rows import Rows
from fastguide.evaluation.scorer import checked_scores

Tensor = torch.Tensor

_OUTPUT, _PROPOSAL, _REWARD, _VALUE, _GRADIENT = 1, 2, 3, 4, 5
_SCORES = {_REWARD: "reward", _VALUE: "value", _GRADIENT: GRADIENT}


def read_words(words: Tensor) -> list[int]:
    """Wait for the device and copy `words` [W] int64: the one place where a step may wait."""
    numbers: list[int] = words.tolist()
    return numbers


class ResidentEvaluator(Models):
    """`Evaluator` for `savings.RESIDENT`, without a memory of earlier steps.

    Predictions are rewarded once per distinct *state* of a step, rather than per distinct
    prediction. Rows without a mask count as requested, since the host does not know them.
    """

    resident = True

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
        super().__init__(
            diffusion, savings=savings, cond=cond, limits=limits, reject=reject, seed=seed
        )
        device = diffusion.device
        self._buffer = torch.zeros((1, *diffusion.output_shape), device=device)
        self._bad = torch.zeros(1, dtype=torch.bool, device=device)
        self._carried = False
        # what, step, chain, candidate, rows in trouble, rows in all: the first thing not finite
        self._trouble = torch.zeros(6, dtype=torch.int64, device=device)
        self._faults = ops.DeferredFaults(device)

    @property
    def memory(self) -> list[dict[bytes, float]]:
        """Nothing is remembered from step to step."""
        return []

    def recall(self, memory: list[dict[bytes, float]]) -> None:
        """Nothing is remembered from step to step."""

    def outputs_of(self, rows: Rows, step: int) -> Outputs:
        """See `Evaluator.outputs_of`."""
        return self._outputs(self._buffer, rows, step)

    def advance(self, live: Rows) -> None:
        """Begin a step: of the outputs, those of the current states are kept, in their order."""
        if "parent" not in self.savings or live.batch.keys is None:
            return
        kept = live.slot.clamp_min(0)
        self._buffer, self._bad = self._buffer[kept], self._bad[kept]
        live.slot = torch.where(live.slot >= 0, _places(live.slot), -1)

    def denoise(self, rows: Rows, time: float, step: int) -> int:
        """Fill `rows.slot`, unless the candidates' outputs were carried over; see `Evaluator`."""
        self._count_requested(len(rows), rows.batch.x.shape[1])
        if self._carried:
            self._carried = False  # outputs of candidates serve the next step, and no other
            return len(rows)
        if not self._merges(rows):
            self._replace(rows, time, step)
            return len(rows)
        groups = _Groups(self, rows)
        (count,) = self._read(groups.unknown_outputs.sum().view(1))
        self._fill(rows, groups, count, time, step)
        return len(rows)

    def check_proposable(self, rows: Rows, step: int) -> None:
        """Note a current state whose output cannot be sampled from."""
        needed = self.diffusion.needs_output(rows.batch.x)
        self._note(_PROPOSAL, self._bad[rows.slot] & needed, rows, step)

    def values(self, value: Any, rows: Rows, step: Step) -> Tensor:
        """Values [R] float64 of candidates at `step.next_time`; -inf where not finite."""
        self._carried = False
        if not is_value(value):
            return self._score(
                value, rows.batch.x, rows, step.index, label="value", time=step.next_time
            )
        if not value.needs_denoiser:
            return value.evaluate(self, rows, step)
        self._count_requested(len(rows), rows.batch.x.shape[1])
        self._carried = "carry" in self.savings
        if not self._merges(rows):
            self._replace(rows, step.next_time, step.index)
            values = value.evaluate(self, rows, step)
            return values.masked_fill(self._bad[rows.slot], float("-inf"))
        groups = _Groups(self, rows)
        unknown = ~groups.value.isfinite() & groups.real
        num_outputs, num_values = self._read(
            torch.stack([groups.unknown_outputs.sum(), unknown.sum()])
        )
        self._fill(rows, groups, num_outputs, step.next_time, step.index)
        picked = _first(unknown, num_values)
        if num_values:
            some = rows.take(groups.first[picked])
            fresh = value.evaluate(self, some, step)
            fresh = fresh.masked_fill(self._bad[some.slot], float("-inf"))
            groups.value = groups.value.index_copy(0, picked, fresh)
        return groups.value[groups.inverse]

    def explore(self, rows: Rows, reads: Tensor, time: float, step: int) -> tuple[Outputs, Tensor]:
        """See `Evaluator.explore`. Waits once, for the count; not without "duplicates"."""
        self._count_requested(len(rows), rows.batch.x.shape[1])
        places = _places(rows.slot)
        if not self._merges(rows):
            buffer, bad = self._evaluate(rows, places, time, step)
        else:
            assert rows.batch.keys is not None
            first, inverse, _ = self._unique(rows.batch.x, rows.batch.keys, rows.cond_row)
            asked = reads.to(torch.int8)
            wanted = torch.zeros_like(asked).scatter_reduce(0, inverse, asked, "amax").bool()
            (count,) = self._read(wanted.sum().view(1))
            if not count:  # nothing will be read
                return self._outputs(self._buffer, replace(rows, slot=places * 0), step), reads
            picked = _first(wanted, count)
            buffer, bad = self._evaluate(rows, first[picked], time, step)
            slot = torch.zeros_like(places).index_copy(0, picked, _places(picked))
            places = slot[inverse]
        looked = replace(rows, slot=places)
        return self._outputs(buffer, looked, step), bad[places] & reads

    def differentiate(self, value: Any, rows: Rows, step: Step) -> Tensor:
        """See `Evaluator.differentiate`; every row is looked at."""
        places = _places(rows.slot)
        values, gradient, outputs = self._differentiate(value, rows, places, step)
        values, gradient, wrong = without_wrong(values, gradient)
        if outputs is not None:
            self._buffer, self._bad = outputs, wrong
            rows.slot = places
            self._carried = "carry" in self.savings
        if not self._reject:
            self._note(_GRADIENT, wrong, rows, step.index)
        rows.gradient = gradient
        return values

    def denoise_pairs(self, pairs: Denoise, rows: Rows, step: Step) -> Tensor:
        """Outputs of `rows` from a denoiser of pairs [S, 2, ...]; the second halves [R, ...]."""
        places = _places(rows.slot)
        self._count_requested(len(rows), 0)
        both = self._run_denoiser(rows, places, step.next_time, pairs)
        self._bad = ~both.flatten(1).isfinite().all(dim=1)
        self._note(_OUTPUT, self._bad, rows, step.index)
        self._buffer, rows.slot = both[:, 0], places
        self._carried = "carry" in self.savings
        return both[:, 1]

    def fill_values(
        self,
        rows: Rows,
        evaluate: Callable[[Rows], Tensor],
        copies: int = 1,
        explored: Callable[[Rows], int] | None = None,
    ) -> Tensor:
        """`evaluate(rows)`: what is known has been left out already."""
        return evaluate(rows)

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
        """Rewards [R * copies] float64; clean states are merged, predictions of states are not."""
        clean = samples is rows.batch.x
        if not (clean and self._merges(rows)):
            return self._score(reward, samples, rows, step, label="reward", copies=copies)
        assert rows.batch.keys is not None
        first, inverse, count = self._unique(samples, rows.batch.keys, rows.cond_row)
        (distinct,) = self._read(count)
        some = rows.take(first[:distinct])
        return self._score(reward, some.batch.x, some, step, label="reward")[inverse]

    def collect_faults(self) -> AbstractContextManager[None]:
        """Around the ops of a step: a bad input is noted, to be raised with the next count."""
        return self._faults.collect()

    def check(self) -> None:
        """Wait, and raise what was noted since the last time.

        Raises:
            NonFiniteError: something was not finite; names step, chain and candidate.
            FastguideError: what an op would have raised.
        """
        self._read(self._trouble[:0])

    def _read(self, counts: Tensor) -> list[int]:
        records = self._faults.records.flatten()
        words = read_words(torch.cat([counts, self._trouble, records]))
        size = len(counts)
        what, step, chain, candidate, bad, total = words[size : size + 6]
        if what:
            self._trouble.zero_()
            raise _error(what, step, f"chain {chain}, candidate {candidate}", bad, total)
        if self._faults.noted(words[size + 6 :]):
            self._faults.check()
        return words[:size]

    def _replace(self, rows: Rows, time: float, step: int) -> None:
        """Outputs of all rows, in place of what there was."""
        places = _places(rows.slot)
        self._buffer, self._bad = self._evaluate(rows, places, time, step)
        rows.slot = places

    def _fill(self, rows: Rows, groups: _Groups, count: int, time: float, step: int) -> None:
        """Outputs of the `count` groups that have none, behind those of the parents."""
        kept = len(self._buffer) if "parent" in self.savings else 1
        buffer, bad = self._buffer[:kept], self._bad[:kept]
        if count:
            picked = _first(groups.unknown_outputs, count)
            index = groups.first[picked]
            outputs, invalid = self._evaluate(rows, index, time, step)
            groups.slot = groups.slot.index_copy(0, picked, kept + _places(picked))
            if outputs.shape[1:] != buffer.shape[1:]:  # hidden states, at the first call
                buffer = outputs.new_zeros((kept, *outputs.shape[1:]))
            buffer, bad = torch.cat([buffer.to(outputs.dtype), outputs]), torch.cat([bad, invalid])
        self._buffer, self._bad = buffer, bad
        rows.slot = groups.slot[groups.inverse]

    def _evaluate(self, rows: Rows, index: Tensor, time: float, step: int) -> tuple[Tensor, Tensor]:
        """Outputs of rows `index` [S], and which are invalid [S]: those are zeros."""
        outputs = self._run_denoiser(rows, index, time)
        invalid = self.diffusion.invalid_outputs(rows.batch.x[index], outputs)
        if not self._reject:
            self._note(_OUTPUT, invalid, rows, step, index)
        # an op that read them would report a fault of its own, also where they are rejected
        blank = invalid.view(-1, *[1] * (outputs.dim() - 1))
        return outputs.masked_fill(blank, 0), invalid

    def _score(
        self,
        function: Callable[..., Any],
        samples: Tensor,
        rows: Rows,
        step: int,
        *,
        label: str,
        time: float | None = None,
        copies: int = 1,
    ) -> Tensor:
        owner = _places(samples) // copies
        tag = rows.cond_row[owner]
        wanted = self._cond if getattr(function, "needs_cond", False) else {}

        def model(index: Tensor) -> Tensor:
            arguments = [samples[index]]
            if time is not None:
                arguments.append(torch.full((len(index),), time, device=samples.device))
            cond = {name: value[tag[index]] for name, value in wanted.items()}
            return checked_scores(function(*arguments, **cond), label, len(index))

        with self.cost.timed("reward"):
            scores = call_in_chunks(
                model, len(samples), self._limits, self.cost, name=label, device=samples.device
            ).to(samples.device)
        self.cost.reward_rows += len(samples)
        self.cost.reward_rows_requested += len(samples)
        wrong = ~scores.isfinite()
        if not self._reject:
            self._note(_VALUE if label == "value" else _REWARD, wrong, rows, step, owner)
        return scores.masked_fill(wrong, float("-inf"))

    def _note(
        self, what: int, bad: Tensor, rows: Rows, step: int, index: Tensor | None = None
    ) -> None:
        """Keep the first of the rows `index` [B] that is `bad` [B], if nothing was noted before."""
        if not len(bad):
            return
        row = bad.to(torch.int8).argmax().view(1)
        row = row if index is None else index.index_select(0, row)
        words = torch.empty_like(self._trouble)
        words[0], words[1], words[5] = what, step, len(bad)
        words[2:3] = rows.chain.index_select(0, row)
        words[3:4] = rows.candidate.index_select(0, row)
        words[4] = bad.sum()
        fresh = bad.any() & (self._trouble[0] == 0)
        self._trouble = torch.where(fresh, words, self._trouble)


class _Groups:
    """Equal rows taken together.

    Attributes:
        first, inverse: [R] int64, of `ops.unique_rows`.   real: [R] bool, there is such a group.
        slot: [R] int64, the known output of each group, -1 if none.
        value: [R] float64, its known value, NaN if none.
        unknown_outputs: [R] bool, groups that need the denoiser.
    """

    def __init__(self, models: ResidentEvaluator, rows: Rows) -> None:
        assert rows.batch.keys is not None
        x, places = rows.batch.x, _places(rows.slot)
        self.first, self.inverse, count = models._unique(x, rows.batch.keys, rows.cond_row)
        self.real = places < count
        # any member whose output is known speaks for its group
        known = torch.where(rows.slot >= 0, places, -1)
        speaker = torch.full_like(places, -1).scatter_reduce(0, self.inverse, known, "amax")
        speaks, speaker = speaker >= 0, speaker.clamp_min(0)
        self.value = torch.where(speaks, rows.value[speaker], torch.nan)
        # nothing is ever read of a clean state's output, so any slot will do
        clean = ~models.diffusion.needs_output(x[self.first])
        self.slot = torch.where(speaks, rows.slot[speaker], torch.where(clean, 0, -1))
        self.unknown_outputs = self.real & (self.slot < 0)


def _places(like: Tensor) -> Tensor:
    return torch.arange(len(like), device=like.device)


def _first(flags: Tensor, count: int) -> Tensor:
    """Places of the `count` True ones of `flags`, without waiting for the device."""
    return (~flags).to(torch.int8).argsort(stable=True)[:count]


def _error(what: int, step: int, name: str, bad: int, total: int) -> NonFiniteError:
    if what == _OUTPUT:
        return output_fault(step, name, bad, total)
    if what == _PROPOSAL:
        return proposal_fault(step, name)
    return score_fault(_SCORES[what], "NaN or infinity", step, name)
