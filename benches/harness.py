"""How every bench times: one thread, CPU seconds, providers interleaved.

Wall-clock medians on a shared machine are noise. CPU seconds of one thread, taken in turns so that
every provider meets the same minutes of the machine, repeat within a few per cent; the 5 % quantile
is the steadiest of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

ROUNDS = 40
WARM_UP = 3
# Two-thread wall-clock figures count only where the machine was quiet.
QUIET = 1.3


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: 5 % quantile, median and 95 % quantile over the rounds."""

    p05: float
    p50: float
    p95: float

    @property
    def quiet(self) -> bool:
        return self.p50 < QUIET * self.p05


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch and the kernels run with `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleaved(
    providers: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = ROUNDS,
    num_threads: int = 1,
) -> dict[str, Timing]:
    """Time every provider `rounds` times, in turns; who goes first moves on each round.

    One thread: CPU seconds of the calling thread. More: wall-clock seconds. Between two calls of
    one provider the others sweep the caches, as a denoiser does between two calls of an op.
    """
    clock = time.thread_time if num_threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    with threads(num_threads), torch.no_grad():
        for call in providers.values():
            for _ in range(WARM_UP):
                call()
        order = list(providers.items())
        for _ in range(rounds):
            order.append(order.pop(0))
            for name, call in order:
                start = clock()
                call()
                seconds[name].append(clock() - start)
    return {name: _quantiles(values) for name, values in seconds.items()}


def _quantiles(values: list[float]) -> Timing:
    values = sorted(values)
    last = len(values) - 1
    return Timing(values[round(0.05 * last)], values[round(0.5 * last)], values[round(0.95 * last)])


def table(record: Mapping[str, Any]) -> list[str]:
    """The lines that show one comparison."""
    head = f"{record['op']}: {record['setting']}"
    clock = "CPU time" if record["threads"] == 1 else "wall clock"
    lines = [head, f"  {record['threads']} thread(s), {clock}, {record['rounds']} rounds"]
    lines.append(f"  {'provider':34} {'p05 ms':>9} {'p50 ms':>9} {'x p05':>10} {'x p50':>10}")
    for name, row in record["providers"].items():
        due = f"   due {row['due']:g}x" if row.get("due") else ""
        noisy = "" if record["threads"] == 1 or row["quiet"] else "   not quiet: do not quote"
        lines.append(
            f"  {name:34} {row['p05_ms']:9.4f} {row['p50_ms']:9.4f} "
            f"{row['ratio_p05']:10.2f} {row['ratio_p50']:10.2f}{due}{noisy}"
        )
    return lines
