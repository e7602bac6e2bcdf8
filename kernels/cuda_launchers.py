"""Launchers of the CUDA C++ kernels: `launch_<op>`, with the arguments of `kernels.cpu`.

seed, counter (both int64) and alpha (float64) may be device tensors of one element, which a graph
reads anew at every replay. Work space is allocated by torch, so a graph can hold it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from fastguide.kernels import device_faults
from fastguide.kernels.cuda import (
    Source,
    address,
    blocks,
    launch,
    resident_blocks,
    word_bytes,
)

Fault = device_faults.Fault
GatherSource = tuple[torch.Tensor, torch.Tensor | None]

UNIQUE_THREADS = 256
ROW_LANES = 8
UNIQUE_TILE = 1024
WORDS = {8: "unsigned long long", 4: "unsigned int", 1: "unsigned char"}
"""Types that rows are compared by, by size in bytes."""
FUSED_ROWS = 8192
"""Up to here one block numbers the groups: a single launch."""

SELECT_THREADS = 256
MAX_GATHER_ITEMS = 16
WIDE_BYTES = 4096
"""From here on a row's copy is worth a block of its own."""
BYTES_PER_BLOCK = 16384

TEAM_THREADS = 256
SUM_TILE = 8192
"""Particles of a group that one block serves alone."""
TILE_SUM_WORDS = 4
BYTES_PER_PART = 65536
"""Gathered bytes that are worth another block for a small group."""

_POINTER = ctypes.c_void_p
_I64 = ctypes.c_int64


class UniqueRowsArgs(ctypes.Structure):
    """csrc/cuda/unique_rows.cu."""

    _fields_ = (
        ("rows", _POINTER),
        ("row_stride_bytes", _I64),
        ("row_bytes", _I64),
        ("num_rows", _I64),
        ("keys", _POINTER),
        ("table", _POINTER),
        ("states", _POINTER),
        ("ticket", _POINTER),
        ("first", _POINTER),
        ("inverse", _POINTER),
        ("count", _POINTER),
        ("bits", ctypes.c_int32),
    )


class GatherItem(ctypes.Structure):
    """csrc/cuda/gather.cuh."""

    _fields_ = (
        ("source", _POINTER),
        ("row_stride_bytes", _I64),
        ("candidate_stride_bytes", _I64),
        ("inner_bytes", _I64),
        ("index", _POINTER),
        ("num_source_rows", _I64),
        ("target", _POINTER),
        ("word_bytes", _I64),
    )


class SelectArgs(ctypes.Structure):
    """csrc/cuda/select.cu."""

    _fields_ = (
        ("values", _POINTER),
        ("log_ratio", _POINTER),
        ("value_row_stride", _I64),
        ("value_stride", _I64),
        ("ratio_row_stride", _I64),
        ("ratio_stride", _I64),
        ("num_rows", _I64),
        ("num_candidates", _I64),
        ("alpha_at", _POINTER),
        ("alpha", ctypes.c_double),
        ("seed_at", _POINTER),
        ("seed", ctypes.c_uint64),
        ("counter_at", _POINTER),
        ("counter", _I64),
        ("chains", _POINTER),
        ("particles", _POINTER),
        ("out_index", _POINTER),
        ("out_lme", _POINTER),
        ("out_ess", _POINTER),
        ("fault", _POINTER),
        ("values_double", ctypes.c_int32),
        ("ratio_double", ctypes.c_int32),
        ("num_items", ctypes.c_int32),
        ("items", GatherItem * MAX_GATHER_ITEMS),
    )


class ResampleArgs(ctypes.Structure):
    """csrc/cuda/resample.cu."""

    _fields_ = (
        ("log_w", _POINTER),
        ("group_stride", _I64),
        ("particle_stride", _I64),
        ("num_groups", _I64),
        ("num_particles", _I64),
        ("ess_threshold", ctypes.c_double),
        ("seed_at", _POINTER),
        ("seed", ctypes.c_uint64),
        ("counter_at", _POINTER),
        ("counter", _I64),
        ("chains", _POINTER),
        ("ancestors", _POINTER),
        ("log_z", _POINTER),
        ("resampled", _POINTER),
        ("ess", _POINTER),
        ("sums", _POINTER),
        ("ends", _POINTER),
        ("uniforms", _POINTER),
        ("tiles", _POINTER),
        ("tops", _POINTER),
        ("arrivals", _POINTER),
        ("fault", _POINTER),
        ("is_double", ctypes.c_int32),
        ("num_items", ctypes.c_int32),
        ("wide", ctypes.c_int32),
        ("items", GatherItem * MAX_GATHER_ITEMS),
    )


UNIQUE_ROWS = Source(
    "unique_rows",
    UniqueRowsArgs,
    (
        *(f"unique_insert<{word}>" for word in WORDS.values()),
        *(f"unique_fused<{word}>" for word in WORDS.values()),
        "unique_number",
        "unique_finish",
    ),
)
SELECT = Source("select", SelectArgs, ("select<false>", "select<true>"))
SCHEMES = ("systematic", "stratified", "multinomial", "residual", "ssp", "killing")
RESAMPLE = Source(
    "resample",
    ResampleArgs,
    tuple(
        f"resample_{size}<fastguide::k{s.capitalize()}>"
        for size in ("small", "large")
        for s in SCHEMES
    ),
)
SOURCES = (UNIQUE_ROWS, SELECT, RESAMPLE)


def launch_unique_rows(
    rows: torch.Tensor,
    keys: torch.Tensor,
    first: torch.Tensor,
    inverse: torch.Tensor,
    count: torch.Tensor,
) -> None:
    """rows [R, L], unit stride along L, keys [R, 2] -> first [R], inverse [R], count [1], int64."""
    num_rows, size = rows.shape[0], rows.element_size()
    # At most half full: probe sequences stay short.
    bits = max(4, (2 * num_rows - 1).bit_length())
    tiles = blocks(num_rows, UNIQUE_TILE)
    work = torch.zeros(2**bits + tiles + 1, dtype=torch.int64, device=rows.device)
    args = UniqueRowsArgs(
        rows=rows.data_ptr(),
        row_stride_bytes=rows.stride(0) * size,
        row_bytes=rows.shape[1] * size,
        num_rows=num_rows,
        keys=keys.data_ptr(),
        table=work.data_ptr(),
        states=work.data_ptr() + 8 * 2**bits,
        ticket=work.data_ptr() + 8 * (2**bits + tiles),
        first=first.data_ptr(),
        inverse=inverse.data_ptr(),
        count=count.data_ptr(),
        bits=bits,
    )
    word = WORDS[word_bytes(args.rows or 0, args.row_stride_bytes, args.row_bytes, sizes=(8, 4))]
    insert = (blocks(num_rows, UNIQUE_THREADS // ROW_LANES), 1, 1)
    if num_rows <= FUSED_ROWS:
        launch(UNIQUE_ROWS, f"unique_fused<{word}>", insert, UNIQUE_THREADS, args, rows.device)
        return
    launch(UNIQUE_ROWS, f"unique_insert<{word}>", insert, UNIQUE_THREADS, args, rows.device)
    launch(UNIQUE_ROWS, "unique_number", (tiles, 1, 1), UNIQUE_THREADS, args, rows.device)
    finish = (blocks(num_rows, UNIQUE_THREADS), 1, 1)
    launch(UNIQUE_ROWS, "unique_finish", finish, UNIQUE_THREADS, args, rows.device)


def launch_select(
    values: torch.Tensor,
    alpha: float | torch.Tensor,
    log_ratio: torch.Tensor | None,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    counter: int | torch.Tensor,
    particles: torch.Tensor | None,
    gather: Sequence[GatherSource],
    index: torch.Tensor,
    lme: torch.Tensor,
    ess: torch.Tensor,
    gathered: Sequence[torch.Tensor],
) -> Fault | None:
    """values [N, K], gather of [N, K, ...] or ([U, ...], [N, K]) -> index, lme, ess [N] and
    gathered."""
    num_rows, num_candidates = values.shape
    ratio_strides = (0, 0) if log_ratio is None else log_ratio.stride()
    record = device_faults.record("select", values.device)
    # Holds copies until the kernels are queued; torch's allocator keeps stream order after that.
    sources = [_in_blocks(source, where) for source, where in gather]
    items = [
        gather_item(source, where, target)
        for source, (_, where), target in zip(sources, gather, gathered, strict=True)
    ]
    for begin in range(0, max(1, len(items)), MAX_GATHER_ITEMS):
        part = items[begin : begin + MAX_GATHER_ITEMS]
        args = SelectArgs(
            values=values.data_ptr(),
            log_ratio=address(log_ratio),
            value_row_stride=values.stride(0),
            value_stride=values.stride(1),
            ratio_row_stride=ratio_strides[0],
            ratio_stride=ratio_strides[1],
            num_rows=num_rows,
            num_candidates=num_candidates,
            **_scalar("alpha", alpha),
            **_scalar("seed", seed),
            **_scalar("counter", counter),
            chains=chains.data_ptr(),
            particles=address(particles),
            out_index=index.data_ptr(),
            out_lme=lme.data_ptr(),
            out_ess=ess.data_ptr(),
            fault=record.data_ptr(),
            values_double=values.dtype == torch.float64,
            ratio_double=log_ratio is not None and log_ratio.dtype == torch.float64,
            num_items=len(part),
            items=(GatherItem * MAX_GATHER_ITEMS)(*part),
        )
        most = max((item.inner_bytes for item in part), default=0)
        if most < WIDE_BYTES:
            grid = (blocks(num_rows, SELECT_THREADS // 32), 1, 1)
            launch(SELECT, "select<false>", grid, SELECT_THREADS, args, values.device)
        else:
            grid = (max(1, num_rows), blocks(most, BYTES_PER_BLOCK, 65535), 1)
            launch(SELECT, "select<true>", grid, SELECT_THREADS, args, values.device)
    return device_faults.outcome(values.device)


def launch_resample(
    log_w: torch.Tensor,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    counter: int | torch.Tensor,
    scheme: str,
    ess_threshold: float | None,
    gather: Sequence[GatherSource],
    ancestors: torch.Tensor,
    log_z: torch.Tensor,
    resampled: torch.Tensor,
    ess: torch.Tensor,
    gathered: Sequence[torch.Tensor],
) -> Fault | None:
    """log_w [G, N], gather of [G, N, ...] or ([U, ...], [G, N]) -> ancestors [G, N], log_z,
    resampled, ess [G], gathered."""
    num_groups, n = log_w.shape
    device = log_w.device
    record = device_faults.record("resample", device)
    if num_groups == 0:
        return None
    sources = [_in_blocks(source, where) for source, where in gather]
    items = [
        gather_item(source, where, target)
        for source, (_, where), target in zip(sources, gather, gathered, strict=True)
    ]
    tiles = blocks(n, SUM_TILE)
    threads = min(TEAM_THREADS, 32 * blocks(n, 32))
    if tiles > 1:
        size, teams = "large", 1
        grid = (blocks(n, TEAM_THREADS, resident_blocks(device)), 1, 1)
    else:
        parts = blocks(n * sum(item.inner_bytes for item in items), BYTES_PER_PART, min(n, 64))
        size, teams = "small", num_groups * parts
        grid = (num_groups, parts, 1)
    arrays = 3 if scheme == "ssp" else 2
    sums = torch.empty((arrays, teams * n), dtype=torch.float64, device=device)
    tile_sums = torch.empty(2 * tiles * teams * TILE_SUM_WORDS, dtype=torch.int64, device=device)
    tops = torch.empty(grid[0] if size == "large" else 0, dtype=torch.float64, device=device)
    for begin in range(0, max(1, len(items)), MAX_GATHER_ITEMS):
        part = items[begin : begin + MAX_GATHER_ITEMS]
        arrivals = torch.zeros(1, dtype=torch.int64, device=device)
        args = ResampleArgs(
            log_w=log_w.data_ptr(),
            group_stride=log_w.stride(0),
            particle_stride=log_w.stride(1),
            num_groups=num_groups,
            num_particles=n,
            ess_threshold=-1.0 if ess_threshold is None else ess_threshold,
            **_scalar("seed", seed),
            **_scalar("counter", counter),
            chains=chains.data_ptr(),
            ancestors=ancestors.data_ptr(),
            log_z=log_z.data_ptr(),
            resampled=resampled.data_ptr(),
            ess=ess.data_ptr(),
            sums=sums[0].data_ptr(),
            ends=sums[1].data_ptr(),
            uniforms=sums[-1].data_ptr(),
            tiles=tile_sums.data_ptr(),
            tops=tops.data_ptr(),
            arrivals=arrivals.data_ptr(),
            fault=record.data_ptr(),
            is_double=log_w.dtype == torch.float64,
            num_items=len(part),
            wide=max((item.inner_bytes for item in part), default=0) >= WIDE_BYTES,
            items=(GatherItem * MAX_GATHER_ITEMS)(*part),
        )
        kernel = f"resample_{size}<fastguide::k{scheme.capitalize()}>"
        launch(RESAMPLE, kernel, grid, threads, args, device, cooperative=size == "large")
    return device_faults.outcome(device)


def _scalar(name: str, value: float | torch.Tensor) -> dict[str, Any]:
    """The two fields of a scalar argument."""
    if isinstance(value, torch.Tensor):
        return {f"{name}_at": value.data_ptr()}
    return {name: value}


def gather_item(
    source: torch.Tensor, where: torch.Tensor | None, target: torch.Tensor
) -> GatherItem:
    """What one choice copies: [N, K, ...], or [U, ...] through [N, K], into target."""
    size = source.element_size()
    inner = size
    for length in source.shape[2 if where is None else 1 :]:
        inner *= length
    row = source.stride(0) * size
    candidate = source.stride(1) * size if where is None else 0
    return GatherItem(
        source=source.data_ptr(),
        row_stride_bytes=row,
        candidate_stride_bytes=candidate,
        inner_bytes=inner,
        index=address(where),
        num_source_rows=source.shape[0],
        target=target.data_ptr(),
        word_bytes=word_bytes(source.data_ptr(), row, candidate, inner, target.data_ptr()),
    )


def _in_blocks(source: torch.Tensor, where: torch.Tensor | None) -> torch.Tensor:
    """The source, copied if what one choice takes is not one block of memory."""
    due = 1
    lead = 2 if where is None else 1
    sizes = zip(reversed(source.shape[lead:]), reversed(source.stride()[lead:]), strict=True)
    for length, stride in sizes:
        if length != 1 and stride != due:
            return source.contiguous()
        due *= length
    return source
