"""`fastguide doctor`: what is installed, what serves, and whether it computes what it should."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from fastguide import nn, ops, report, zoo
from fastguide.cli import selftest
from fastguide.cli.base import Command
from fastguide.errors import FastguideError

EXTRAS = {
    "plot": ("matplotlib",),
    "numba": ("numba",),
    "gpu": ("triton", "cupy", "xformers"),
}
"""Optional dependencies by the extra that brings them."""

VECTOR_FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512bw", "asimd")
LABEL, WIDTH = 24, 80
"""Characters of a check's name and of a line."""

VARIABLES = ("FASTGUIDE_BACKEND", "FASTGUIDE_CPU", "FASTGUIDE_DATA")
DEVICES = {"cpu": "CPU", "cuda": "CUDA"}
DISPATCH = "instruction set "
"""How the reason of the C++ backend starts."""
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis: `text` says what was found, `fix` what to do if it is not ok."""

    name: str
    ok: bool
    text: str
    fix: str = ""


@dataclass(kw_only=True)
class Doctor(Command):
    """Check the installation, and print what a bug report should hold.

    Prints versions, processor, GPU and driver, and the backend of every op on CPU and CUDA, with
    why no other one; verifies the shipped weights; and runs a self-test of known answers on the
    CPU, and on the GPU if there is one (which compiles its kernels the first time). Exit code 0:
    all is well; 1: something is broken, with its fix.
    """

    def run(self) -> bool:
        """Print facts, then backends, then checks, then the verdict."""
        _print_table(facts())
        print()
        for line in served():
            print(line)
        print()
        checks = []
        for check in _checks():
            checks.append(check)
            mark = "ok    " if check.ok else "BROKEN"
            print(_wrapped(f"{mark}  {check.name.ljust(LABEL)}  ", check.text))
        broken = [check for check in checks if not check.ok]
        print()
        if not broken:
            print("Everything works.")
            return True
        print(f"{len(broken)} of {len(checks)} checks failed:")
        for check in broken:
            print(_wrapped("- ", f"{check.name}: {check.fix}"))
        return False


def facts() -> Iterator[tuple[str, str]]:
    """What a bug report should hold: name and value of each line."""
    here = report.machine()
    yield "fastguide", here["fastguide"]
    yield "python", f"{here['python']} ({platform.python_implementation()})"
    yield "torch", here["torch"]
    yield "numpy", here["numpy"]
    owners = metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        yield f"extra [{extra}]", ", ".join(_installed(module, owners) for module in modules)
    yield "system", here["system"]
    yield "processor", f"{here['processor']}, {here['cores']} cores"
    yield "vector units", _vector_units()
    yield "C++ kernels", _dispatch()
    yield "threads", str(here["threads"])
    gpus, why_none = _gpus()
    for gpu in gpus or [f"none: {why_none}"]:
        yield "GPU", gpu
    yield "GPU driver", _driver()
    for name in VARIABLES:
        yield name, os.environ.get(name, "not set")


def served() -> Iterator[str]:
    """Lines that say which backend serves each op on each device, and why no other one."""
    try:
        tables = {device: ops.backends(device) for device in DEVICES}
    except FastguideError as error:
        yield _wrapped("backends  ", str(error))
        return
    for device in DEVICES:
        # bfloat16: what a GPU would be given
        tables[device]["nn.attention"] = nn.attention_backend(device, torch.bfloat16)
    width = max(map(len, tables["cpu"])) + 2
    yield f"{'backend of':<{width}}{'on CPU':<12}on CUDA"
    for op in tables["cpu"]:
        yield f"{op:<{width}}{tables['cpu'][op][0]:<12}{tables['cuda'][op][0]}"
    for device, table in tables.items():
        yield f"why, on {DEVICES[device]}:"
        for reason, names in _reasons(table).items():
            if reason.startswith(DISPATCH):
                continue
            most = len(names) >= len(table) - 1  # all, or all ops of ours
            yield _wrapped("- ", reason if most else f"{reason} ({', '.join(names)})")


def _reasons(table: dict[str, tuple[str, str]]) -> dict[str, list[str]]:
    """Each clause of the reasons, without an op's name, and the ops that it holds for."""
    found: dict[str, list[str]] = {}
    for op, (_, why) in table.items():
        for clause in re.sub(rf"( for {op}|^{op}: )", "", why).split("; "):
            found.setdefault(re.sub(r", got .*", "", clause), []).append(op)
    return found


def _checks() -> Iterator[Check]:
    devices = ["cpu", "cuda"] if _gpus()[0] else ["cpu"]
    for device in devices:
        yield _backends(device)
    for name in zoo.names():
        yield _weights(name)
    for device in devices:
        for name, test in selftest.TESTS.items():
            yield _run(name, test, device)


def _print_table(rows: Iterator[tuple[str, str]]) -> None:
    lines = list(rows)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(_wrapped(f"{name.ljust(width)}  ", value))


def _wrapped(label: str, text: str) -> str:
    """Text beside a label, broken at blanks."""
    indent = " " * len(label)
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=label,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _backends(device: str) -> Check:
    """All ops are served, or the line names those that are not."""
    label = f"backends on {DEVICES[device]}"
    try:
        table = ops.backends(device)
    except FastguideError as error:
        return Check(label, False, "none", str(error))
    missing = [op for op, (backend, _) in table.items() if backend == "none"]
    if not missing:
        names = sorted({backend for backend, _ in table.values()})
        return Check(label, True, f"{' and '.join(names)}, for all {len(table)} ops")
    reasons = "; ".join(_reasons({op: table[op] for op in missing}))
    return Check(label, False, f"nothing serves {', '.join(missing)}", reasons)


def _weights(name: str) -> Check:
    """The weights are those that their card describes."""
    label = f"weights of {name}"
    try:
        card = zoo.load(name).card
    except FastguideError as error:
        return Check(label, False, "cannot be loaded", str(error))
    hashes = ", ".join(f"{model} {facts['sha256'][:12]}" for model, facts in card["models"].items())
    return Check(label, True, f"SHA-256 as in the card: {hashes}")


def _run(name: str, test: Callable[[torch.device], None], device: str) -> Check:
    label = f"{name}, {DEVICES[device]}"
    start = time.perf_counter()
    try:
        test(torch.device(device))
    except FastguideError as error:
        return Check(label, False, "did not run", str(error))
    except AssertionError as error:
        return Check(
            label,
            False,
            f"wrong answer: {error}",
            "this machine computes something else than it should; rebuild the extension, try "
            "FASTGUIDE_CPU=baseline, and report this output",
        )
    return Check(label, True, f"as it should be ({time.perf_counter() - start:.2f} s)")


def _installed(module: str, owners: Mapping[str, list[str]]) -> str:
    if importlib.util.find_spec(module) is None:
        return f"{module} absent"
    names = owners.get(module)
    return f"{module} {metadata.version(names[0])}" if names else f"{module} present"


def _gpus() -> tuple[list[str], str]:
    """Each CUDA device in words, and why there is none."""
    version = torch.version.cuda
    if version is None:
        return [], f"torch {torch.__version__} is built without CUDA; install a CUDA build"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        told = "; ".join(str(warning.message).partition(" (")[0] for warning in caught)
        found = "finds no device" if DRIVER.exists() else "finds no NVIDIA driver"
        return [], told or f"torch, built for CUDA {version}, {found}"
    gpus = []
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        gpus.append(
            f"{device.name}, {device.total_memory / 2**30:.0f} GiB, compute capability "
            f"{device.major}.{device.minor}; torch is built for CUDA {version}"
        )
    return gpus, ""


def _driver() -> str:
    try:
        text = DRIVER.read_text(encoding="utf-8")
    except OSError:
        return "none found"
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return f"NVIDIA {version[0]}" if version else text.splitlines()[0]


def _dispatch() -> str:
    try:
        reasons = _reasons(ops.backends())
    except FastguideError:
        reasons = {}
    level = next((reason for reason in reasons if reason.startswith(DISPATCH)), None)
    return level or "not in use"


def _vector_units() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return f"torch uses {torch.backends.cpu.get_cpu_capability()}"
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    flags = set(next(lines, "").partition(":")[2].split())
    found = [flag for flag in VECTOR_FLAGS if flag in flags]
    return f"{' '.join(found)}; torch uses {torch.backends.cpu.get_cpu_capability()}"
