"""What a machine with a GPU and no package registry can say about this tree, in one JSON file.

Installs the tree beside itself, runs the tests marked `gpu`, then the GPU benches (the other
benches/gpu_*.py), then compute-sanitizer where there is one. Ends within 9 minutes: each step gets
what the ones before left, and a step that runs out of time is stopped and named. Exit code 0: every
step passed. Without a GPU the tests skip, the benches stay away, and the record says so.

    python3 benches/gpu_check.py [--out out/gpu-check.json] [--seconds 520]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "gpu-check" / "site"
PACKAGES = ("torch", "triton", "cupy-cuda13x", "cupy-cuda12x", "numpy", "xformers", "tyro")
TAIL = 20_000
"""Characters of a step's output that the record keeps."""

FACTS = """
import json, torch
found = {"available": torch.cuda.is_available(), "torch_cuda": torch.version.cuda}
if found["available"]:
    p = torch.cuda.get_device_properties(0)
    found.update(name=p.name, capability=[p.major, p.minor])
    found["multiprocessors"] = p.multi_processor_count
    found["memory_gib"] = p.total_memory / 2**30
    from fastguide import ops
    found["backends"] = {op: list(state) for op, state in ops.backends("cuda").items()}
print(json.dumps(found))
"""


class Checks:
    """Runs the steps within the time, and keeps their record."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self.steps: list[dict[str, Any]] = []

    def left(self) -> float:
        """Seconds until the end."""
        return self._deadline - time.monotonic()

    def run(
        self, name: str, command: list[str], *, seconds: float, reserve: float = 0.0
    ) -> dict[str, Any]:
        """Run one step for at most `seconds`, leaving `reserve` to the steps after it."""
        began, limit = time.monotonic(), min(seconds, self.left() - reserve)
        step: dict[str, Any] = {"step": name, "command": command}
        self.steps.append(step)
        print(f"== {name}", flush=True)
        if limit < 5:
            step.update(ok=False, result="no time left", output="")
            return step
        # -P and PYTHONPATH: the installed copy is imported, not the source tree, which has no
        # extension.
        environment = {**os.environ, "PYTHONPATH": str(SITE), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit,
            )
            output, code = done.stdout, done.returncode
            step.update(ok=code == 0, result=f"exit code {code}")
        except subprocess.TimeoutExpired as late:
            output = late.stdout or b""
            step.update(ok=False, result=f"stopped after {limit:.0f} s")
        step["output"] = output.decode(errors="replace")[-TAIL:]
        step["seconds"] = round(time.monotonic() - began, 1)
        print(step["output"], flush=True)
        print(f"-- {name}: {step['result']} ({step['seconds']} s)", flush=True)
        return step


def gpu_tests() -> list[str]:
    """Files with tests marked `gpu`. Others may need packages that such a machine lacks."""
    found = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"\bmark\.gpu\b", path.read_text(encoding="utf-8"))
    ]
    return found or ["tests"]


def versions() -> dict[str, str]:
    """What is installed on this machine."""

    def installed() -> Iterator[tuple[str, str]]:
        for name in PACKAGES:
            try:
                yield name, importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                yield name, "absent"

    return {"python": platform.python_version(), "system": platform.platform(), **dict(installed())}


def facts(checks: Checks) -> dict[str, Any]:
    """The device, as the installed package sees it."""
    step = checks.run("device", [sys.executable, "-P", "-c", FACTS], seconds=90)
    try:
        found: dict[str, Any] = json.loads(step["output"].strip().splitlines()[-1])
    except (IndexError, ValueError):
        found = {"available": False}
    return found


def read(path: Path) -> Any:
    """What a bench wrote, or None."""
    return json.loads(path.read_text()) if path.is_file() else None


def counts(output: str) -> dict[str, int]:
    """{"passed": 3, "skipped": 2} from the last line of a run of the tests."""
    last = output.strip().splitlines()[-1:]
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?)", "".join(last))
    return {what: int(number) for number, what in found}


def left_out(record: dict[str, Any], step: str, why: str) -> None:
    """Say which step did not run, and why."""
    print(f"-- {step}: left out: {why}", flush=True)
    record["left_out"][step] = why


def check(checks: Checks, record: dict[str, Any]) -> None:
    """All steps in order; `record` is filled as they end."""
    python = [sys.executable, "-P"]
    scratch = SITE.parent
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    install = [*python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    install += ["--quiet", "--disable-pip-version-check", "--target", str(SITE), str(ROOT)]
    if not checks.run("install", install, seconds=180)["ok"]:
        return
    record["device"] = facts(checks)
    has_gpu = bool(record["device"]["available"])
    tests = [*python, "-m", "pytest", "-m", "gpu", "-q", "-ra", "--durations", "10"]
    # Warnings of other versions of torch or Triton are no fault of this tree.
    tests += ["-o", "filterwarnings=default", "-p", "no:cacheprovider", *gpu_tests()]
    step = checks.run("tests", tests, seconds=240, reserve=100)
    record["tests"] = counts(step["output"])
    registers = scratch / "registers.json"
    capability = record["device"].get("capability", [9, 0])
    command = [*python, "benches/cuda_registers.py", "--out", str(registers)]
    command += ["--architectures", "sm_{}{}".format(*capability)]
    checks.run("registers", command, seconds=60, reserve=60)
    record["registers"] = read(registers)
    if not has_gpu:
        left_out(record, "benches", "no CUDA device")
        left_out(record, "sanitizer", "no CUDA device")
        return
    for script in sorted(set((ROOT / "benches").glob("gpu_*.py")) - {Path(__file__).resolve()}):
        out = scratch / f"{script.stem}.json"
        seconds = min(150.0, max(20.0, checks.left() - 60))
        # Not -P: what a bench imports lies beside it.
        command = [sys.executable, str(script), "--out", str(out), "--seconds", str(seconds)]
        checks.run(script.stem, command, seconds=seconds + 50, reserve=10)
        record[script.stem] = read(out)
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        left_out(record, "sanitizer", "compute-sanitizer is not on the PATH")
        return
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1"]
        checks.run(f"sanitizer {tool}", [*command, *python, "tests/sanitize_gpu.py"], seconds=60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu-check.json")
    parser.add_argument("--seconds", type=float, default=520.0)
    arguments = parser.parse_args()
    checks = Checks(arguments.seconds)
    record: dict[str, Any] = {"versions": versions(), "device": None, "left_out": {}}
    record["steps"] = checks.steps
    try:
        check(checks, record)
    finally:
        record["seconds"] = round(arguments.seconds - checks.left(), 1)
        record["ok"] = bool(checks.steps) and all(step["ok"] for step in checks.steps)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{'passed' if record['ok'] else 'FAILED'}; the record is in {arguments.out}")
    return 0 if record["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
