"""Ancestors of each group of particles, with log-evidence increment and the gather that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastguide import reference
from fastguide.errors import ArgumentError
from fastguide.ops import _backend, _check, _device, _gather
from fastguide.ops._library import register, run_reference
from fastguide.reference.gather import GatherItem
from fastguide.reference.resample import SCHEMES
from fastguide.rng import Purpose

OP = "resample"


class Resampling(NamedTuple):
    """ancestors [G, N] int64, log_z, ess [G] float64, resampled [G] bool, gathered [G, N, ...]."""

    ancestors: torch.Tensor
    log_z: torch.Tensor
    resampled: torch.Tensor
    ess: torch.Tensor
    gathered: tuple[torch.Tensor, ...]


def resample(
    log_w: torch.Tensor,
    *,
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    chains: torch.Tensor,
    scheme: str = "systematic",
    ess_threshold: float | None = None,
    gather: Sequence[GatherItem] = (),
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]
    | None = None,
) -> Resampling:
    """Draw N ancestor indices in each of G groups, and gather by them.

    Args:
        log_w: [G, N] float32|float64, natural log, unnormalised, any strides; -inf is never drawn,
            NaN and +inf are errors.
        seed: int in [0, 2**64).   step: in [0, 2**24).   chains: [G] int64, *global* ids of the
            groups, so that a split run draws the same noise. On CUDA, seed and step may be int64
            device tensors of one element, which a captured graph reads anew at every replay.
        scheme: "multinomial" | "stratified" | "systematic" | "residual" | "ssp" | "killing".
        ess_threshold: share in [0, 1]: a group with ess >= ess_threshold * N is kept as it is;
            None: every group resamples.
        gather: tensors [G, N, ...] or pairs (tensor [U, ...], idx [G, N] int64) -> [G, N, ...] in
            the order of the ancestors. Any dtype.
        out: optional (ancestors, log_z, resampled, ess, gathered), contiguous, overwritten;
            gathered tensors must not overlap their sources.

    Returns:
        Resampling: ancestors [G, N] int64 in [0, N), never a zero-weight index; index n appears
        N w_n times on average, with every scheme (w = softmax(log_w)); systematic: floor(N w_n) or
        ceil(N w_n) times; ssp: the same; residual: at least floor(N w_n) times. A kept group has
        ancestors 0, ..., N - 1: its weights stay in force.
        log_z: [G] float64, nats, log-evidence increment logsumexp(log_w) - log N; 0 where kept.
        resampled: [G] bool.   ess: [G] float64, (sum w)^2 / sum w^2, in [1, N].   gathered.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        NonFiniteError: a log-weight is NaN or +inf (names group and particle), or a group has no
            finite one (names group, step and chain).
        GradientError: an input requires grad.   BackendError: no backend can serve.

    Noise: purpose RESAMPLE at (particle, 0, chain), 53 bits; systematic: particle 0 alone;
        residual: particle counts the draws that remain; killing: words 0, 1 for survival, 2, 3 for
        the draw.
    Determinism: cpp is bit-equal on every instruction set, thread count and split. Running sums in
        float64; another order of addition moves an edge of the CDF by a rounding.
    Gradient: none.   Cost: O(N) per group; reads log_w, writes 8 G N bytes.
    Source: Chopin, Papaspiliopoulos, "An Introduction to Sequential Monte Carlo", 2020, chapter 9;
        ssp: Gerber, Chopin, Whiteley 2019; killing: Del Moral, "Feynman-Kac Formulae", 2004.
    Oracle: fastguide.reference.resample.
    """
    on_device = _device.check_scalars(OP, log_w, seed=seed, step=step)
    tensors, indices = _gather.split(gather)
    arguments = (
        log_w,
        _device.signed_seed(seed),
        step,
        chains,
        scheme,
        None if ess_threshold is None else float(ess_threshold),
        tensors,
        indices,
    )
    if out is None and not on_device:
        ancestors, log_z, resampled, ess, gathered = torch.ops.fastguide.resample(*arguments)
        return Resampling(ancestors, log_z, resampled, ess, tuple(gathered))
    return _run(*arguments, out)


def _run(
    log_w: torch.Tensor,
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    chains: torch.Tensor,
    scheme: str,
    ess_threshold: float | None,
    tensors: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor | None],
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]
    | None,
) -> Resampling:
    _check.no_gradient(OP, log_w=log_w)
    _check.dtype("log_w", log_w, _check.FLOATS)
    _check.shape("log_w", log_w, [None, None], "[G, N]")
    num_groups, num_particles = log_w.shape
    _check.at_least("the number of particles log_w.shape[1]", num_particles, 1)
    if num_particles >= 2**32:
        raise ArgumentError(
            "log_w.shape[1] must lie below 2**32 (a particle is a counter word), got "
            f"{num_particles}"
        )
    if scheme not in SCHEMES:
        raise ArgumentError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if ess_threshold is not None and not 0 <= ess_threshold <= 1:
        raise ArgumentError(
            f"ess_threshold must be a share of N in [0, 1], got {ess_threshold}; None resamples "
            "every group"
        )
    counter = _device.counter(step, Purpose.RESAMPLE)
    chains = _check.integers("chains", chains, [num_groups], "[G]")
    _check.same_device(OP, log_w, chains=chains)
    items = _gather.checked(OP, tensors, indices, log_w, "[G, N]")

    lead = (num_groups, num_particles)
    if out is None:
        log_z = torch.empty(num_groups, dtype=torch.float64, device=log_w.device)
        result = Resampling(
            torch.empty(lead, dtype=torch.int64, device=log_w.device),
            log_z,
            torch.empty(num_groups, dtype=torch.bool, device=log_w.device),
            torch.empty_like(log_z),
            _gather.empty(items, lead),
        )
    else:
        result = Resampling(*out[:4], tuple(out[4]))
        _check.output("ancestors", result.ancestors, lead, torch.int64, log_w)
        _check.output("log_z", result.log_z, (num_groups,), torch.float64, log_w)
        _check.output("resampled", result.resampled, (num_groups,), torch.bool, log_w)
        _check.output("ess", result.ess, (num_groups,), torch.float64, log_w)
        _gather.check_outputs(result.gathered, items, lead)

    seed = _device.unsigned_seed(seed)
    if _backend.use_reference(OP, log_w):
        *due, gathered = run_reference(
            OP,
            reference.resample,
            log_w,
            seed=seed,
            step=step,
            chains=chains,
            scheme=scheme,
            ess_threshold=ess_threshold,
            gather=_gather.join(items),
        )
        for target, source in zip((*result[:4], *result.gathered), (*due, *gathered), strict=True):
            target.copy_(source)
        return result
    fault = _backend.launcher(OP, log_w)(
        log_w,
        seed,
        chains,
        counter,
        scheme,
        ess_threshold,
        items,
        result.ancestors,
        result.log_z,
        result.resampled,
        result.ess,
        result.gathered,
    )
    if fault is not None:
        _check.raise_fault(OP, fault, step=int(step))
    return result


def _allocate(
    log_w: torch.Tensor,
    seed: int,
    step: int,
    chains: torch.Tensor,
    scheme: str,
    ess_threshold: float | None,
    tensors: list[torch.Tensor],
    indices: list[torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    ancestors, log_z, resampled, ess, gathered = _run(
        log_w, seed, step, chains, scheme, ess_threshold, tensors, indices, None
    )
    return ancestors, log_z, resampled, ess, list(gathered)


def _fake(
    log_w: torch.Tensor,
    seed: int,
    step: int,
    chains: torch.Tensor,
    scheme: str,
    ess_threshold: float | None,
    tensors: list[torch.Tensor],
    indices: list[torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    _check.no_gradient(OP, log_w=log_w)
    num_groups = log_w.shape[0]
    log_z = log_w.new_empty((num_groups,), dtype=torch.float64)
    return (
        log_w.new_empty(log_w.shape, dtype=torch.int64),
        log_z,
        log_w.new_empty((num_groups,), dtype=torch.bool),
        torch.empty_like(log_z),
        _gather.fake(OP, tensors, indices, log_w.shape),
    )


register(
    "resample(Tensor log_w, int seed, int step, Tensor chains, str scheme, float? ess_threshold, "
    "Tensor[] tensors, Tensor?[] indices) -> (Tensor, Tensor, Tensor, Tensor, Tensor[])",
    _allocate,
    _fake,
)
