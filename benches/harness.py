"""How every bench times: one thread, CPU seconds, providers interleaved.

Wall-clock medians on a shared machine are noise. CPU seconds of the process, taken in turns so that
every provider meets the same minutes of the machine, repeat within a few per cent; the 5 % quantile
is the steadiest of them. They count every thread, so nobody gains by handing work to another one.

Next to the rivals every op meets its own reference, and a copy of as many bytes as the op has to
move: what an implementation moves in a second stands beside what that copy moves, in the same
rounds and from the same caches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastguide import ops
from fastguide.kernels import cpu

HERE = Path(__file__).resolve().parent
ROUNDS = 40
WARM_UP = 3
# Two-thread wall-clock figures count only where the machine was quiet.
QUIET = 1.3
REFERENCE = "reference backend"
COPY = "copy of as many bytes"

RECORDS: list[dict[str, Any]] = []
"""Every comparison of this session, for the tables after the run and the JSON."""


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
    warm_up: int = WARM_UP,
) -> dict[str, Timing]:
    """Time every provider `rounds` times, in turns; who goes first moves on each round.

    One thread: CPU seconds of the process. More: wall-clock seconds. Between two calls of one
    provider the others sweep the caches, as a denoiser does between two calls of an op.
    """
    clock = time.process_time if num_threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    with threads(num_threads), torch.no_grad():
        for call in providers.values():
            for _ in range(warm_up):
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


def num_bytes(*values: Any) -> int:
    """Bytes of the tensors in `values`, in tuples and lists too; None counts nothing."""
    total = 0
    for value in values:
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
        elif value is not None:
            total += num_bytes(*value)
    return total


def copy_of(bytes_moved: int) -> Callable[[], torch.Tensor]:
    """A copy that reads and writes `bytes_moved` bytes in all."""
    source = torch.ones(bytes_moved // 8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def by_reference(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` with its ops served by the reference backend."""

    def run() -> Any:
        with ops.use_backend("reference"):
            return call()

    return run


def measured(
    op: str,
    setting: str,
    ours: Callable[[], Any],
    rivals: Mapping[str, Callable[[], Any]],
    *,
    bytes_moved: int,
    reference: Callable[[], Any] | None = None,
    due: Mapping[str, float] | None = None,
    rounds: int = ROUNDS,
    num_threads: int = 1,
) -> dict[str, Any]:
    """Time ours against rivals, its reference and a copy; returns the record (see `compared`).

    bytes_moved: what any implementation has to read and write (`num_bytes`), which need not be what
    a rival does move.   reference: the call that the reference backend serves, where ours is a
    plan, which has its backend.   due: by rival, the ratio that the project promises.
    """
    providers = {
        "fastguide": ours,
        **rivals,
        REFERENCE: by_reference(reference or ours),
        COPY: copy_of(bytes_moved),
    }
    timings = interleaved(providers, rounds=rounds, num_threads=num_threads)
    return compared(
        op,
        setting,
        timings,
        bytes_moved=bytes_moved,
        due=due,
        rounds=rounds,
        num_threads=num_threads,
    )


def at_level(level: str, module: str) -> dict[str, Any]:
    """The record of `comparison()` of a bench module with FASTGUIDE_CPU=level, in a new process."""
    code = (
        f"import json, {module}; from harness import measured; "
        f"print(json.dumps(measured(**{module}.comparison())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=HERE,
        env={**os.environ, "FASTGUIDE_CPU": level},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compared(
    op: str,
    setting: str,
    timings: Mapping[str, Timing],
    *,
    bytes_moved: int | None = None,
    due: Mapping[str, float] | None = None,
    rounds: int = ROUNDS,
    num_threads: int = 1,
) -> dict[str, Any]:
    """The record of one comparison: times in ms, every provider's time over fastguide's, GB/s of
    `bytes_moved`, and the share of what the copy among `timings` reaches."""
    base = timings["fastguide"]
    record: dict[str, Any] = {
        "op": op,
        "setting": setting,
        "instruction_set": cpu.cpu_level(),
        "threads": num_threads,
        "rounds": rounds,
        "bytes": bytes_moved,
        "providers": {
            name: {
                "p05_ms": 1e3 * t.p05,
                "p50_ms": 1e3 * t.p50,
                "p95_ms": 1e3 * t.p95,
                "ratio_p05": t.p05 / base.p05,
                "ratio_p50": t.p50 / base.p50,
                "quiet": t.quiet,
                "due": (due or {}).get(name),
            }
            for name, t in timings.items()
        },
    }
    if bytes_moved is not None:
        for name, row in record["providers"].items():
            row["gb_per_s"] = 1e-9 * bytes_moved / timings[name].p05
            row["share_of_copy"] = timings[COPY].p05 / timings[name].p05
    return record


def table(record: Mapping[str, Any]) -> list[str]:
    """The lines that show one comparison."""
    clock = "CPU time" if record["threads"] == 1 else "wall clock"
    about = [f"{record['threads']} thread(s)", clock, f"{record['rounds']} rounds"]
    about.append(record["instruction_set"])
    width = max(map(len, record["providers"]))
    head = f"  {'provider':{width}} {'p05 ms':>9} {'p50 ms':>9} {'x p05':>8} {'x p50':>8}"
    if record["bytes"] is not None:
        about.append(f"{record['bytes'] / 1e6:,.3g} MB to move")
        head += f" {'GB/s':>7} {'of copy':>8}"
    lines = [f"{record['op']}: {record['setting']}", "  " + ", ".join(about), head]
    for name, row in record["providers"].items():
        line = (
            f"  {name:{width}} {row['p05_ms']:9.4f} {row['p50_ms']:9.4f} "
            f"{row['ratio_p05']:8.2f} {row['ratio_p50']:8.2f}"
        )
        if record["bytes"] is not None:
            line += f" {row['gb_per_s']:7.2f} {row['share_of_copy']:8.1%}"
        if row["due"]:
            line += f"   due {row['due']:g}x"
        lines.append(line + _doubt(record, row))
    return lines


def _doubt(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return "" if record["threads"] == 1 or row["quiet"] else "   not quiet: do not quote"


def promises(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for every ratio that is due; those that miss it, or come closest to it, first."""
    found = [
        (row["ratio_p05"] / row["due"], record, name, row)
        for record in records
        for name, row in record["providers"].items()
        if row["due"]
    ]
    found.sort(key=lambda each: each[0])
    return [
        f"{row['ratio_p05']:9.2f}x, due {row['due']:g}x: {record['op']} "
        f"({record['setting'].splitlines()[0]}, {record['instruction_set']}) "
        f"against {name}{_doubt(record, row)}"
        for _, record, name, row in found
    ]
