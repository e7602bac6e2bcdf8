"""The uniform stream: known answers, counters, law, errors."""

from __future__ import annotations

import pytest
import torch

from fastguide import ops, reference
from fastguide.errors import ArgumentError, DtypeError, ShapeError
from fastguide.reference.philox import philox, uniform53
from fastguide.rng import Purpose
from fastguide.testing import chi_square_p, ks_uniform_p

F = 0xFFFFFFFF
# Random123 1.14, file kat_vectors, philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((F, F, F, F), (F, F), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "due"), KNOWN_ANSWERS)
def test_random123_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], due: tuple[int, ...]
) -> None:
    words = philox(*(torch.tensor(c) for c in counter), key)
    assert tuple(int(w) for w in words) == due


@pytest.mark.parametrize(("counter", "key", "due"), KNOWN_ANSWERS)
def test_known_answers_through_the_op(
    counter: tuple[int, ...], key: tuple[int, int], due: tuple[int, ...]
) -> None:
    """The op reaches any counter with a small first word; the second and third are checked so."""
    _, candidate, chain, c3 = counter
    got = ops.philox_uniform(
        key[0] | key[1] << 32,
        torch.tensor([chain]),
        c3 >> 8,
        c3 & 0xFF,
        num_elements=20,
        first_candidate=torch.tensor([candidate]),
    )
    words = philox(torch.arange(20), *(torch.tensor(c) for c in (candidate, chain, c3)), key)
    assert torch.equal(got[0, 0], uniform53(words[0], words[1]))
    if counter[0] == 0:
        assert float(got[0, 0, 0]) == ((due[0] | due[1] << 32) >> 11) * 2.0**-53


def test_a_draw_depends_on_its_own_ids_alone() -> None:
    def draw(chains: torch.Tensor, elements: int, candidates: int, first: int) -> torch.Tensor:
        return ops.philox_uniform(
            5,
            chains,
            9,
            Purpose.NOISE,
            num_elements=elements,
            num_candidates=candidates,
            first_candidate=torch.full_like(chains, first),
        )

    whole = draw(torch.arange(6), 40, 8, 0)
    assert torch.equal(draw(torch.tensor([4, 2]), 13, 3, 5), whole[[4, 2], 5:, :13])


def test_seed_step_and_purpose_change_every_draw() -> None:
    chains = torch.arange(3)
    base = ops.philox_uniform(1, chains, 1, 1, num_elements=50)
    for other in [(2, 1, 1), (1 + 2**32, 1, 1), (1, 2, 1), (1, 1, 2)]:
        again = ops.philox_uniform(other[0], chains, other[1], other[2], num_elements=50)
        assert not bool((again == base).any())


@pytest.mark.parametrize("axis", ["element", "candidate", "chain", "step"])
def test_uniform_along_every_counter_word(axis: str) -> None:
    n = 100_000
    one = torch.zeros(1, dtype=torch.int64)
    if axis == "element":
        u = ops.philox_uniform(1, one, 0, 1, num_elements=n)
    elif axis == "candidate":
        u = ops.philox_uniform(2, one, 0, 1, num_elements=1, num_candidates=n)
    elif axis == "chain":
        u = ops.philox_uniform(3, torch.arange(n), 0, 1, num_elements=1)
    else:
        u = torch.cat([ops.philox_uniform(4, one, s, 1, num_elements=50) for s in range(n // 50)])
    u = u.flatten()
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert ks_uniform_p(u) > 1e-6
    assert chi_square_p(torch.bincount((u * 1000).long(), minlength=1000), [1] * 1000) > 1e-6
    low = (u * 2.0**53).long() % 16  # the last bits, which a 32-bit draw would leave empty
    assert chi_square_p(torch.bincount(low, minlength=16), [1] * 16) > 1e-6
    pairs = (u[:-1:2] * 20).long() * 20 + (u[1::2] * 20).long()
    assert chi_square_p(torch.bincount(pairs, minlength=400), [1] * 400) > 1e-6


def test_negative_control() -> None:
    """The tests above reject a slightly wrong law."""
    u = ops.philox_uniform(1, torch.zeros(1, dtype=torch.int64), 0, 1, num_elements=100_000)
    assert ks_uniform_p(u**1.05) < 1e-6


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("op", ["philox_uniform", "philox_normal"])
def test_ids_out_of_range(op: str, backend: str) -> None:
    draw = getattr(ops, op)
    with ops.use_backend(backend):
        with pytest.raises(
            ArgumentError, match=rf"{op}: chains\[1\] = -3 must lie in \[0, 2\*\*32\)"
        ):
            draw(0, torch.tensor([0, -3]), 0, 1, num_elements=1)
        with pytest.raises(ArgumentError, match=r"chains\[0\] = 4294967296 must"):
            draw(0, torch.tensor([2**32]), 0, 1, num_elements=1)
        with pytest.raises(ArgumentError, match="row 0 has candidate or particle id 4294967294"):
            draw(
                0,
                torch.tensor([0]),
                0,
                1,
                num_elements=1,
                num_candidates=3,
                first_candidate=torch.tensor([2**32 - 2]),
            )


def test_bad_arguments() -> None:
    chains = torch.arange(2)
    with pytest.raises(ArgumentError, match=r"seed must lie in \[0, 2\*\*64\), got -1"):
        ops.philox_uniform(-1, chains, 0, 1, num_elements=1)
    with pytest.raises(ArgumentError, match=r"step must lie in \[0, 2\*\*24\)"):
        ops.philox_uniform(0, chains, 2**24, 1, num_elements=1)
    with pytest.raises(ArgumentError, match=r"purpose must lie in \[0, 256\), got 256"):
        ops.philox_uniform(0, chains, 0, 256, num_elements=1)
    with pytest.raises(ArgumentError, match="num_candidates must be at least 1, got 0"):
        ops.philox_uniform(0, chains, 0, 1, num_elements=1, num_candidates=0)
    with pytest.raises(ArgumentError, match="num_elements must be at least 0, got -1"):
        ops.philox_uniform(0, chains, 0, 1, num_elements=-1)
    with pytest.raises(DtypeError, match=r"chains must be int64, got float32"):
        ops.philox_uniform(0, chains.float(), 0, 1, num_elements=1)
    with pytest.raises(
        ShapeError, match=r"first_candidate must have shape \[N\] = \[2\], got \[3\]"
    ):
        ops.philox_uniform(0, chains, 0, 1, num_elements=1, first_candidate=torch.arange(3))
    with pytest.raises(ShapeError, match=r"out: the uniforms must have shape \[2, 1, 1\]"):
        ops.philox_uniform(0, chains, 0, 1, num_elements=1, out=torch.empty(2, 1).double())
    with pytest.raises(DtypeError, match=r"out: the uniforms must be torch.float64"):
        ops.philox_uniform(0, chains, 0, 1, num_elements=1, out=torch.empty(2, 1, 1))
    wide = torch.empty(2, 1, 6, dtype=torch.float64)[..., ::2]
    with pytest.raises(ArgumentError, match="out: the uniforms must be contiguous"):
        ops.philox_uniform(0, chains, 0, 1, num_elements=3, out=wide)


def test_reference_raises_faults_with_positions() -> None:
    with pytest.raises(reference.Fault) as caught:
        reference.philox_uniform(0, torch.tensor([1, 2**32]), 0, 1, num_elements=1)
    assert (caught.value.code.name, caught.value.row, caught.value.value) == ("CHAIN", 1, 2**32)
