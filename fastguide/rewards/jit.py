"""A per-sample Python function, compiled to a parallel batch reward."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import os
import threading
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np
import torch

from fastguide.errors import ArgumentError, MissingExtraError
from fastguide.rewards.wrapper import (
    Array,
    Wrapper,
    name_of,
    score_each,
    to_rows,
    to_scores,
)

if TYPE_CHECKING:
    from fastguide.rewards.native import Loop

Tensor = torch.Tensor
Function = Callable[[Any], Any]

_log = logging.getLogger("fastguide")


@overload
def jit(function: Function, *, fallback: bool = ...) -> Jit: ...


@overload
def jit(function: None = ..., *, fallback: bool = ...) -> Callable[[Function], Jit]: ...


def jit(
    function: Function | None = None, *, fallback: bool = False
) -> Jit | Callable[[Function], Jit]:
    """Compile a per-sample score with numba into a reward of whole batches.

    The function gets one sample, a read-only NumPy array (tokens [L] of any integer type, or
    floats of any shape; half precision comes as float32), and returns a number. The reward takes
    samples [B, ...] and returns [B] float64 on their device; rows are scored on
    `torch.get_num_threads()` threads, in forked processes on one. Use it as `jit(score)` or as a
    decorator.

    It is compiled when a kind of samples first comes (about a second), and kept in `__pycache__`
    for later runs if the function comes from a file. Results are those of plain Python up to the
    rounding of NumPy's sums; an index out of bounds and a division by zero are errors.

    Args:
        function: score(sample) -> float, a function of one argument that numba can compile:
            numbers, loops, arrays, most of NumPy, and functions under `numba.njit`.
        fallback: where numba is absent or cannot compile the function, call it in plain Python
            instead of raising, which is 100 times slower or more.

    Raises:
        MissingExtraError: numba is not installed.
        ArgumentError: not a function of one argument; or, at the first call, numba cannot compile
            it: names the line and the reason.
        RewardError: at a call, the function raised; names the sample.
    """
    if function is None:
        return functools.partial(jit, fallback=fallback)
    return Jit(function, fallback)


class Jit(Wrapper):
    """What `jit` returns."""

    def __init__(self, function: Function, fallback: bool = False) -> None:
        function = getattr(function, "py_func", function)  # what numba.njit made is taken apart
        super().__init__(function)
        if not isinstance(function, types.FunctionType) or not _takes_one(function):
            raise ArgumentError(
                f"jit({name_of(function)}): expected a function of one argument, the sample; "
                "wrap what you have as `def score(sample): ...`"
            )
        if not fallback and not _has_numba():
            raise MissingExtraError(
                f"jit({self.__name__}) needs numba: pip install 'fastguide[numba]'; or pass "
                "fallback=True to run plain Python, 100 times slower or more"
            )
        self._function = function
        self._fallback = fallback
        self._loops: dict[tuple[str, int, bool], Loop | None] = {}

    def _recipe(self) -> tuple[Any, ...]:
        if not _has_numba():
            return Jit, (self._function, self._fallback)
        import numba

        # numba pickles functions that pickle cannot: lambdas, closures, those of a notebook
        return Jit, (numba.njit(self._function), self._fallback)

    def __call__(self, samples: Tensor | Array) -> Tensor:
        """Scores [B] float64 of samples [B, ...]."""
        rows = to_rows(samples, self)
        if len(rows) == 0:
            return to_scores(np.empty(0), samples)
        threads = torch.get_num_threads()
        # OpenMP pools do not survive a fork, and forked workers share the machine already
        parallel = threads > 1 and os.getpid() == _OWNER
        if parallel:
            with _LOCK:  # numba's fall-back thread pool aborts when it is entered twice
                scores = self._score(rows, threads)
        else:
            scores = self._score(rows, 1)
        return to_scores(scores, samples)

    def _score(self, rows: Array, threads: int) -> Array:
        kind = (rows.dtype.str, rows.ndim, threads > 1)
        if kind not in self._loops:
            self._loops[kind] = self._compile(rows, threads)
        loop = self._loops[kind]
        if loop is None:
            return score_each(self._function, rows, self.__name__, 0, len(rows))
        scores, done = loop.run(rows, threads)
        if not done.all():
            self._raise(loop, rows, int(done.argmin()))
        return scores

    def _compile(self, rows: Array, threads: int) -> Loop | None:
        """The loop over rows like these, or None for plain Python where that was asked for."""
        if not _has_numba():
            _log.warning("%r runs as plain Python: numba is not installed", self)
            return None
        from fastguide.rewards import native

        try:
            return native.Loop(self._function, rows, threads)
        except ArgumentError as error:
            if not self._fallback:
                raise
            _log.warning("%r runs as plain Python: %s", self, error)
            return None

    def _raise(self, loop: Loop, rows: Array, index: int) -> NoReturn:
        """Score one sample again, in plain Python, which knows the line, or else compiled."""
        with np.errstate(all="ignore"):
            for function in (self._function, loop.score):
                score_each(function, rows[index : index + 1], self.__name__, index, len(rows))
        raise AssertionError(f"{self!r}: sample {index} failed in the compiled loop alone")


# Forked processes have another id. The lock is theirs too, maybe held, so they leave it alone.
_OWNER = os.getpid()
_LOCK = threading.Lock()


def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _takes_one(function: Function) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True
