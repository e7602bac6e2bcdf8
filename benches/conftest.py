"""The `compare` fixture, the tables after the run, and the JSON that `make bench` keeps."""

from __future__ import annotations

import datetime
import json
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import RECORDS, ROUNDS, measured, promises, table, threads

from fastguide import ops

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """torch.compile and the packages of rivals warn about matters of their own."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture
def compare(benchmark: Any) -> Callable[..., None]:
    """Time ours against rivals (`harness.measured`) and keep the record.

    The record goes to the tables after the run and to the JSON; pytest-benchmark's own table times
    ours alone, with warm caches.
    """

    def run(
        op: str,
        setting: str,
        ours: Callable[[], Any],
        rivals: Mapping[str, Callable[[], Any]],
        *,
        rounds: int = ROUNDS,
        num_threads: int = 1,
        **details: Any,
    ) -> None:
        details |= dict(rounds=rounds, num_threads=num_threads)
        record = measured(op, setting, ours, rivals, **details)
        RECORDS.append(record)
        benchmark.extra_info.setdefault("records", []).append(record)
        with threads(num_threads):
            benchmark.pedantic(ours, rounds=rounds, warmup_rounds=1)

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for record in RECORDS:
        terminalreporter.write_line("")
        for line in table(record):
            terminalreporter.write_line(line)
    terminalreporter.write_line("")
    for line in promises(RECORDS):
        terminalreporter.write_line(line)


def cpu_name() -> str:
    """Model of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def revision() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else "unversioned"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """`make bench` asks pytest-benchmark for JSON; then the comparisons are kept by machine."""
    if not RECORDS or not session.config.getoption("benchmark_json", None):
        return
    slug = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    folder = HERE / "results" / slug
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    content = {
        "cpu": cpu_name(),
        "instruction_set": ops.backends()["select"][1],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "revision": revision(),
        "time": now.isoformat(timespec="seconds"),
        "records": RECORDS,
    }
    file = folder / f"{now:%Y%m%d-%H%M%S}-{revision()}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
