"""Without a GPU the Triton kernels run in Triton's interpreter, on CPU tensors.

The interpreter must be asked for before the kernels are imported, which their first use does. Where
there is a GPU they are compiled, and the tests of the interpreter skip.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastguide.testing import poisoned

INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"

# The compiler runs beside the tests of the interpreter: see test_registers.py.
COMPILER = pytest.StashKey[tuple[subprocess.Popen[str], Path]]()

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start compiling if a test will ask for the table of registers."""
    if session.config.option.collectonly:
        return
    if not any("register_table" in getattr(item, "fixturenames", ()) for item in session.items):
        return
    script = Path(__file__).parents[2] / "benches" / "triton_registers.py"
    out = Path(tempfile.mkdtemp(prefix="triton-registers-"), "table.json")
    process = subprocess.Popen(
        [sys.executable, script, f"--out={out}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    session.config.stash[COMPILER] = process, out


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing outlives an interrupted session."""
    started = session.config.stash.get(COMPILER, None)
    if started is not None:
        started[0].kill()
        started[0].wait()
        shutil.rmtree(started[1].parent, ignore_errors=True)


@pytest.fixture(scope="session")
def register_table(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The rows that benches/triton_registers.py records."""
    process, out = request.config.stash[COMPILER]
    output, _ = process.communicate()
    assert process.returncode == 0, output
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return rows


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    with poisoned():
        yield


@pytest.fixture(scope="session", autouse=True)
def _fast_exclusive_or() -> Iterator[None]:
    """The interpreter reduces by XOR lane by lane in Python; numpy does the same at once."""
    if not INTERPRETED:
        yield
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import ReduceOps

    original = ReduceOps.apply_impl

    def apply(self: ReduceOps, inputs: tuple[tl.tensor, ...]) -> object:
        if self.combine_fn is not tl.standard._xor_combine:
            return original(self, inputs)
        data = inputs[0].handle.data
        reduced = np.bitwise_xor.reduce(data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(reduced, inputs[0].dtype)

    ReduceOps.apply_impl = apply
    yield
    ReduceOps.apply_impl = original
