"""Known answers for `fastguide doctor`. A test raises AssertionError, or passes."""

from __future__ import annotations

import torch

from fastguide import ops, reference
from fastguide.diffusion import MaskedDiffusion
from fastguide.reference.philox import philox
from fastguide.samplers import SVDD

Tensor = torch.Tensor

# Random123 1.14, kat_vectors, philox4x32 with 10 rounds: counter, key, words.
PHILOX = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)

# Samples of `tiny_run`: row [a, b, c, d] is a + 3 b + 9 c + 27 d.
TINY = (
    *(47, 29, 65, 47, 65, 65, 64, 65, 63, 38, 65, 74),
    *(68, 64, 50, 63, 65, 74, 63, 38, 64, 63, 77, 50),
)


def expect(found: object, due: object, what: str) -> None:
    """Raise AssertionError unless found == due."""
    if found != due:
        raise AssertionError(f"{what}: {found}, due {due}")


def check_stream() -> None:
    """Published vectors, and the op at the counter that one of them has."""
    for counter, key, words in PHILOX:
        c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
        found = philox(c0, c1, c2, c3, key)
        expect(tuple(int(word) for word in found), words, "philox words")
    low, high = PHILOX[0][2][:2]
    drawn = ops.philox_uniform(0, torch.zeros(1, dtype=torch.int64), 0, 0, num_elements=1)
    expect(float(drawn), ((low | high << 32) >> 11) * 2.0**-53, "philox_uniform")
    arguments = (2**64 - 1, torch.tensor([0, 7, 2**32 - 1]), 5, 3)
    ours = ops.philox_uniform(*arguments, num_elements=9, num_candidates=3)
    plain = reference.philox_uniform(*arguments, num_elements=9, num_candidates=3)
    expect(bool((ours == plain).all()), True, "philox_uniform equals its definition")


def check_ops() -> None:
    """Choices and duplicates that can be checked by hand."""
    values = torch.tensor([[1.0, 3.0, 3.0], [5.0, float("-inf"), 2.0]])
    chosen = ops.select(values, alpha=0.0, seed=0, chains=torch.arange(2), step=0)
    expect(chosen.index.tolist(), [1, 0], "select at alpha 0")
    sure = torch.tensor([[float("-inf"), 2.0]])
    chosen = ops.select(sure, alpha=0.5, seed=0, chains=torch.arange(1), step=0)
    expect(chosen.index.tolist(), [1], "select of the only possible candidate")
    rows = torch.tensor([[2, 1], [0, 0], [2, 1], [1, 2], [0, 0]])
    unique = ops.unique_rows(rows)
    count = int(unique.count)
    expect(count, 3, "unique_rows, count")
    expect(unique.first[:count].tolist(), [0, 1, 3], "unique_rows, first")
    expect(unique.inverse.tolist(), [0, 1, 0, 2, 1], "unique_rows, inverse")


def check_sampler() -> None:
    """A small guided run, bit for bit."""
    samples = tiny_run().tolist()
    found = tuple(sum(token * 3**site for site, token in enumerate(row)) for row in samples)
    expect(found, TINY, "samples")


def tiny_run() -> Tensor:
    """[24, 4] samples of SVDD with a denoiser and a reward that are tables."""

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        left = torch.roll(x, 1, dims=1)
        return table[left]

    def reward(x: Tensor) -> Tensor:
        return (x * torch.tensor([1.0, -1.0, 0.5, 2.0])).sum(dim=1)

    # binary fractions, so that no rounding is involved before the draws
    table = torch.tensor(
        [[1.0, 0.5, -0.5], [-0.25, 0.0, 1.5], [0.75, -1.0, 0.25], [0.0, 0.5, 0.25]],
        dtype=torch.float64,
    )
    sampler = SVDD(MaskedDiffusion(denoiser, 4, 3), reward, num_candidates=4, alpha=0.5)
    return sampler.sample(24, num_steps=6, seed=2024, progress=False).samples


TESTS = {"random stream": check_stream, "ops": check_ops, "guided run": check_sampler}
