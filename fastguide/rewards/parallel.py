"""A per-sample Python function on several processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import numpy as np
import torch

from fastguide.errors import ArgumentError, RewardError
from fastguide.rewards.wrapper import Array, Wrapper, score_each, to_rows, to_scores

Tensor = torch.Tensor


def parallel(
    function: Callable[[Any], Any], *, workers: int | None = None, chunk: int | None = None
) -> Parallel:
    """Score samples with a per-sample Python function in worker processes.

    For functions that numba cannot compile (see `jit`) and that take a millisecond or more. The
    workers start with the first call, one or two seconds, and stay until `close()`, the end of a
    `with` block, or of the program. They are fresh processes (spawn), so the function must be
    defined at the top of a module that they can import, and a script that uses it needs the
    customary `if __name__ == "__main__":`. Torch has one thread in each.

    Args:
        function: score(sample) -> float; the sample is a NumPy array [...].
        workers: processes; None for one on each processor.
        chunk: samples in one task; None for four tasks a worker.

    Raises:
        ArgumentError: workers or chunk < 1; or, at the first call, the function cannot be pickled.
        RewardError: at a call, the function raised, and on which sample; or a worker died. The
            workers end, and the next call starts new ones.
    """
    return Parallel(function, workers, chunk)


class Parallel(Wrapper):
    """What `parallel` returns. Pickles without its processes."""

    def __init__(
        self, function: Callable[[Any], Any], workers: int | None = None, chunk: int | None = None
    ) -> None:
        super().__init__(function)
        for name, value in (("workers", workers), ("chunk", chunk)):
            if value is not None and value < 1:
                raise ArgumentError(f"{name} must be at least 1 or None, got {value}")
        self._function = function
        self._workers = workers
        self._chunk = chunk
        self._pool: ProcessPoolExecutor | None = None

    def _recipe(self) -> tuple[Any, ...]:
        return Parallel, (self._function, self._workers, self._chunk)

    def __call__(self, samples: Tensor | Array) -> Tensor:
        """Scores [B] float64 of samples [B, ...]."""
        rows = to_rows(samples, self)
        total = len(rows)
        scores = np.empty(total)
        if total == 0:
            return to_scores(scores, samples)
        workers = self._workers or _processors()
        chunk = self._chunk or max(1, math.ceil(total / (4 * workers)))
        try:
            pool = self._start(workers)
            tasks = [
                (first, pool.submit(_score, rows[first : first + chunk], first, total))
                for first in range(0, total, chunk)
            ]
            for first, task in tasks:
                scores[first : first + chunk] = task.result()
        except BrokenProcessPool as error:
            self._kill()
            raise RewardError(
                f"{self!r}: a worker process died. It may have run out of memory or crashed: call "
                f"{self.__name__} on these samples in this process. Or it could not start: a "
                "script that calls this needs `if __name__ == '__main__':` around its main part"
            ) from error
        except BaseException:  # KeyboardInterrupt too
            self._kill()
            raise
        return to_scores(scores, samples)

    def _start(self, workers: int) -> ProcessPoolExecutor:
        if self._pool is None:
            try:
                pickled = pickle.dumps(self)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ArgumentError(
                    f"{self!r}: worker processes cannot import the function ({error}); define it "
                    "with def at the top of a module"
                ) from error
            self._pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), _prepare, (pickled,)
            )
        return self._pool

    def _kill(self) -> None:
        """End the workers, whatever they are doing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def __enter__(self) -> Parallel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_pickled = b""
_reward: Parallel | None = None


def _prepare(pickled: bytes) -> None:
    """In a worker, before its first task."""
    global _pickled
    _pickled = pickled
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the workers


def _score(rows: Array, first: int, total: int) -> Array:
    """In a worker: scores of some of a batch's rows."""
    global _reward
    if _reward is None:
        try:
            _reward = pickle.loads(_pickled)
        except (AttributeError, ImportError) as error:
            raise RewardError(
                f"parallel: a worker process cannot import the function: {error}; define it with "
                "def at the top of a module, in a file"
            ) from error
    return score_each(_reward._function, rows, _reward.__name__, first, total)
