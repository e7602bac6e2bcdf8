"""Ancestors of each group of particles, by six schemes, with the log-evidence increment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fastguide.reference.faults import FaultCode, require
from fastguide.reference.gather import GatherItem, gather_rows
from fastguide.reference.philox import check_chains, counter_word3, philox, seed_key, uniform53

BLOCK = 128
Uniforms = tuple[torch.Tensor, torch.Tensor]


def resample(
    log_w: torch.Tensor,
    *,
    seed: int,
    step: int,
    chains: torch.Tensor,
    scheme: str = "systematic",
    ess_threshold: float | None = None,
    gather: Sequence[GatherItem] = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Draw N ancestors in each of G groups, with expected counts N softmax(log_w).

    Args:
        log_w: [G, N] floating point, nats; -inf allowed.   chains: [G] int64.
        scheme: a key of SCHEMES.   ess_threshold: a group with ess >= ess_threshold * N keeps its
            particles and weights; None: every group resamples.
        gather: tensors [G, N, ...], or pairs (tensor [U, ...], idx [G, N] int64).

    Returns:
        ancestors [G, N] int64 (0..N-1 in a group that was kept), log_z [G] float64
        (logsumexp(log_w) - log N; 0 where kept), resampled [G] bool, ess [G] float64, gathered
        [G, N, ...] by ancestor.

    Raises:
        Fault: VALUE (NaN or +inf), NO_WEIGHT (a group of -inf), CHAIN, GATHER.
    """
    num_groups, num_particles = log_w.shape
    device = log_w.device
    check_chains(chains)
    log_w = log_w.double()
    require(~(log_w.isnan() | (log_w == torch.inf)), FaultCode.VALUE)
    top = log_w.amax(-1)
    require(top > -torch.inf, FaultCode.NO_WEIGHT, chains)

    weights = torch.exp(log_w - top[:, None])
    cdf = running_sums(weights)
    total = cdf[:, -1]
    ess = total.square() / weights.square().sum(-1)
    resampled = torch.ones(num_groups, dtype=torch.bool, device=device)
    if ess_threshold is not None:
        resampled = ess < ess_threshold * num_particles

    w0, w1, w2, w3 = philox(
        torch.arange(num_particles, device=device),
        torch.zeros((), dtype=torch.int64, device=device),
        chains[:, None],
        counter_word3(step, 9, device),
        seed_key(seed),
    )
    drawn = SCHEMES[scheme](weights, cdf, (uniform53(w0, w1), uniform53(w2, w3)))
    ancestors = torch.where(resampled[:, None], drawn, torch.arange(num_particles, device=device))
    log_z = torch.where(resampled, top + torch.log(total / num_particles), 0.0)
    gathered = tuple(gather_rows(item, ancestors) for item in gather)
    return ancestors, log_z, resampled, ess, gathered


def running_sums(weights: torch.Tensor) -> torch.Tensor:
    """Inclusive prefix sums of [G, N] float64, in blocks of BLOCK: the order of addition that the
    compiled loops use, so that the sums agree bit for bit given equal weights."""
    num_groups, n = weights.shape
    num_blocks = -(-n // BLOCK)
    padded = torch.nn.functional.pad(weights, (0, num_blocks * BLOCK - n))
    blocks = padded.view(num_groups, num_blocks, BLOCK)
    local = blocks.cumsum(-1)
    before = torch.nn.functional.pad(local[..., -1].cumsum(-1)[:, :-1], (1, 0))
    return (before[..., None] + local).flatten(1)[:, :n].contiguous()


def last_positive(weights: torch.Tensor) -> torch.Tensor:
    """[G, 1] int64: the last index of a positive weight."""
    places = torch.arange(weights.shape[1], device=weights.device)
    return torch.where(weights > 0, places, 0).amax(-1, keepdim=True)


def draw(weights: torch.Tensor, cdf: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """First n with cdf_n > u * total, clamped to the last positive weight: [G, M] of u [G, M]."""
    found = torch.searchsorted(cdf, u * cdf[:, -1:], right=True)
    return torch.minimum(found, last_positive(weights))


def expand(ends: torch.Tensor) -> torch.Tensor:
    """Ancestors in order from the running sums [G, N] of their counts, the last of which is N."""
    places = torch.arange(ends.shape[1], device=ends.device).expand(ends.shape)
    return torch.searchsorted(ends, places.contiguous(), right=True)


def _from_grid(weights: torch.Tensor, cdf: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Ancestors of the points i + u_i against the CDF scaled to [0, N]; u [G, N].

    Point i lies below an edge e iff i < floor(e), or i = floor(e) and u_i < e - floor(e): both
    sides of that comparison are exact.
    """
    n = weights.shape[1]
    edges = cdf * (n / cdf[:, -1:])
    whole = edges.floor()
    at = whole.long().clamp(max=n - 1)
    ends = torch.where(whole >= n, n, at + (u.gather(1, at) < edges - whole).long())
    places = torch.arange(n, device=weights.device)
    return expand(torch.where(places >= last_positive(weights), n, ends))


def systematic(weights: torch.Tensor, cdf: torch.Tensor, uniforms: Uniforms) -> torch.Tensor:
    """One uniform (of particle 0) shifts the whole grid."""
    return _from_grid(weights, cdf, uniforms[0][:, :1].expand_as(weights))


def stratified(weights: torch.Tensor, cdf: torch.Tensor, uniforms: Uniforms) -> torch.Tensor:
    """One uniform per cell of the grid."""
    return _from_grid(weights, cdf, uniforms[0])


def multinomial(weights: torch.Tensor, cdf: torch.Tensor, uniforms: Uniforms) -> torch.Tensor:
    """Independent ancestors."""
    return draw(weights, cdf, uniforms[0])


def killing(weights: torch.Tensor, cdf: torch.Tensor, uniforms: Uniforms) -> torch.Tensor:
    """A particle stays with probability w / max w, else an independent draw replaces it."""
    places = torch.arange(weights.shape[1], device=weights.device)
    return torch.where(uniforms[0] < weights, places, draw(weights, cdf, uniforms[1]))


def residual(weights: torch.Tensor, cdf: torch.Tensor, uniforms: Uniforms) -> torch.Tensor:
    """floor(N w) copies in order, then independent draws from what is left, uniforms from 0 on."""
    n = weights.shape[1]
    due = weights * (n / cdf[:, -1:])
    copies = due.floor()
    ends = copies.long().cumsum(-1)
    left = due - copies
    places = torch.arange(n, device=weights.device).expand(weights.shape)
    number = (places - ends[:, -1:]).clamp(min=0)
    rest = draw(left, running_sums(left), uniforms[0].gather(1, number))
    kept = torch.searchsorted(ends, places.contiguous(), right=True)
    return torch.where(places < ends[:, -1:], kept, rest)


def ssp(weights: torch.Tensor, cdf: torch.Tensor, uniforms: Uniforms) -> torch.Tensor:
    """Srinivasan sampling process: the fractions of N w are rounded in pairs that keep their sum.

    One particle is open at a time. With the next of fraction g it forms a pair of sum f + g, of
    which one takes all (sum < 1) or is rounded up to 1 (else); the other goes on with the rest.
    Source: Gerber, Chopin, Whiteley, "Negative association, ordering and convergence of resampling
    methods", Annals of Statistics 2019.
    """
    n = weights.shape[1]
    due = weights * (n / cdf[:, -1:])
    counts = due.floor().long()
    fractions = due - due.floor()
    for group in range(len(weights)):
        count, u = counts[group].tolist(), uniforms[0][group].tolist()
        opened, f = -1, 0.0
        for i, g in enumerate(fractions[group].tolist()):
            if g == 0.0:
                continue
            if f == 0.0:
                opened, f = i, g
                continue
            both = f + g
            if both < 1.0:
                opened, f = (opened if u[i] * both < f else i), both
            elif u[i] * (2.0 - both) < 1.0 - g:
                count[opened] += 1
                opened, f = i, both - 1.0
            else:
                count[i] += 1
                f = both - 1.0
        # The fractions add up to an integer: what is still open is 0 or 1 up to rounding.
        if opened >= 0:
            count[opened] += n - sum(count)
        counts[group] = torch.tensor(count)
    return expand(counts.cumsum(-1))


SCHEMES: dict[str, Callable[[torch.Tensor, torch.Tensor, Uniforms], torch.Tensor]] = {
    "systematic": systematic,
    "stratified": stratified,
    "multinomial": multinomial,
    "residual": residual,
    "ssp": ssp,
    "killing": killing,
}
