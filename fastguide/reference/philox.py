"""Philox4x32-10 and the draws made from its words.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
32-bit words are held in int64 tensors; products wrap in two's complement, which keeps their bits.
"""

from __future__ import annotations

import math

import torch

from fastguide.reference.faults import FaultCode, require

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

LOW = 0xFFFFFFFF
MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85


def philox(
    c0: torch.Tensor, c1: torch.Tensor, c2: torch.Tensor, c3: torch.Tensor, key: tuple[int, int]
) -> Words:
    """The four output words at counter (c0, c1, c2, c3): int64 in [0, 2**32), broadcast."""
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1, c2, c3)
    k0, k1 = key
    for _ in range(10):
        p0 = c0 * MULTIPLIER_0
        p1 = c2 * MULTIPLIER_1
        c0 = ((p1 >> 32) & LOW) ^ c1 ^ k0
        c1 = p1 & LOW
        c2 = ((p0 >> 32) & LOW) ^ c3 ^ k1
        c3 = p0 & LOW
        k0 = (k0 + WEYL_0) & LOW
        k1 = (k1 + WEYL_1) & LOW
    return c0, c1, c2, c3


def seed_key(seed: int) -> tuple[int, int]:
    """Key words of a seed in [0, 2**64)."""
    return seed & LOW, seed >> 32


def uniform53(w0: torch.Tensor, w1: torch.Tensor) -> torch.Tensor:
    """53-bit uniform in [0, 1), float64: ((w0 | w1 << 32) >> 11) * 2**-53. Exact, term by term."""
    return w1.double() * 2.0**-32 + (w0 >> 11).double() * 2.0**-53


def box_muller(w_a: torch.Tensor, w_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two independent standard normals (r cos, r sin), float64.

    u1 = (w_a + 0.5) * 2**-32, r = sqrt(-2 ln u1), theta = 2 pi w_b * 2**-32. The angle is reduced
    to [-pi/4, pi/4] in integers, so that the result is accurate near the zeros of cos and sin.
    """
    radius = torch.sqrt(-2.0 * torch.log((w_a.double() + 0.5) * 2.0**-32))
    shifted = w_b + 2**29
    quadrant = (shifted >> 30) & 3
    angle = ((shifted & (2**30 - 1)) - 2**29).double() * (2.0 * math.pi * 2.0**-32)
    cos, sin = torch.cos(angle), torch.sin(angle)
    odd = (quadrant & 1) == 1
    cos, sin = torch.where(odd, -sin, cos), torch.where(odd, cos, sin)
    sign = torch.where(quadrant >= 2, -1.0, 1.0).double()
    return radius * (sign * cos), radius * (sign * sin)


def candidate_ids(
    num_chains: int, num_candidates: int, first_candidate: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """Candidate ids first_candidate[n] + k as [N, K] int64.

    Raises:
        Fault: CANDIDATE, an id outside [0, 2**32).
    """
    k = torch.arange(num_candidates, device=device)
    if first_candidate is None:
        return k.expand(num_chains, num_candidates)
    ok = (first_candidate >= 0) & (first_candidate + num_candidates <= 2**32)
    require(ok, FaultCode.CANDIDATE, first_candidate)
    return first_candidate[:, None] + k


def check_chains(chains: torch.Tensor) -> None:
    """Raise Fault CHAIN for an id outside [0, 2**32)."""
    require((chains >= 0) & (chains < 2**32), FaultCode.CHAIN, chains)


def counter_word3(step: int, purpose: int, device: torch.device) -> torch.Tensor:
    """Counter word c3 = step << 8 | purpose, as an int64 scalar tensor."""
    return torch.tensor((step << 8) | purpose, dtype=torch.int64, device=device)
