"""Known answers for `fastguide doctor`. A test raises AssertionError, or passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
# Of floating-point outputs: relative, and absolute for sums that cancel.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def expect(found: object, due: object, what: str) -> None:
    """Raise AssertionError unless found == due."""
    if found != due:
        raise AssertionError(f"{what}: {found}, due {due}")


def check_stream(device: torch.device) -> None:
    """Published vectors, and the op at the counter that one of them has."""
    for counter, key, words in PHILOX:
        c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
        found = philox(c0, c1, c2, c3, key)
        expect(tuple(int(word) for word in found), words, "philox words")
    low, high = PHILOX[0][2][:2]
    chains = torch.zeros(1, dtype=torch.int64, device=device)
    drawn = ops.philox_uniform(0, chains, 0, 0, num_elements=1)
    expect(float(drawn), ((low | high << 32) >> 11) * 2.0**-53, "philox_uniform")


def check_choices(device: torch.device) -> None:
    """Choices and duplicates that can be checked by hand."""
    chains = torch.arange(2, device=device)
    values = torch.tensor([[1.0, 3.0, 3.0], [5.0, float("-inf"), 2.0]], device=device)
    chosen = ops.select(values, alpha=0.0, seed=0, chains=chains, step=0)
    expect(chosen.index.tolist(), [1, 0], "select at alpha 0")
    sure = torch.tensor([[float("-inf"), 2.0]], device=device)
    chosen = ops.select(sure, alpha=0.5, seed=0, chains=chains[:1], step=0)
    expect(chosen.index.tolist(), [1], "select of the only possible candidate")
    rows = torch.tensor([[2, 1], [0, 0], [2, 1], [1, 2], [0, 0]], device=device)
    unique = ops.unique_rows(rows)
    count = int(unique.count)
    expect(count, 3, "unique_rows, count")
    expect(unique.first[:count].tolist(), [0, 1, 3], "unique_rows, first")
    expect(unique.inverse.tolist(), [0, 1, 0, 2, 1], "unique_rows, inverse")
    log_w = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf")]], device=device)
    drawn = ops.resample(log_w, seed=0, step=0, chains=chains[:1])
    expect(drawn.ancestors.tolist(), [[0, 0, 2, 2]], "resample of two equal particles")


def op_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """One small call of every op: its arguments, on the CPU."""
    chains = torch.tensor([0, 7, 2**32 - 1])
    stream = (2**64 - 1, chains, 5, 3)
    drawn = dict(seed=2024, chains=chains, step=3)
    x = torch.arange(27).view(3, 9) % 5  # token 4 is the mask
    logits = torch.arange(108.0).view(3, 9, 4).sin()
    values = torch.arange(18.0).view(3, 6).cos()
    keys = reference.masked_keys(x)
    numbers = (values[:, 0], values[:, 1])
    return {
        "philox_uniform": (stream, dict(num_elements=9, num_candidates=3)),
        "philox_normal": (stream, dict(num_elements=9, num_candidates=3)),
        "masked_keys": ((x,), {}),
        "masked_propose": (
            (logits, x, keys),
            dict(mask_token=4, rho=0.5, num_candidates=5, **drawn),
        ),
        "masked_posterior": ((logits, x), dict(mask_token=4, num_samples=3, keys=keys, seed=2024)),
        "unique_rows": ((x[:, :1] % 2,), {}),
        "gaussian_propose": (
            (values, values.sin()),
            dict(a=0.5, b=0.25, s=0.75, num_candidates=4, **drawn),
        ),
        "select": ((values,), dict(alpha=0.5, gather=[values], **drawn)),
        "resample": ((values,), dict(gather=[values], **drawn)),
        "soft_value": ((values, 0.5), {}),
        "gaussian_ppo": (
            (values, values.sin(), values.tan(), *numbers),
            dict(a=0.5, b=0.25, s=0.75, clip=(0.5, 2.0), output_ref=values.exp()),
        ),
        "masked_ppo": (
            (logits, x, x % 4, *numbers),
            dict(mask_token=4, rho=0.5, clip=(0.5, 2.0), logits_ref=logits.cos()),
        ),
        "gumbel_softmax_step": (
            (logits, torch.nn.functional.one_hot(x).float()),
            dict(rho=0.5, tau=0.75, logits_ref=logits.cos(), **drawn),
        ),
        "subs_cross_entropy": ((logits, x, x % 4), dict(mask_token=4, weight=values[:, 0])),
    }


def check_every_op(device: torch.device) -> None:
    """Each op gives what its definition in plain PyTorch gives: integers equal, floats close."""
    for op, (arguments, options) in op_calls().items():
        due = getattr(reference, op)(*arguments, **options)
        found = getattr(ops, op)(*_moved(arguments, device), **_moved(options, device))
        for number, (one, other) in enumerate(zip(_flat(found), _flat(due), strict=True)):
            one = one.cpu()
            expect((one.shape, one.dtype), (other.shape, other.dtype), f"{op}, output {number}")
            tolerance = TOLERANCE.get(other.dtype, 0.0)
            near = torch.isclose(one, other, rtol=tolerance, atol=tolerance)
            expect(int((~near).sum()), 0, f"{op}, output {number}, wrong values")


def check_sampler(device: torch.device) -> None:
    """A small guided run, bit for bit."""
    samples = tiny_run(device).tolist()
    found = tuple(sum(token * 3**site for site, token in enumerate(row)) for row in samples)
    expect(found, TINY, "samples")


def tiny_run(device: torch.device) -> Tensor:
    """[24, 4] samples of SVDD with a denoiser and a reward that are tables."""

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        left = torch.roll(x, 1, dims=1)
        return table[left]

    def reward(x: Tensor) -> Tensor:
        return (x * weights).sum(dim=1)

    # binary fractions, so that no rounding is involved before the draws
    table = torch.tensor(
        [[1.0, 0.5, -0.5], [-0.25, 0.0, 1.5], [0.75, -1.0, 0.25], [0.0, 0.5, 0.25]],
        dtype=torch.float64,
        device=device,
    )
    weights = torch.tensor([1.0, -1.0, 0.5, 2.0], device=device)
    sampler = SVDD(
        MaskedDiffusion(denoiser, 4, 3, device=device), reward, num_candidates=4, alpha=0.5
    )
    return sampler.sample(24, num_steps=6, seed=2024, progress=False).samples


def _moved(value: Any, device: torch.device) -> Any:
    """Every tensor of nested arguments, on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(item, device) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    return value


def _flat(value: Any) -> Iterator[Tensor]:
    """The tensors of an op's result, in order."""
    if isinstance(value, Tensor):
        yield value
    else:
        for item in value:
            yield from _flat(item)


TESTS = {
    "random stream": check_stream,
    "choices": check_choices,
    "every op": check_every_op,
    "guided run": check_sampler,
}
