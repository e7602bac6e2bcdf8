"""What the wrappers share: rows on the host, checks, names, pickling."""

from __future__ import annotations

import functools
import operator
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastguide.errors import ArgumentError, DtypeError, RewardError, ShapeError

Tensor = torch.Tensor
Array = NDArray[Any]


class Wrapper:
    """A reward made of a function, under the function's name, doc string and attributes.

    Attributes:
        deterministic: as the function says, True if it does not.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        kind = type(self).__name__.lower()
        if not callable(function):
            raise DtypeError(f"{kind}: expected a function, got {type(function).__name__}")
        if getattr(function, "needs_cond", False):
            raise ArgumentError(
                f"{kind}({name_of(function)}): the function has needs_cond=True, but only samples "
                "are passed on; put the conditioning into the function, or do without the wrapper"
            )
        for name in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(function, name):
                setattr(self, name, getattr(function, name))
        self.__name__ = name_of(function)
        self.deterministic = bool(getattr(function, "deterministic", True))

    def __reduce__(self) -> str | tuple[Any, ...]:
        """By name where the name leads here (a decorated function), else by what it was made of."""
        name: str = getattr(self, "__qualname__", "")
        try:
            found = operator.attrgetter(name)(sys.modules[self.__module__])
        except (AttributeError, KeyError):
            found = None
        return name if found is self else self._recipe()

    def _recipe(self) -> tuple[Any, ...]:
        """(callable, arguments) that make an equal wrapper."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()}({self.__name__})"


def name_of(function: Callable[..., Any]) -> str:
    """How messages name a function."""
    return getattr(function, "__name__", None) or type(function).__name__


def to_rows(samples: Tensor | Array, owner: Wrapper) -> Array:
    """Samples [B, ...] as a contiguous read-only array on the host; half precision as float32.

    Raises:
        ShapeError: not a batch.   DtypeError: not numbers.
    """
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        if samples.dtype == torch.bfloat16:
            samples = samples.float()
        array = samples.numpy()
    else:
        array = np.asarray(samples)
    array = np.ascontiguousarray(array, np.float32 if array.dtype == np.float16 else None)
    if array.ndim < 2:
        raise ShapeError(
            f"{owner!r}: samples must be a batch [B, ...], got {list(array.shape)}; pass one "
            "sample x as x[None]"
        )
    if array.dtype.kind not in "biuf":
        raise DtypeError(f"{owner!r}: samples must be real numbers, got {array.dtype}")
    array = array.view()
    array.flags.writeable = False
    return array


def to_scores(scores: Array, samples: Tensor | Array) -> Tensor:
    """Scores [B] float64 as a tensor beside the samples."""
    found = torch.from_numpy(scores)
    return found.to(samples.device) if isinstance(samples, Tensor) else found


def score_each(
    function: Callable[..., Any], rows: Array, owner: str, first: int, total: int
) -> Array:
    """function(row) of rows [B, ...], one by one: [B] float64.

    Raises:
        RewardError: names the sample, which is row `first` + i of `total`.
    """
    scores = np.empty(len(rows))
    for index, row in enumerate(rows):
        try:
            scores[index] = _number(function(row))
        except Exception as error:
            raise _sample_error(owner, error, row, first + index, total) from error
    return scores


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"it returned {value!r}, where a number is due") from None


def _sample_error(owner: str, error: Exception, row: Array, index: int, total: int) -> RewardError:
    """What went wrong with which sample, and in which line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{f.filename}:{f.lineno}: {f.line}" for f in frames if f.filename != __file__]
    shown = np.array2string(row, threshold=64, max_line_width=10**6, separator=", ")
    return RewardError(
        f"{owner} raised {type(error).__name__} on sample {index} of {total}: {error}\n"
        + (f"  {lines[-1]}\n" if lines else "")
        + f"  sample {index}: {shown}"
    )
