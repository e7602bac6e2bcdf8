"""`fastguide doctor`: what is installed, what serves, and whether it computes what it should."""

from __future__ import annotations

import importlib.util
import os
import platform
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from fastguide import ops, report, zoo
from fastguide.cli import selftest
from fastguide.cli.base import Command
from fastguide.errors import FastguideError

EXTRAS = {
    "plot": ("matplotlib",),
    "numba": ("numba",),
    "gpu": ("triton", "cupy"),
}
"""Optional dependencies by the extra that brings them."""

VECTOR_FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512bw", "asimd")
LABEL, WIDTH = 26, 110
"""Characters of a check's name and of a line."""

VARIABLES = ("FASTGUIDE_BACKEND", "FASTGUIDE_CPU", "FASTGUIDE_DATA")


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

    Prints versions, processor, threads and the backend of every op; verifies the shipped weights;
    and runs a self-test of known answers. Exit code 0: all is well; 1: something is broken, with
    its fix.
    """

    def run(self) -> bool:
        """Print facts, then checks, then the verdict."""
        lines = dict(facts())
        width = max(len(name) for name in lines)
        for name, value in lines.items():
            print(f"{name.ljust(width)}  {value}")
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
            print(f"- {check.name}: {check.fix}")
        return False


def facts() -> Iterator[tuple[str, str]]:
    """What a bug report should hold: name and value of each line."""
    here = report.machine()
    yield "fastguide", here["fastguide"]
    yield "python", f"{here['python']} ({platform.python_implementation()})"
    yield "torch", here["torch"]
    yield "numpy", here["numpy"]
    yield "system", here["system"]
    yield "processor", f"{here['processor']}, {here['cores']} cores"
    yield "vector units", _vector_units()
    yield "threads", str(here["threads"])
    for extra, modules in EXTRAS.items():
        yield f"extra [{extra}]", ", ".join(_installed(module) for module in modules)
    for name in VARIABLES:
        yield name, os.environ.get(name, "not set")


def _checks() -> Iterator[Check]:
    yield _backends()
    for name in zoo.names():
        yield _weights(name)
    for name, test in selftest.TESTS.items():
        yield _run(name, test)


def _wrapped(label: str, text: str) -> str:
    """Text beside a label, broken at blanks."""
    indent = " " * len(label)
    return textwrap.fill(
        text, WIDTH, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False
    )


def _backends() -> Check:
    """All ops are served by one backend, or the line names those that are not."""
    try:
        served = ops.backends()
    except FastguideError as error:
        return Check("backends", False, "none", str(error))
    kinds: dict[tuple[str, str], list[str]] = {}
    for op, state in served.items():
        kinds.setdefault(state, []).append(op)
    text = "; ".join(
        f"{backend} serves {', '.join(names)} ({why})"
        if backend != "none"
        else f"nothing serves {', '.join(names)}"
        for (backend, why), names in kinds.items()
    )
    missing = [why for backend, why in kinds if backend == "none"]
    return Check("backends", not missing, text, "; ".join(missing))


def _weights(name: str) -> Check:
    """The weights are those that their card describes."""
    label = f"weights of {name}"
    try:
        card = zoo.load(name).card
    except FastguideError as error:
        return Check(label, False, "cannot be loaded", str(error))
    hashes = ", ".join(f"{model} {facts['sha256'][:12]}" for model, facts in card["models"].items())
    return Check(label, True, f"SHA-256 as in the card: {hashes}")


def _run(name: str, test: Callable[[], None]) -> Check:
    label = f"self-test: {name}"
    start = time.perf_counter()
    try:
        test()
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
    return Check(label, True, f"as expected ({time.perf_counter() - start:.2f} s)")


def _installed(module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return f"{module} absent"
    owners = metadata.packages_distributions().get(module, [])
    return f"{module} {metadata.version(owners[0])}" if owners else f"{module} present"


def _vector_units() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return f"torch uses {torch.backends.cpu.get_cpu_capability()}"
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    flags = set(next(lines, "").partition(":")[2].split())
    found = [flag for flag in VECTOR_FLAGS if flag in flags]
    return f"{' '.join(found)}; torch uses {torch.backends.cpu.get_cpu_capability()}"
