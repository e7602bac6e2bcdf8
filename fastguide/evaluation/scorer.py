"""Calling rewards and value functions: once per distinct row, checked, remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fastguide import ops
from fastguide.errors import DtypeError, ShapeError
from fastguide.evaluation.calls import Limits, call_in_chunks
from fastguide.evaluation.cost import Cost
from fastguide.evaluation.models import score_fault
from fastguide.evaluation.rows import Rows, mix_tag, row_bytes

Tensor = torch.Tensor


class Scorer:
    """A batch function [B, ...] -> [B] as the engine calls it.

    Args:
        function: the user's reward (samples) or value (x, t); `needs_cond` asks for conditioning.
        label: "reward" or "value", for messages.
        merge: equal rows of one call are scored once.
        remember: scores are kept for the run (least recently used first, up to `cache_bytes`).
        reject: a non-finite score becomes -inf instead of an error.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        label: str,
        *,
        merge: bool,
        remember: bool,
        reject: bool,
        limits: Limits,
        cost: Cost,
        cond: dict[str, Tensor],
        cache_bytes: int,
    ) -> None:
        self._function = function
        self._label = label
        self._merge = merge
        self.remembers = remember
        self._reject = reject
        self._limits = limits
        self._cost = cost
        self._cond = cond if getattr(function, "needs_cond", False) else {}
        self._cache_bytes = cache_bytes
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def score(
        self,
        samples: Tensor,
        rows: Rows,
        step: int,
        *,
        time: float | None = None,
        copies: int = 1,
        identity: Tensor | None = None,
    ) -> Tensor:
        """Scores of samples [R * copies, ...], `copies` per row of `rows`, as [R * copies] float64.

        Args:
            time: passed as t [B] float32 to value functions; None calls `function(samples)`.
            identity: integer rows that stand for the samples when equal ones are looked for;
                default the samples themselves (floating-point samples are never merged).
        Raises:
            NonFiniteError: a score is NaN or infinite; names step, chain and candidate.
            ShapeError, DtypeError: the function returned something other than [B] numbers.
        """
        total = samples.shape[0]
        self._cost.reward_rows_requested += total
        tag = rows.cond_row.repeat_interleave(copies) if copies > 1 else rows.cond_row
        if not self._cond:
            tag = torch.zeros_like(tag)
        first = torch.arange(total, device=samples.device)
        inverse = first
        identity = samples if identity is None else identity
        discrete = not identity.is_floating_point()
        if self._merge and discrete:
            with self._cost.timed("kernels"):
                keys = rows.batch.keys if identity is rows.batch.x else None
                tagged = identity
                if self._cond:
                    tagged = torch.cat([identity, tag[:, None]], dim=1)
                    keys = None if keys is None else mix_tag(keys, tag)
                kept, inverse, count = ops.unique_rows(tagged, keys)
                first = kept[: int(count)]
        scores = torch.empty(first.shape[0], dtype=torch.float64, device=samples.device)
        missing = list(range(first.shape[0]))
        names: list[bytes] = []
        if self.remembers and discrete:
            names = row_bytes(identity[first], tag[first])
            known = [self._recall(name) for name in names]
            missing = [row for row, score in enumerate(known) if score is None]
            recalled = [np.nan if score is None else score for score in known]
            scores.copy_(torch.tensor(recalled, dtype=torch.float64))
        if missing:
            index = torch.tensor(missing, device=samples.device)
            fresh = self._call(samples[first[index]], tag[first[index]], time)
            scores[index] = fresh
            if names:
                self._known.update(
                    zip((names[row] for row in missing), fresh.tolist(), strict=True)
                )
                self._shrink(len(names[0]))
        self._check_finite(scores, samples[first], tag[first], first // copies, rows, step)
        return scores[inverse]

    @property
    def memory(self) -> dict[bytes, float]:
        """Remembered scores, to be carried into a resumed run."""
        return dict(self._known)

    def recall(self, memory: dict[bytes, float]) -> None:
        """Take over the scores remembered by an earlier part of the same run."""
        self._known.update(memory)

    def _call(self, samples: Tensor, tag: Tensor, time: float | None) -> Tensor:
        def model(index: Tensor) -> Tensor:
            arguments = [samples[index]]
            if time is not None:
                arguments.append(torch.full((len(index),), time, device=samples.device))
            cond = {name: value[tag[index]] for name, value in self._cond.items()}
            return checked_scores(self._function(*arguments, **cond), self._label, len(index))

        with self._cost.timed("reward"):
            scores = call_in_chunks(
                model,
                samples.shape[0],
                self._limits,
                self._cost,
                name=self._label,
                device=samples.device,
            )
        self._cost.reward_rows += samples.shape[0]
        return scores.to(samples.device)

    def _check_finite(
        self, scores: Tensor, samples: Tensor, tag: Tensor, owner: Tensor, rows: Rows, step: int
    ) -> None:
        invalid = ~scores.isfinite()
        if not bool(invalid.any()):
            return
        if self._reject:
            scores[invalid] = float("-inf")
            return
        row = int(invalid.nonzero()[0])
        label, score = self._label, float(scores[row])
        if hasattr(self._function, "components"):
            cond = {name: value[tag[row : row + 1]] for name, value in self._cond.items()}
            parts = self._function.components(samples[row : row + 1], **cond)
            wrong = [name for name, part in parts.items() if not bool(part.isfinite())]
            if wrong:
                label, score = f"{label} component {wrong[0]!r}", float(parts[wrong[0]])
        raise score_fault(label, score, step, rows.name(int(owner[row])))

    def _recall(self, name: bytes) -> float | None:
        score = self._known.get(name)
        if score is not None:
            self._known.move_to_end(name)
        return score

    def _shrink(self, key_bytes: int) -> None:
        most = self._cache_bytes // (key_bytes + 150)  # a dictionary entry costs about 150 bytes
        while len(self._known) > most:
            self._known.popitem(last=False)


def checked_scores(scores: Any, label: str, rows: int) -> Tensor:
    """What a reward or value returned for `rows` rows, as [rows] float64, or an error by name."""
    if not isinstance(scores, torch.Tensor):
        try:
            scores = torch.as_tensor(np.asarray(scores, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise DtypeError(
                f"{label} must return {rows} numbers (tensor, array or list), got "
                f"{type(scores).__name__}"
            ) from error
    if scores.dtype == torch.bool or scores.is_complex():
        raise DtypeError(f"{label} must return real numbers, got {scores.dtype}")
    if scores.shape != (rows,):
        hint = "; drop the last dimension with .squeeze(-1)" if scores.shape == (rows, 1) else ""
        raise ShapeError(
            f"{label} must return one number per row, [{rows}], got {list(scores.shape)}{hint}"
        )
    return scores.detach().double()
