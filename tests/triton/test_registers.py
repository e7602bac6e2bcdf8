"""Every kernel and branch compiles ahead of time, without a GPU and without a spill."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastguide.ops._backend import TRITON_OPS


def test_every_op_compiles_for_three_architectures(triton_registers: list[dict[str, Any]]) -> None:
    kernels = {row["kernel"] for row in triton_registers}
    for op in TRITON_OPS - {"masked_propose", "masked_posterior"}:
        assert f"_{op}_kernel" in kernels
    for kernel in kernels:
        built = {
            row["architecture"]
            for row in triton_registers
            if row["kernel"] == kernel and row["default"]
        }
        assert built == {"sm_80", "sm_90", "sm_100"}, kernel


def kernels_of(root: Path) -> set[str]:
    text = "".join(path.read_text() for path in (root / "kernels").glob("*.py"))
    return set(re.findall(r"^def (_\w+_kernel)\(", text, re.M))


def test_every_kernel_of_the_package_is_compiled(
    triton_registers: list[dict[str, Any]], root: Path
) -> None:
    assert {row["kernel"] for row in triton_registers} == kernels_of(root)


def test_both_dtypes_and_every_constant_are_compiled(
    triton_registers: list[dict[str, Any]],
) -> None:
    def values(kernel: str, constant: str) -> set[Any]:
        return {row["constants"][constant] for row in triton_registers if row["kernel"] == kernel}

    assert values("_soft_value_kernel", "KIND") == {0, 1, 2}
    assert values("_masked_propose_small_kernel", "CHUNK") == {4, 16}
    assert values("_masked_draw_kernel", "TILE") == {1, 2, 4}
    switches = {
        (row["kernel"], name): values(row["kernel"], name)
        for row in triton_registers
        for name, value in row["constants"].items()
        if isinstance(value, bool)
    }
    assert len(switches) == 17
    assert [switch for switch, seen in switches.items() if seen != {True, False}] == []
    for kernel in ("_select_kernel", "_soft_value_kernel", "_masked_draw_kernel"):
        types = {row["types"].split()[0] for row in triton_registers if row["kernel"] == kernel}
        assert types == {"float32", "float64"}


def test_no_default_spills(triton_registers: list[dict[str, Any]]) -> None:
    assert [row for row in triton_registers if row["default"] and row["spill_store_bytes"]] == []


CONSTANTS = ("TEMPERED", "PER_SITE", "CHUNK")
COMBINATIONS = (
    ("float32", "float64"),
    (4, 8, 16, 32),
    (False, True),
    (False, True),
    (4, 16),
)


@pytest.mark.slow
def test_every_combination_compiles(root: Path, tmp_path: Path) -> None:
    script, out = root / "benches" / "triton_registers.py", tmp_path / "all.json"
    subprocess.run([sys.executable, script, "--all", f"--out={out}"], check=True)
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) > 250
    # All dtypes with all constants where the small kernel keeps weights in registers.
    small = [row for row in rows if row["kernel"] == "_masked_propose_small_kernel"]
    switches = {
        (row["types"].split()[0], row["constants"]["V"], *(row["constants"][c] for c in CONSTANTS))
        for row in small
    }
    assert len(switches & set(itertools.product(*COMBINATIONS))) == 4 * 2**4


@pytest.mark.parametrize("version", ["3.6", "3.9"])
def test_the_kept_record_is_of_these_kernels(version: str, root: Path) -> None:
    (file,) = (root / "benches" / "results" / "registers").glob(f"triton-{version}.*.json")
    rows = json.loads(file.read_text())["rows"]
    assert {row["kernel"] for row in rows} == kernels_of(root)
    assert [row for row in rows if row["default"] and row["spill_store_bytes"]] == []
