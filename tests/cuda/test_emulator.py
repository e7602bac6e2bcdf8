"""The emulator notices planted faults, and the look-back walks over any number of tiles."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_emulation import entry_points

from fastguide import ops, reference
from fastguide.kernels import cuda_launchers

Build = Callable[..., Any]
Launched = list[tuple[str, str]]

LOOK_BACK = """
#include "emulator.h"
#include "look_back.cuh"
struct Args { fastguide::u64* states; fastguide::i64 tile; fastguide::u64 sum, before; };
extern "C" void look_back(fastguide::u64* states, fastguide::i64 tile, fastguide::u64 sum,
                          fastguide::u64* before) {
  Args args = {states, tile, sum, 0};
  emulator::run_grid({1, 1, 1}, 32, 1, false, [](const void* a) {
    Args& args = *static_cast<Args*>(const_cast<void*>(a));
    const fastguide::u64 found = fastguide::look_back(args.states, args.tile, args.sum);
    if (threadIdx.x == 7) args.before = found;
  }, &args);
  *before = args.before;
}
"""
TILE_SUM, PREFIX_SUM = 1 << 62, 2 << 62


@pytest.fixture(scope="session")
def look_back(host_build: Build) -> Callable[[list[int], int], tuple[int, int]]:
    """(states, sum of the next tile) -> (sum before it, the word it publishes)."""
    function = host_build(LOOK_BACK).look_back

    def run(states: list[int], own: int) -> tuple[int, int]:
        words = (ctypes.c_uint64 * (len(states) + 1))(*states, 0)
        before = ctypes.c_uint64()
        arguments = ctypes.c_int64(len(states)), ctypes.c_uint64(own), ctypes.byref(before)
        function(words, *arguments)
        return before.value, words[len(states)]

    return run


@pytest.mark.parametrize("tiles", [0, 1, 2, 31, 32, 33, 64, 65, 100])
def test_look_back_adds_up_to_the_nearest_prefix(
    tiles: int, look_back: Callable[[list[int], int], tuple[int, int]]
) -> None:
    for complete in {0, tiles // 2, tiles - 1} & set(range(tiles)) or {0}:
        states = [TILE_SUM | (i + 1) for i in range(tiles)]
        due = sum(range(1, tiles + 1))
        if tiles:
            states[complete] = PREFIX_SUM | sum(range(1, complete + 2))
        assert look_back(states, 9) == (due, PREFIX_SUM | (due + 9))


PLANTS = {
    "the lowest row no longer wins": (
        "unique_rows",
        "unique_rows.cu",
        "atomicMax(&args.table[slot], mine)",
        "(void)0",
    ),
    "equal keys are taken for equal rows": (
        "unique_rows",
        "unique_rows.cu",
        "if (!equal_rows<Word>(args, row, other, lanes)) continue;",
        "",
    ),
    "a barrier of the block is missing": (
        "resample",
        "team.cuh",
        "__syncthreads();\n  if (threadIdx.x == 0) {\n    TileSum all",
        "if (threadIdx.x == 0) {\n    TileSum all",
    ),
    "a barrier of the grid is missing": (
        "resample",
        "resample.cu",
        "  team.barrier();\n  return true;",
        "  __syncthreads();\n  return true;",
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_faults_are_seen(
    plant: str,
    host_build: Build,
    emulated: dict[str, Any],
    on_host: Launched,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    op, file, text, broken = PLANTS[plant]
    folder = tmp_path / "cuda"
    shutil.copytree(root / "csrc" / "cuda", folder)
    good = (folder / file).read_text()
    assert text in good
    (folder / file).write_text(good.replace(text, broken))
    (source,) = (s for s in cuda_launchers.SOURCES if s.op == op)
    monkeypatch.setitem(emulated, op, host_build(entry_points(source), folder).emulate)
    if op == "unique_rows":
        rows = torch.randint(0, 2, (3000, 3))
        keys = rows[:, :1].expand(-1, 2).contiguous()
        got, due = ops.unique_rows(rows, keys), reference.unique_rows(rows)
    else:
        log_w = torch.randn(2, 20_000)
        arguments = dict(seed=1, step=2, chains=torch.arange(2))
        got, due = ops.resample(log_w, **arguments), reference.resample(log_w, **arguments)
    assert not all(torch.equal(a, b) for a, b in zip(got[:2], due[:2], strict=True))
