"""Times the ops on a GPU against a measured copy and plain PyTorch; one JSON record per setting.

    python -P benches/gpu_ops.py --out out/gpu-ops.json [--seconds 200]

Every setting asserts agreement before it is timed. CUDA events around single calls, providers in
turns, the L2 cache swept before each call; the 5 % quantile and the median are kept. Settings run
in the order of the list until the time is up; those left out are named in the record.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastguide import ops

ROUNDS = 60
WARM_UP = 5
CUDA = "cuda"
Call = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """One op at one size.

    Attributes:
        ours: the op into preallocated outputs.   bytes_moved: what it must read and write.
        rivals: by name.   agrees: raises unless the results are right.
    """

    op: str
    name: str
    ours: Call
    bytes_moved: int
    rivals: Mapping[str, Call] = field(default_factory=dict)
    agrees: Call = lambda: None


def quantiles(calls: Mapping[str, Call], flush: torch.Tensor) -> dict[str, dict[str, float]]:
    """Milliseconds of each call: 5 % quantile and median."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # The device is busy while the host queues the call: launch overhead stays outside.
            torch.cuda._sleep(400_000)
            start.record()
            call()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    found = {}
    for name, values in times.items():
        values.sort()
        found[name] = {"p05_ms": values[ROUNDS // 20], "p50_ms": values[ROUNDS // 2]}
    return found


def copy_bandwidth(flush: torch.Tensor) -> float:
    """Bytes read and written per second by a large device-to-device copy."""
    source = torch.empty(2**30, dtype=torch.uint8, device=CUDA)
    target = torch.empty_like(source)
    best = quantiles({"copy": lambda: target.copy_(source)}, flush)["copy"]["p05_ms"]
    return 2 * source.numel() / (best * 1e-3)


def chains(n: int) -> torch.Tensor:
    return torch.arange(n, device=CUDA)


def select_settings() -> Iterator[Setting]:
    for n, k, inner in ((1024, 16, 12_288), (256, 10, 200), (32, 10, 200)):
        values = torch.randn(n, k, device=CUDA)
        source = torch.randn(n, k, inner, device=CUDA)
        arguments: dict[str, Any] = dict(
            alpha=0.5, seed=1, chains=chains(n), step=3, gather=[source]
        )
        out = ops.select(values, **arguments)
        gathered, rows = torch.empty(n, inner, device=CUDA), chains(n) * k
        flat = source.view(n * k, inner)

        def eager(values=values, flat=flat, rows=rows, gathered=gathered) -> torch.Tensor:
            index = torch.multinomial(torch.softmax(values / 0.5, -1), 1)[:, 0]
            return torch.index_select(flat, 0, rows + index, out=gathered)

        def agrees(out=out, source=source, n=n) -> None:
            assert torch.equal(out.gathered[0], source[chains(n), out.index])

        yield Setting(
            "select",
            f"N={n} K={k} rows of {inner} float32",
            lambda v=values, a=arguments, o=out: ops.select(v, **a, out=o),
            2 * 4 * n * inner + 4 * n * k,
            {"softmax + multinomial + index_select": eager},
            agrees,
        )


def resample_settings() -> Iterator[Setting]:
    for groups, n, scheme in (
        (1, 1_000_000, "systematic"),
        (1, 1_000_000, "multinomial"),
        (4096, 16, "systematic"),
        (64, 1024, "systematic"),
        (64, 1024, "ssp"),
    ):
        log_w = torch.randn(groups, n, device=CUDA)
        arguments: dict[str, Any] = dict(seed=1, step=3, chains=chains(groups), scheme=scheme)
        out = ops.resample(log_w, **arguments)

        def eager(log_w=log_w, n=n) -> torch.Tensor:
            cdf = torch.softmax(log_w, -1, dtype=torch.float64).cumsum(-1)
            shift = torch.rand(len(cdf), 1, device=CUDA, dtype=torch.float64)
            grid = (torch.arange(n, device=CUDA) + shift) / n
            return torch.searchsorted(cdf, grid).clamp_(max=n - 1)

        def agrees(log_w=log_w, out=out, n=n, scheme=scheme) -> None:
            counts = torch.zeros_like(out.ancestors).scatter_add_(
                1, out.ancestors, torch.ones_like(out.ancestors)
            )
            due = n * torch.softmax(log_w.double(), -1)
            bound = (
                1 + 1e-6 if scheme in {"systematic", "ssp"} else 10 * float(due.max()) ** 0.5 + 10
            )
            assert float((counts - due).abs().max()) < bound

        yield Setting(
            "resample",
            f"G={groups} N={n} {scheme}",
            lambda w=log_w, a=arguments, o=out: ops.resample(w, **a, out=o),
            12 * groups * n,
            {"softmax + cumsum + searchsorted": eager} if scheme == "systematic" else {},
            agrees,
        )


def unique_settings() -> Iterator[Setting]:
    for rows, distinct, length in ((2560, 600, 50), (100_000, 30_000, 200)):
        pool = torch.randint(0, 4, (distinct, length), device=CUDA)
        x = pool[torch.randint(0, distinct, (rows,), device=CUDA)]
        keys = ops.masked_keys(x)
        out = ops.unique_rows(x, keys)

        def agrees(x=x, out=out) -> None:
            assert torch.equal(x[out.first][out.inverse], x)
            assert int(out.count) == len(torch.unique(x, dim=0))

        yield Setting(
            "unique_rows",
            f"R={rows} L={length} about {distinct} distinct",
            lambda x=x, keys=keys, out=out: ops.unique_rows(x, keys, out=out),
            8 * rows * length + 16 * rows + 16 * rows,
            {"torch.unique(dim=0)": lambda x=x: torch.unique(x, dim=0, return_inverse=True)},
            agrees,
        )


def masked_settings() -> Iterator[Setting]:
    for n, length, vocab, k in ((256, 200, 5, 10), (64, 128, 50_258, 10)):
        x = torch.full((n, length), vocab, device=CUDA)
        x[:, ::2] = 0
        logits = torch.randn(n, length, vocab, device=CUDA)
        keys = ops.masked_keys(x)
        arguments: dict[str, Any] = dict(
            mask_token=vocab, rho=1 / 64, seed=1, chains=chains(n), step=3, num_candidates=k
        )
        out = ops.masked_propose(logits, x, keys, **arguments)

        def agrees(x=x, keys=keys, out=out) -> None:
            assert bool(((out.tokens == x[:, None]) | (x[:, None] == x.max())).all())

        revealing = length / 2 * (1 - (1 - 1 / 64) ** k)
        yield Setting(
            "masked_propose",
            f"N={n} L={length} V={vocab} K={k} half masked rho=1/64",
            lambda z=logits, x=x, s=keys, a=arguments, o=out: ops.masked_propose(
                z, x, s, **a, out=o
            ),
            int(n * (8 * length * (k + 1) + 4 * vocab * revealing)),
            {},
            agrees,
        )


def gaussian_settings() -> Iterator[Setting]:
    n, k, size = 64, 8, 12_288
    x, output = torch.randn(n, size, device=CUDA), torch.randn(n, size, device=CUDA)
    arguments: dict[str, Any] = dict(
        a=0.9, b=0.1, s=0.3, seed=1, chains=chains(n), step=3, num_candidates=k
    )
    out = ops.gaussian_propose(x, output, **arguments)
    target = out[0]

    def eager() -> torch.Tensor:
        mean = 0.9 * x[:, None] + 0.1 * output[:, None]
        return mean + 0.3 * torch.randn(n, k, size, device=CUDA)

    def agrees() -> None:
        noise = (target - (0.9 * x + 0.1 * output)[:, None]) / 0.3
        assert abs(float(noise.mean())) < 0.01
        assert abs(float(noise.std()) - 1) < 0.01

    yield Setting(
        "gaussian_propose",
        f"N={n} K={k} D={size} float32",
        lambda: ops.gaussian_propose(x, output, **arguments, out=out),
        4 * n * size * (k + 2),
        {"randn + arithmetic": eager, "the same under torch.compile": torch.compile(eager)},
        agrees,
    )


GROUPS = (
    select_settings,
    resample_settings,
    unique_settings,
    masked_settings,
    gaussian_settings,
)


def measure(seconds: float) -> dict[str, Any]:
    """Every setting that the time allows."""
    began = time.monotonic()
    flush = torch.empty(2**28, dtype=torch.uint8, device=CUDA)
    copy = copy_bandwidth(flush)
    records: list[dict[str, Any]] = []
    skipped: list[str] = []
    for group in GROUPS:
        if time.monotonic() - began > seconds:
            skipped.append(group.__name__)
            continue
        try:
            for setting in group():
                records.append(_record(setting, copy, flush))
        except Exception as error:  # one op that fails must not lose the record of the others
            records.append({"op": group.__name__, "error": f"{type(error).__name__}: {error}"})
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "copy_gb_per_s": copy / 1e9,
        "backends": {op: list(state) for op, state in ops.backends(CUDA).items()},
        "records": records,
        "out_of_time": skipped,
    }


def _record(setting: Setting, copy: float, flush: torch.Tensor) -> dict[str, Any]:
    setting.agrees()
    with ops.deferred_faults(CUDA):
        times = quantiles({"fastguide": setting.ours, **setting.rivals}, flush)
    ours = times["fastguide"]["p05_ms"]
    return {
        "op": setting.op,
        "setting": setting.name,
        "bytes": setting.bytes_moved,
        "gb_per_s": setting.bytes_moved / ours / 1e6,
        "share_of_copy": setting.bytes_moved / (ours * 1e-3) / copy,
        "times": times,
        "ratios_p05": {name: t["p05_ms"] / ours for name, t in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/gpu-ops.json"))
    parser.add_argument("--seconds", type=float, default=200.0)
    arguments = parser.parse_args()
    record = measure(arguments.seconds) if torch.cuda.is_available() else {"device": None}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    for row in record.get("records", []):
        if "error" in row:
            print(f"{row['op']}: {row['error']}")
            continue
        rivals = ", ".join(
            f"{r:.2f}x {n}" for n, r in row["ratios_p05"].items() if n != "fastguide"
        )
        print(
            f"{row['op']:16} {row['setting']:44} {row['times']['fastguide']['p05_ms']:8.4f} ms "
            f"{row['gb_per_s']:7.0f} GB/s ({100 * row['share_of_copy']:.0f} % of copy) {rivals}"
        )


if __name__ == "__main__":
    main()
