"""Loops that numba compiles. Imported at first use, and alone in importing numba."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fastguide.errors import ArgumentError
from fastguide.rewards.compile_error import compile_error
from fastguide.rewards.fingerprint import fingerprint
from fastguide.rewards.wrapper import Array

# whether it comes with types depends on its version
numba: Any = importlib.import_module("numba")
# Each loop gets its own; see `_loop`.
attempt: Any = None


class Loop:
    """`score` of every row, compiled for rows of one dtype and rank.

    Attributes:
        score: the compiled per-sample function.

    Raises:
        ArgumentError: numba cannot compile the function, or it does not return a number.
    """

    def __init__(self, function: types.FunctionType, rows: Array, threads: int) -> None:
        self.score = numba.njit(boundscheck=True, nogil=True)(function)
        loop = _loop(self.score, function, parallel=threads > 1)
        arguments = rows, np.empty(1), np.empty(1, np.bool_)
        with _threads(threads):
            try:
                loop.compile(tuple(numba.typeof(argument) for argument in arguments))
            except Exception as error:
                raise self._explained(function, rows) from error
        self._run = loop

    def run(self, rows: Array, threads: int) -> tuple[Array, Array]:
        """Scores [B] float64 of rows [B, ...], and which rows raised nothing [B] bool."""
        scores, done = np.empty(len(rows)), np.zeros(len(rows), np.bool_)
        with _threads(threads):
            self._run(rows, scores, done)
        return scores, done

    def _explained(self, function: types.FunctionType, rows: Array) -> ArgumentError:
        score = numba.njit(function)  # afresh: numba keeps what it raised, with the loop around it
        try:
            score.compile((numba.typeof(rows[0]),))
        except Exception as error:
            return compile_error(function, error)
        kind = score.nopython_signatures[-1].return_type
        return compile_error(function, TypeError(f"It returns {kind}"), "return a number")


def score_rows(rows: Any, scores: Any, done: Any) -> None:
    for row in numba.prange(len(rows)):
        done[row] = attempt(rows, row, scores)


def _loop(score: Any, function: types.FunctionType, *, parallel: bool) -> Any:
    """`score_rows` under numba, over `score`; kept on disk beside the function's source.

    numba finds what it kept by file, line and name, and by a closure's cells, and forgets it when
    the file changes. So the loop takes over file and line of the function, the name tells apart
    whatever else determines the machine code, and `attempt` is a global: no two processes would
    see equal cells.
    """

    def attempt(rows: Any, row: Any, scores: Any) -> bool:
        # exceptions get lost in threads, and `try` would keep the loop from being parallel
        try:
            scores[row] = score(rows[row])
        except Exception:
            return False
        return True

    compiled = numba.njit(nogil=True)(attempt)
    globals_ = {"numba": numba, "attempt": compiled, "__name__": function.__module__}
    source = function.__code__
    mark = fingerprint(compiled)
    name = f"{function.__name__}_{mark}_{'threads' if parallel else 'serial'}"
    code = score_rows.__code__.replace(
        co_filename=source.co_filename, co_firstlineno=source.co_firstlineno, co_name=name
    )
    loop = types.FunctionType(code, globals_, name)
    loop.__qualname__ = name
    options = dict(parallel=parallel, nogil=True)
    if mark is None:
        return numba.njit(**options)(loop)
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # no source file, or nowhere to write
        return numba.njit(**options)(loop)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Inside, parallel loops have `threads` threads; outside, nothing has changed."""
    if threads == 1:
        yield
        return
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)
        # numba's OpenMP pool, where it starts, also sets the number that torch reads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
