"""Imports go downwards only. The table below is the architecture; this file enforces it.

Only the syntax is read: nothing is imported, so a violation shows even where an optional
dependency is missing. The second half plants faults and checks that each one is caught.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Lowest floor first. A room may import every room on a lower floor, unless EXACT says otherwise.
FLOORS = (
    ("errors", "modes", "reference", "rng"),
    ("kernels",),
    ("ops",),
    ("nn", "diffusion"),
    ("evaluation", "distributed"),
    ("result", "policy"),
    ("engine",),
    ("checkpoint",),
    ("values", "rewards"),
    ("samplers",),
    ("finetune",),
    ("theory", "zoo", "integrations", "report"),
    ("cli",),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
# Rooms that may import these and nothing else of ours.
EXACT = {
    "errors": set(),
    "modes": set(),
    "reference": set(),
    "rng": {"errors"},
    "kernels": {"errors"},
    "testing": {"ops", "reference", "rng", "errors"},
}
# `import fastguide` itself may reach everything but the command line.
ROOT = "fastguide"
ROOT_FORBIDDEN = {"cli", "testing"}

CORE_THIRD_PARTY = {"torch", "numpy", "safetensors", "tqdm"}
# What a room, or one module of it, may import beyond the core.
EXTRA_THIRD_PARTY = {
    "cli": {"tyro"},
    "finetune.injected": {"peft"},
    "report": {"matplotlib"},
    "rewards": {"numba"},
    "rewards.images": {"PIL"},
    "rewards.vision": {"transformers"},
    "kernels": {"triton"},
    "kernels.cuda": {"cupy"},
    "nn.attention": {"xformers"},
    "testing": {"pytest"},
}
ANY_THIRD_PARTY = {"integrations"}
# Modules with one importer.
SOLE_IMPORTER = {"_C": "kernels.cpu", "_csrc": "kernels.cuda"}

STANDARD_HEADER = re.compile(r"^#\s*include\s*<([^>]+)>")
LOCAL_HEADER = re.compile(r'^#\s*include\s*"([^"]+)"')


def module_name(path: Path, package: Path, kernels: Path) -> str:
    """Dotted name inside the package: "" for the root, "ops.select", "kernels.cpu"."""
    inside = path.is_relative_to(kernels)
    parts = path.with_suffix("").relative_to(kernels if inside else package).parts
    parts = (("kernels",) if inside else ()) + parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, wherever in the file it stands."""
    here = [ROOT, *module.split(".")] if module else [ROOT]
    container = here if is_package else here[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = container[: len(container) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            target = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(target, ast.Constant):
                yield node.lineno, str(target.value)


def known_rooms() -> set[str]:
    return set(FLOOR) | set(EXACT)


def allowed_rooms(room: str) -> set[str]:
    if room in EXACT:
        return EXACT[room]
    if room == "":
        return known_rooms() - ROOT_FORBIDDEN
    return {other for other, height in FLOOR.items() if height < FLOOR[room]}


def fault(module: str, name: str) -> str | None:
    """Why `module` may not import `name`, or None where it may."""
    room = module.split(".")[0]
    first, *rest = name.split(".")
    if first == ROOT:
        target = rest[0] if rest else ""
        if target in SOLE_IMPORTER:
            sole = SOLE_IMPORTER[target]
            return None if module == sole else f"only {sole} imports {ROOT}.{target}"
        if target not in known_rooms():
            if room in {"cli", ""}:
                return None
            return f"{name} goes through the package root; import it from the room that defines it"
        if target != room and target not in allowed_rooms(room):
            return f"{room or ROOT} may not import {target}"
        return None
    if first in sys.stdlib_module_names or first in CORE_THIRD_PARTY or room in ANY_THIRD_PARTY:
        return None
    extra = EXTRA_THIRD_PARTY.get(room, set()) | EXTRA_THIRD_PARTY.get(module, set())
    return None if first in extra else f"{module or ROOT} may not import the third party {first}"


def faults(root: Path) -> list[str]:
    """Every violation under `root`, as "path:line: why"."""
    package, kernels = root / "fastguide", root / "kernels"
    found = []
    for path in sorted([*package.rglob("*.py"), *kernels.rglob("*.py")]):
        module = module_name(path, package, kernels)
        where = path.relative_to(root)
        room = module.split(".")[0]
        if room and room not in known_rooms():
            found.append(f"{where}:1: room {room} is not in the table of this test")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, name in imported_names(tree, module, path.name == "__init__.py"):
            why = fault(module, name)
            if why:
                found.append(f"{where}:{line}: {why}")
    return found


def includes(text: str) -> Iterator[tuple[int, str, bool, bool]]:
    """(line, header, is standard, is hidden from the CUDA run-time compiler)."""
    guards: list[bool] = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if re.match(r"#\s*if", bare):
            guards.append(
                bool(re.match(r"#\s*(ifndef\s+|if\s+!\s*defined\W*)__CUDACC_RTC__", bare))
            )
        elif re.match(r"#\s*(else|elif)", bare) and guards:
            guards[-1] = False
        elif re.match(r"#\s*endif", bare) and guards:
            guards.pop()
        for pattern, standard in ((STANDARD_HEADER, True), (LOCAL_HEADER, False)):
            match = pattern.match(bare)
            if match:
                yield number, match.group(1), standard, any(guards)


def native_faults(root: Path) -> list[str]:
    """bind.cpp -> cpu/ -> include/: violations of it, as "path:line: why"."""
    csrc = root / "csrc"
    found = []
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in {".cpp", ".cuh", ".cu", ".h"}):
        where = path.relative_to(root)
        shared = path.is_relative_to(csrc / "include")
        for line, header, standard, guarded in includes(path.read_text(encoding="utf-8")):
            why = None
            framework = re.match(r"(torch|ATen|c10|pybind11|Python\.h)", header)
            if framework and path != csrc / "bind.cpp":
                why = f"only bind.cpp may include {header}"
            elif re.match(r"(torch|ATen|c10)", header):
                why = f"{header} ties the extension to one torch build"
            elif shared and standard and not guarded:
                why = f"<{header}> must stand inside #ifndef __CUDACC_RTC__"
            elif shared and not standard and ".." in header:
                why = f'"{header}": shared headers include each other only'
            if why:
                found.append(f"{where}:{line}: {why}")
    return found


def test_python_imports_go_downwards(root: Path) -> None:
    assert faults(root) == []


def test_native_includes_go_downwards(root: Path) -> None:
    assert native_faults(root) == []


def plant(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "text", "why"),
    [
        ("kernels/select.py", "import fastguide.ops", "kernels may not import ops"),
        ("kernels/select.py", "from fastguide import rng", "kernels may not import rng"),
        ("kernels/select.py", "from fastguide import _C", "only kernels.cpu imports"),
        ("fastguide/ops/select.py", "from fastguide import _C", "only kernels.cpu imports"),
        ("fastguide/ops/select.py", "from .. import engine", "ops may not import engine"),
        ("fastguide/samplers/svdd.py", "from .. import report", "samplers may not import report"),
        ("fastguide/samplers/a/b.py", "from ...zoo import load", "samplers may not import zoo"),
        (
            "fastguide/values/x.py",
            "from fastguide.rewards import y",
            "values may not import rewards",
        ),
        (
            "fastguide/diffusion/x.py",
            "def f():\n    import fastguide.engine",
            "may not import engine",
        ),
        ("fastguide/engine.py", "from fastguide import SVDD", "goes through the package root"),
        ("fastguide/engine.py", "import fastguide as fg", "goes through the package root"),
        ("fastguide/reference/x.py", "from fastguide import errors", "reference may not import"),
        ("fastguide/errors.py", "from . import rng", "errors may not import rng"),
        ("fastguide/result.py", "from . import engine", "result may not import engine"),
        ("fastguide/__init__.py", "from . import cli", "fastguide may not import cli"),
        ("fastguide/ops/x.py", "from fastguide.testing import y", "ops may not import testing"),
        (
            "fastguide/testing/x.py",
            "from fastguide.engine import y",
            "testing may not import engine",
        ),
        ("fastguide/zoo/x.py", "import tyro", "third party tyro"),
        ("fastguide/zoo/x.py", "import pandas as pd", "third party pandas"),
        ("fastguide/engine.py", "import matplotlib.pyplot", "third party matplotlib"),
        ("fastguide/report.py", "import numba", "third party numba"),
        ("kernels/select.py", "import cupy", "third party cupy"),
        ("fastguide/zoo/x.py", "import importlib\nimportlib.import_module('rich')", "party rich"),
        ("fastguide/helpers.py", "", "room helpers is not in the table"),
    ],
)
def test_planted_import_is_caught(tmp_path: Path, path: str, text: str, why: str) -> None:
    plant(tmp_path, path, text)
    found = faults(tmp_path)
    assert len(found) == 1, found
    assert found[0].startswith(path)
    assert why in found[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("kernels/cpu.py", "from fastguide import _C\nfrom fastguide.errors import BackendError"),
        ("kernels/cpu.py", "from fastguide._C import select"),
        ("kernels/cuda.py", "import cupy\nfrom importlib import resources\nimport fastguide._csrc"),
        ("fastguide/ops/select.py", "from . import backends\nfrom ..kernels import cpu"),
        ("fastguide/engine.py", "from fastguide.result import Result\nfrom .evaluation import x"),
        (
            "fastguide/zoo/utr.py",
            "from fastguide.samplers.svdd import SVDD\nimport safetensors.torch",
        ),
        ("fastguide/cli.py", "import tyro\nimport fastguide as fg\nfrom fastguide import SVDD"),
        ("fastguide/integrations/x.py", "import diffusers"),
        ("fastguide/__init__.py", "from .samplers import SVDD\nfrom fastguide import zoo, report"),
    ],
)
def test_lawful_import_passes(tmp_path: Path, path: str, text: str) -> None:
    plant(tmp_path, path, text)
    assert faults(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "text", "why"),
    [
        ("csrc/cpu/x.cpp", "#include <pybind11/pybind11.h>", "only bind.cpp"),
        ("csrc/cpu/x.cpp", "#include <torch/extension.h>", "only bind.cpp"),
        ("csrc/bind.cpp", "#include <ATen/ATen.h>", "ties the extension"),
        ("csrc/include/fastguide/x.cuh", "#include <cmath>", "must stand inside"),
        (
            "csrc/include/fastguide/x.cuh",
            "#ifndef __CUDACC_RTC__\n#else\n#include <cmath>\n#endif",
            "must stand inside",
        ),
        ("csrc/include/fastguide/x.cuh", '#include "../../cpu/x.h"', "include each other"),
    ],
)
def test_planted_include_is_caught(tmp_path: Path, path: str, text: str, why: str) -> None:
    plant(tmp_path, path, text)
    found = native_faults(tmp_path)
    assert len(found) == 1, found
    assert why in found[0]


def test_guarded_include_passes(tmp_path: Path) -> None:
    text = '#ifndef __CUDACC_RTC__\n#include <cmath>\n#endif\n#include "philox.cuh"\n'
    plant(tmp_path, "csrc/include/fastguide/x.cuh", text)
    plant(tmp_path, "csrc/bind.cpp", "#include <pybind11/pybind11.h>\n")
    assert native_faults(tmp_path) == []
