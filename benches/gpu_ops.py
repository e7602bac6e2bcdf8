"""Times the ops on a GPU against a measured copy and plain PyTorch; one JSON record per setting.

    python benches/gpu_ops.py --out out/gpu-ops.json [--seconds 200]

Every setting asserts agreement before it is timed. CUDA events around single calls, providers in
turns, the L2 cache swept before each call; the 5 % quantile and the median are kept. A setting's
ceiling is the slowest of what it cannot beat: a copy of as many bytes, or its arithmetic alone.
Settings run in the order of the list until the time is up; those left out are named in the record.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from device_settings import GROUPS, Call, Place, Setting

from fastguide import ops

ROUNDS = 60
WARM_UP = 5
CUDA = "cuda"
COPY = "copy"


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
    best = quantiles({COPY: lambda: target.copy_(source)}, flush)[COPY]["p05_ms"]
    return 2 * source.numel() / (best * 1e-3)


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
            for setting in group(Place()):
                records.append(record_of(setting, copy, flush))
        except Exception as error:  # one op that fails must not lose the record of the others
            records.append({"op": group.__name__, "error": f"{type(error).__name__}: {error}"})
        torch.cuda.empty_cache()
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "copy_gb_per_s": copy / 1e9,
        "backends": {op: list(state) for op, state in ops.backends(CUDA).items()},
        "records": records,
        "out_of_time": skipped,
    }


def record_of(setting: Setting, copy: float, flush: torch.Tensor) -> dict[str, Any]:
    """What was measured; `copy`: bytes per second."""
    setting.agrees()
    with ops.use_backend(setting.backend), ops.deferred_faults(CUDA):
        calls = {"fastguide": setting.ours, **setting.rivals, **setting.ceilings}
        times = quantiles(calls, flush)
    best = {name: time["p05_ms"] for name, time in times.items()}
    ours = best["fastguide"]
    ceilings = {COPY: setting.bytes_moved / copy * 1e3}
    ceilings |= {name: best[name] for name in setting.ceilings}
    binding = max(ceilings, key=lambda name: ceilings[name])
    return {
        "op": setting.op,
        "setting": setting.name,
        "backend": setting.backend or ops.backends(CUDA)[setting.op][0],
        "bytes": setting.bytes_moved,
        "gb_per_s": setting.bytes_moved / ours / 1e6,
        "ceilings_ms": ceilings,
        "binding": binding,
        "share_of_ceiling": ceilings[binding] / ours,
        "times": times,
        "ratios_p05": {name: best[name] / ours for name in setting.rivals},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/gpu-ops.json"))
    parser.add_argument("--seconds", type=float, default=200.0)
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        record = measure(arguments.seconds)
    else:
        record = {"device": None}
        print("no CUDA device: nothing was timed")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    for row in record.get("records", []):
        if "error" in row:
            print(f"{row['op']}: {row['error']}")
            continue
        rivals = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in row["ratios_p05"].items())
        print(
            f"{row['op']:16} {row['backend']:6} {row['setting']:44} "
            f"{row['times']['fastguide']['p05_ms']:8.4f} ms {row['gb_per_s']:7.0f} GB/s "
            f"({100 * row['share_of_ceiling']:.0f} % of {row['binding']}) {rivals}"
        )


if __name__ == "__main__":
    main()
