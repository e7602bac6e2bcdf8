"""K successors of each masked state in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastguide import reference
from fastguide.errors import ArgumentError
from fastguide.ops import _backend, _check, _device
from fastguide.ops._library import register, run_reference
from fastguide.rng import Purpose

OP = "masked_propose"


class Proposal(NamedTuple):
    """Candidates: tokens [N, K, L] int64, keys [N, K, 2] int64, changed [N, K] int32."""

    tokens: torch.Tensor
    keys: torch.Tensor
    changed: torch.Tensor


def masked_propose(
    logits: torch.Tensor,
    x: torch.Tensor,
    keys: torch.Tensor,
    *,
    mask_token: int,
    rho: float | torch.Tensor,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    num_candidates: int,
    index: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
    first_candidate: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> Proposal:
    """Reveal each masked site with probability rho and draw a token only where revealed.

    Args:
        logits: [U, L, V] float32|float64, any strides; -inf forbids a token. Read only at sites
            that some candidate reveals. Or [S, V], rows of single sites, with index [N, L].
        x: [N, L] int64, any strides; sites equal to mask_token are masked, the others hold tokens
            in [0, V) and are copied.
        keys: [N, 2] int64, `masked_keys(x)`.   mask_token: any int.
        rho: reveal probability in [0, 1]; 1 reveals every masked site.
        seed: int in [0, 2**64).   chains: [N] int64 global chain ids.   step: in [0, 2**24).
        num_candidates: K >= 1.   index: [N] int64, row of logits of each chain; None: row n.
            With logits [S, V]: [N, L] int64, row of each site; read where a site reveals.
        temperature: positive; tokens follow softmax(logits / temperature).
        first_candidate: [N] int64, candidate id = first_candidate[n] + k; None: zeros.
            On CUDA, seed and step (int64), rho and temperature (float64) may be device tensors of
            one element, which a captured graph reads anew at every replay.
        out: optional (tokens, keys, changed), contiguous, overwritten.

    Returns:
        Proposal: tokens [N, K, L] int64, keys [N, K, 2] int64, changed [N, K] int32, the number of
        sites revealed.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        NonFiniteError: NaN, +inf, or only -inf among logits that were needed; names row and site.
        GradientError: logits requires grad.   BackendError: no backend can serve.

    Noise: REVEAL: word id % 4 of block (site, id // 4) below floor(rho * 2**32); TOKEN: 53 bits of
        block (site, id) through the inverse CDF in float64, clamped to the last positive weight.
    Determinism: equal integers on every backend, instruction set, thread count and split.
    Cost: writes 8 N K L bytes; one Philox block per masked site and four candidates.
    Source: the absorbing reverse kernel of Sahoo et al. 2024 (MDLM), in two stages.
    Oracle: fastguide.reference.masked_propose.
    """
    on_device = _device.check_scalars(OP, x, rho=rho, seed=seed, step=step, temperature=temperature)
    arguments = (
        logits,
        x,
        keys,
        mask_token,
        _device.number(rho),
        _device.signed_seed(seed),
        chains,
        step,
        num_candidates,
        index,
        _device.number(temperature),
        first_candidate,
    )
    if out is None and not on_device:
        return Proposal(*torch.ops.fastguide.masked_propose(*arguments))
    return _run(*arguments, out)


def _run(
    logits: torch.Tensor,
    x: torch.Tensor,
    keys: torch.Tensor,
    mask_token: int,
    rho: float | torch.Tensor,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    num_candidates: int,
    index: torch.Tensor | None,
    temperature: float | torch.Tensor,
    first_candidate: torch.Tensor | None,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
) -> Proposal:
    _check.no_gradient(OP, logits=logits)
    _check.dtype("x", x, (torch.int64,))
    _check.shape("x", x, [None, None], "[N, L]")
    num_rows, length = x.shape
    index = _check.site_logits(logits, index, num_rows, length, "[N]", "[N, L]")
    keys = _check.integers("keys", keys, [num_rows, 2], "[N, 2]")
    chains = _check.integers("chains", chains, [num_rows], "[N]")
    first_candidate = _check.optional_integers(
        "first_candidate", first_candidate, [num_rows], "[N]"
    )
    _check.same_device(
        OP, logits, x=x, keys=keys, chains=chains, index=index, first_candidate=first_candidate
    )
    _check.at_least("num_candidates", num_candidates, 1)
    if not isinstance(temperature, torch.Tensor):
        _check.temperature(temperature)
    if not isinstance(rho, torch.Tensor) and not 0.0 <= rho <= 1.0:
        raise ArgumentError(
            f"rho must be a probability in [0, 1], got {rho}; it is (a(t) - a(t')) / a(t)"
        )
    _device.counter(step, Purpose.REVEAL)

    due = (num_rows, num_candidates)
    if out is None:
        device = x.device
        tokens = torch.empty((*due, length), dtype=torch.int64, device=device)
        new_keys = torch.empty((*due, 2), dtype=torch.int64, device=device)
        changed = torch.empty(due, dtype=torch.int32, device=device)
    else:
        tokens, new_keys, changed = out
        _check.output("tokens", tokens, (*due, length), torch.int64, x)
        _check.output("keys", new_keys, (*due, 2), torch.int64, x)
        _check.output("changed", changed, due, torch.int32, x)

    seed = _device.unsigned_seed(seed)
    proposal = Proposal(tokens, new_keys, changed)
    if _backend.use_reference(OP, x):
        result = run_reference(
            OP,
            reference.masked_propose,
            logits,
            x,
            keys,
            mask_token=mask_token,
            rho=rho,
            seed=seed,
            chains=chains,
            step=step,
            num_candidates=num_candidates,
            index=index,
            temperature=temperature,
            first_candidate=first_candidate,
        )
        for target, source in zip(proposal, result, strict=True):
            target.copy_(source)
        return proposal
    fault = _backend.launcher(OP, x)(
        logits,
        x,
        keys,
        mask_token,
        rho,
        seed,
        chains,
        step,
        index,
        temperature,
        first_candidate,
        tokens,
        new_keys,
        changed,
    )
    if fault is not None:
        _check.raise_fault(OP, fault)
    return proposal


def _allocate(
    logits: torch.Tensor,
    x: torch.Tensor,
    keys: torch.Tensor,
    mask_token: int,
    rho: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    num_candidates: int,
    index: torch.Tensor | None,
    temperature: float,
    first_candidate: torch.Tensor | None,
) -> Proposal:
    return _run(
        logits,
        x,
        keys,
        mask_token,
        rho,
        seed,
        chains,
        step,
        num_candidates,
        index,
        temperature,
        first_candidate,
        None,
    )


def _fake(
    logits: torch.Tensor,
    x: torch.Tensor,
    keys: torch.Tensor,
    mask_token: int,
    rho: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    num_candidates: int,
    index: torch.Tensor | None,
    temperature: float,
    first_candidate: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check.no_gradient(OP, logits=logits)
    num_rows, length = x.shape
    return (
        x.new_empty((num_rows, num_candidates, length)),
        x.new_empty((num_rows, num_candidates, 2)),
        x.new_empty((num_rows, num_candidates), dtype=torch.int32),
    )


register(
    "masked_propose(Tensor logits, Tensor x, Tensor keys, int mask_token, float rho, int seed, "
    "Tensor chains, int step, SymInt num_candidates, Tensor? index, float temperature, "
    "Tensor? first_candidate) -> (Tensor, Tensor, Tensor)",
    _allocate,
    _fake,
)
