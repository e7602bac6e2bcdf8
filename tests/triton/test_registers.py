"""Every kernel and branch compiles ahead of time, without a GPU and without a spill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastguide.ops._backend import TRITON_OPS

PARTS = 2


@pytest.fixture(scope="module")
def rows(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The record of benches/triton_registers.py, made by two processes."""
    folder = tmp_path_factory.mktemp("registers")
    script = root / "benches" / "triton_registers.py"
    running = [
        subprocess.Popen(
            [
                sys.executable,
                script,
                f"--parts={PARTS}",
                f"--part={part}",
                f"--out={folder}/{part}.json",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for part in range(PARTS)
    ]
    found: list[dict[str, Any]] = []
    for part, process in enumerate(running):
        output, _ = process.communicate()
        assert process.returncode == 0, output
        found += json.loads((folder / f"{part}.json").read_text())["rows"]
    return found


def test_every_op_compiles_for_three_architectures(rows: list[dict[str, Any]]) -> None:
    kernels = {row["kernel"] for row in rows}
    for op in TRITON_OPS - {"masked_propose", "masked_posterior"}:
        assert f"_{op}_kernel" in kernels
    for kernel in kernels:
        built = {row["architecture"] for row in rows if row["kernel"] == kernel and row["default"]}
        assert built == {"sm_80", "sm_90", "sm_100"}, kernel


def test_every_kernel_of_the_package_is_compiled(rows: list[dict[str, Any]], root: Path) -> None:
    import re

    text = "".join(path.read_text() for path in (root / "kernels").glob("*.py"))
    assert set(re.findall(r"^def (_\w+_kernel)\(", text, re.M)) == {row["kernel"] for row in rows}


def test_both_dtypes_and_every_constant_are_compiled(rows: list[dict[str, Any]]) -> None:
    def values(kernel: str, constant: str) -> set[str]:
        return {row["constants"][constant] for row in rows if row["kernel"] == kernel}

    assert values("_soft_value_kernel", "KIND") == {"0", "1", "2"}
    assert values("_soft_value_kernel", "SORT") == {"True", "False"}
    assert values("_gaussian_propose_kernel", "NOISE") == {"True", "False"}
    assert values("_masked_propose_small_kernel", "CHUNK") == {"4", "16"}
    for kernel in ("_masked_propose_small_kernel", "_masked_draw_kernel"):
        assert values(kernel, "TEMPERED") == {"True", "False"}
    for kernel in ("_masked_posterior_small_kernel", "_masked_predict_kernel"):
        assert values(kernel, "MODE") == {"True", "False"}
    for kernel in ("_select_kernel", "_soft_value_kernel", "_masked_draw_kernel"):
        types = {row["types"][0] for row in rows if row["kernel"] == kernel}
        assert types == {"float32", "float64"}


def test_no_default_spills(rows: list[dict[str, Any]]) -> None:
    spilling = [
        (row["kernel"], row["constants"], row["architecture"], row["spill_stores_bytes"])
        for row in rows
        if row["default"] and row["spill_stores_bytes"] + row["spill_loads_bytes"]
    ]
    assert spilling == []
