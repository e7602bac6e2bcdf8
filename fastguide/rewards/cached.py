"""A reward that remembers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fastguide.errors import ArgumentError, DtypeError, ShapeError
from fastguide.rewards.wrapper import Array, Wrapper, name_of, to_rows, to_scores

Tensor = torch.Tensor

ENTRY_BYTES = 200
"""What Python keeps per remembered sample besides its tokens."""


def cached(function: Callable[..., Any], *, max_bytes: int = 2**28) -> Cached:
    """Remember the rewards of integer samples, across calls and runs of this process.

    A run remembers already what it meets. This is for what several runs meet: other seeds,
    other methods, a sweep of alpha. Each call passes on only the distinct samples that are not
    known, in order of first appearance, and nothing where all are known.

    Args:
        function: callable(samples [B, ...]) -> [B] numbers; if it has methods `soft` or
            `components`, so has the result.
        max_bytes: memory for samples and scores, about; the least recently used are forgotten.

    Raises:
        ArgumentError: max_bytes < 1, or the function is not deterministic, or needs conditioning.
        DtypeError: at a call, samples are not integers, or the function did not return numbers.
        ShapeError: at a call, the function did not return one number per sample.
    """
    return Cached(function, max_bytes)


class Cached(Wrapper):
    """What `cached` returns. Pickles without its memory."""

    def __init__(self, function: Callable[..., Any], max_bytes: int) -> None:
        super().__init__(function)
        if max_bytes < 1:
            raise ArgumentError(f"max_bytes must be at least 1, got {max_bytes}")
        if not self.deterministic:
            raise ArgumentError(
                f"cached({self.__name__}): the function has deterministic=False, so a remembered "
                "score would not be that of the next call; use it without cached"
            )
        for name in ("soft", "components"):
            if callable(getattr(function, name, None)):
                setattr(self, name, getattr(function, name))
        self._function = function
        self._max_bytes = max_bytes
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def _recipe(self) -> tuple[Any, ...]:
        return Cached, (self._function, self._max_bytes)

    def __call__(self, samples: Tensor | Array) -> Tensor:
        """Scores [B] float64 of integer samples [B, ...]."""
        rows = to_rows(samples, self)
        if rows.dtype.kind == "f":
            raise DtypeError(
                f"{self!r}: only integer samples can be remembered, got {rows.dtype}; equal "
                "floating-point samples hardly ever come back, so leave cached out"
            )
        names = _names(rows)
        scores: dict[bytes, float] = {}
        unknown: dict[bytes, int] = {}
        for index, name in enumerate(names):
            if name in self._known:
                self._known.move_to_end(name)
                scores[name] = self._known[name]
            else:
                unknown.setdefault(name, index)
        if unknown:
            fresh = self._call(samples, list(unknown.values()))
            scores.update(zip(unknown, fresh, strict=True))
            self._known.update(zip(unknown, fresh, strict=True))
            while len(self._known) * (len(names[0]) + ENTRY_BYTES) > self._max_bytes:
                self._known.popitem(last=False)
        return to_scores(np.array([scores[name] for name in names], np.float64), samples)

    def _call(self, samples: Tensor | Array, index: list[int]) -> list[float]:
        found = self._function(samples[index])
        if isinstance(found, Tensor):
            found = found.detach().cpu()
        try:
            found = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DtypeError(
                f"{self!r}: {name_of(self._function)} must return {len(index)} numbers (tensor, "
                f"array or list), got {type(found).__name__}"
            ) from error
        if found.shape != (len(index),):
            raise ShapeError(
                f"{self!r}: {name_of(self._function)} must return one number per sample, "
                f"[{len(index)}], got {list(found.shape)}"
            )
        scores: list[float] = found.tolist()
        return scores


def _names(rows: Array) -> list[bytes]:
    """Each row's integers and shape as bytes: an exact dictionary key."""
    data = rows.astype(np.int64, copy=False).tobytes()
    shape = str(rows.shape[1:]).encode()
    width = 8 * int(np.prod(rows.shape[1:]))
    return [data[row * width : (row + 1) * width] + shape for row in range(len(rows))]
