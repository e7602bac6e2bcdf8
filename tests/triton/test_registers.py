"""Every kernel and branch compiles ahead of time, without a GPU and without a spill."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import triton

from fastguide.ops._backend import TRITON_OPS


def test_every_op_compiles_for_three_architectures(register_table: list[dict[str, Any]]) -> None:
    kernels = {row["kernel"] for row in register_table}
    for op in TRITON_OPS - {"masked_propose", "masked_posterior"}:
        assert f"_{op}_kernel" in kernels
    for kernel in kernels:
        built = {
            row["architecture"]
            for row in register_table
            if row["kernel"] == kernel and row["default"]
        }
        assert built == {"sm_80", "sm_90", "sm_100"}, kernel


def test_every_kernel_of_the_package_is_compiled(
    register_table: list[dict[str, Any]], root: Path
) -> None:
    text = "".join(path.read_text() for path in (root / "kernels").glob("*.py"))
    assert set(re.findall(r"^def (_\w+_kernel)\(", text, re.M)) == {
        row["kernel"] for row in register_table
    }


def test_both_dtypes_and_every_constant_are_compiled(register_table: list[dict[str, Any]]) -> None:
    def values(kernel: str, constant: str) -> set[str]:
        return {row["constants"][constant] for row in register_table if row["kernel"] == kernel}

    assert values("_soft_value_kernel", "KIND") == {"0", "1", "2"}
    assert values("_soft_value_kernel", "SORT") == {"True", "False"}
    assert values("_gaussian_propose_kernel", "NOISE") == {"True", "False"}
    assert values("_masked_propose_small_kernel", "CHUNK") == {"4", "16"}
    for kernel in ("_masked_propose_small_kernel", "_masked_draw_kernel"):
        assert values(kernel, "TEMPERED") == {"True", "False"}
    for kernel in ("_masked_posterior_small_kernel", "_masked_predict_kernel"):
        assert values(kernel, "MODE") == {"True", "False"}
    for kernel in ("_select_kernel", "_soft_value_kernel", "_masked_draw_kernel"):
        types = {row["types"][0] for row in register_table if row["kernel"] == kernel}
        assert types == {"float32", "float64"}


def test_no_default_spills(register_table: list[dict[str, Any]]) -> None:
    # Before Triton 3.9 ptxas was left free to spill a few bytes for a step of occupancy.
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    most_bytes = 0 if version >= (3, 9) else 32
    spilling = [
        (row["kernel"], row["constants"], row["architecture"], row["spill_stores_bytes"])
        for row in register_table
        if row["default"] and row["spill_stores_bytes"] > most_bytes
    ]
    assert spilling == []
