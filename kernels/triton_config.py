"""Block sizes of the Triton kernels: few, fixed, and chosen from shapes alone.

A fixed choice compiles once, needs no timing runs inside a sampler, and can be checked ahead of
time for registers and spills (benches/triton_registers.py). The interpreter gets small blocks,
since it pays for every lane and tests want several blocks in a small case.
"""

from __future__ import annotations

import torch
import triton

from fastguide.kernels.triton_runtime import interpreting

SMALL = 32
"""Vocabularies up to here keep the CDF of a site in registers."""
LARGE_BLOCK_V = 256 if interpreting() else 1024
LARGE_WARPS = 4
_MOST_TILE = 4
"""Blocks that a program reads at once: the more bytes in flight, the better latency hides."""
_TILES_PER_PROGRAM = 1 if interpreting() else 4
MAX_REGISTERS = 168
"""Per thread, of kernels that need many: three programs fit a multiprocessor.

Without a bound ptxas spills a little to reach the next step of occupancy.
"""
_DRAW_PROGRAMS_PER_MULTIPROCESSOR = 6
_TILE = 1024
_FEW_PROGRAMS = 1024


def site_block(length: int, vocab_size: int) -> int:
    """Sites per program of 128 threads: a thread each up to 8 tokens; beyond, they share a site.

    More than eight weights of float64 in a thread would spill.
    """
    most = 64 if interpreting() else 128
    if 8 < vocab_size <= SMALL:
        most = _TILE // triton.next_power_of_2(vocab_size)
    return min(max(triton.next_power_of_2(max(length, 1)), 16), most)


def propose_tile(
    num_rows: int, num_candidates: int, vocab_size: int, length: int
) -> tuple[int, int]:
    """(candidates per program, sites per block) of the small-vocabulary proposal.

    Sharing the CDF among 16 candidates pays once there are programs enough to fill a GPU; before
    that, more programs do.
    """
    quads = triton.cdiv(num_candidates, 4)
    chunk = 4 if quads == 1 or num_rows * quads <= _FEW_PROGRAMS else 16
    return chunk, site_block(length, vocab_size)


def large_tiles(vocab_size: int) -> tuple[int, int, int]:
    """(blocks of LARGE_BLOCK_V tokens in a tile, tiles, programs that share a site)."""
    blocks = triton.cdiv(vocab_size, LARGE_BLOCK_V)
    tile = min(_MOST_TILE, triton.next_power_of_2(blocks))
    tiles = triton.cdiv(blocks, tile)
    return tile, tiles, triton.cdiv(tiles, _TILES_PER_PROGRAM)


def draw_programs(device: torch.device, most: int) -> int:
    """Programs that share a list of unknown length, at most `most`."""
    if device.type != "cuda":
        return min(most, 3)
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return min(most, _DRAW_PROGRAMS_PER_MULTIPROCESSOR * count)


def noise_block() -> int:
    """Philox blocks per program, of four normals each."""
    return 64 if interpreting() else 128


def candidates_per_program(num_tiles: int, num_candidates: int) -> int:
    """Candidates that share one read of a tile: as many as leave enough programs."""
    if interpreting():
        return min(num_candidates, 2)
    return min(num_candidates, max(1, num_tiles * num_candidates // (2 * _FEW_PROGRAMS)))
