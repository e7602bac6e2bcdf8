"""resample.cu on the host: every scheme, small and large groups, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastguide import ops, reference
from fastguide.kernels.cuda_launchers import SCHEMES


def weights(groups: int, particles: int, spread: float, seed: int = 0) -> torch.Tensor:
    """[G, N] float64 log-weights, strided, with rejected particles inside and at both ends."""
    generator = torch.Generator().manual_seed(seed)
    log_w = torch.randn(groups, 2 * particles, generator=generator, dtype=torch.float64)[:, ::2]
    log_w = spread * log_w
    if particles > 4:
        log_w[:, [0, particles // 2, -1]] = -torch.inf
    return log_w


def check(log_w: torch.Tensor, **kwargs: Any) -> None:
    arguments = dict(seed=2**63 + 7, step=11, chains=torch.arange(len(log_w)) + 5, **kwargs)
    got, due = ops.resample(log_w, **arguments), reference.resample(log_w, **arguments)
    assert torch.equal(got[0], due[0])
    assert torch.equal(got.resampled, due[2])
    torch.testing.assert_close((got.log_z, got.ess), (due[1], due[3]), rtol=1e-13, atol=1e-13)
    for one, other in zip(got.gathered, due[4], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("particles", [1, 2, 31, 32, 63, 257, 1000, 4097])
def test_small_groups(scheme: str, particles: int, on_host: list[tuple[str, str]]) -> None:
    check(weights(3, particles, 2.0), scheme=scheme)
    assert on_host == [("resample", f"resample_small<fastguide::k{scheme.capitalize()}>")]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_large_groups_take_the_grid(scheme: str, on_host: list[tuple[str, str]]) -> None:
    log_w = weights(2, 20_000, 1.0)
    check(log_w, scheme=scheme)
    assert on_host == [("resample", f"resample_large<fastguide::k{scheme.capitalize()}>")]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("particles", [7, 9000])
def test_one_live_particle_takes_all(
    scheme: str, particles: int, on_host: list[tuple[str, str]]
) -> None:
    log_w = torch.full((1, particles), -torch.inf)
    log_w[0, 4] = -3.0
    check(log_w, scheme=scheme)


@pytest.mark.parametrize("particles", [40, 9000])
def test_kept_groups(particles: int, on_host: list[tuple[str, str]]) -> None:
    log_w = weights(3, particles, 3.0)
    log_w[1] = 0.0
    check(log_w, ess_threshold=0.5, gather=[torch.arange(3 * particles).view(3, particles, 1)])


@pytest.mark.parametrize(("particles", "inner"), [(9, 3), (40, 3000), (9000, 3), (9000, 1100)])
def test_gather(particles: int, inner: int, on_host: list[tuple[str, str]]) -> None:
    many = torch.arange(2 * particles * inner, dtype=torch.float32).view(2, particles, inner)
    index = torch.arange(2 * particles).flip(0).view(2, particles) % 5
    gather = [many, (torch.arange(15).view(5, 3), index), many.to(torch.int8)[..., :1]]
    for scheme in ("systematic", "multinomial", "residual"):
        check(weights(2, particles, 1.0), scheme=scheme, gather=gather)
