"""One candidate per chain, with log-mean-exp, effective sample size and the gather that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastguide import reference
from fastguide.errors import ArgumentError, ShapeError
from fastguide.ops import _backend, _check
from fastguide.ops._library import register, run_reference
from fastguide.reference.select import GatherItem
from fastguide.rng import Purpose

OP = "select"


class Selection(NamedTuple):
    """index [N] int64, lme [N] float64 (nats), ess [N] float64, gathered: one tensor per item."""

    index: torch.Tensor  # type: ignore[assignment]  # the name of a tuple method
    lme: torch.Tensor
    ess: torch.Tensor
    gathered: tuple[torch.Tensor, ...]


def select(
    values: torch.Tensor,
    *,
    alpha: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    log_ratio: torch.Tensor | None = None,
    particles: torch.Tensor | None = None,
    purpose: int = Purpose.SELECT,
    gather: Sequence[GatherItem] = (),
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Sequence[torch.Tensor]] | None = None,
) -> Selection:
    """Draw one candidate per row from softmax(values / alpha + log_ratio), and gather by it.

    Args:
        values: [N, K] float32|float64, reward units, any strides; -inf is never picked, NaN and
            +inf are errors.   alpha: >= 0, reward units per nat; 0 takes the first maximum.
        seed: int in [0, 2**64).   chains: [N] int64 global chain ids.   step: in [0, 2**24).
        log_ratio: [N, K] float32|float64, nats, added to values / alpha; not with alpha = 0.
        particles: [N] int64 in [0, 2**32), counter word c1 of the draw; None: zeros.
        purpose: Purpose.SELECT or Purpose.FINAL.
        gather: tensors [N, K, ...] -> [N, ...], or pairs (tensor [U, ...], idx [N, K] int64)
            -> tensor[idx[n, index[n]]]. Any dtype.
        out: optional (index, lme, ess, gathered), contiguous, overwritten; gathered tensors must
            not overlap their sources.

    Returns:
        Selection: index [N] int64; lme [N] float64, log-mean-exp of the log-weights in nats
        (alpha = 0: the largest value); ess [N] float64 in [1, K] (alpha = 0: 1); gathered.
        A row whose weights are all -inf picks floor(u * K), with lme = -inf and ess = 0.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        NonFiniteError: a log-weight is NaN or +inf; names row and candidate.
        GradientError: an input requires grad.   BackendError: no backend can serve.

    Noise: 53 bits of block (0, particle, chain, step << 8 | purpose), through the inverse CDF in
        float64, clamped to the last positive weight.
    Determinism: equal integers on every backend, instruction set, thread count and split.
    Oracle: fastguide.reference.select.
    """
    tensors = [item if isinstance(item, torch.Tensor) else item[0] for item in gather]
    indices = [None if isinstance(item, torch.Tensor) else item[1] for item in gather]
    arguments = (
        values,
        float(alpha),
        _check.signed_seed(seed),
        chains,
        step,
        int(purpose),
        log_ratio,
        particles,
        tensors,
        indices,
    )
    if out is None:
        index, lme, ess, gathered = torch.ops.fastguide.select(*arguments)
        return Selection(index, lme, ess, tuple(gathered))
    return _run(*arguments, out)


def _run(
    values: torch.Tensor,
    alpha: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    purpose: int,
    log_ratio: torch.Tensor | None,
    particles: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor | None],
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Sequence[torch.Tensor]] | None,
) -> Selection:
    _check.no_gradient(OP, values=values, log_ratio=log_ratio)
    _check.dtype("values", values, _check.FLOATS)
    _check.shape("values", values, [None, None], "[N, K]")
    num_rows, num_candidates = values.shape
    _check.at_least("the number of candidates values.shape[1]", num_candidates, 1)
    if not (alpha >= 0 and math.isfinite(alpha)):
        raise ArgumentError(
            f"alpha must be finite and >= 0 (reward units per nat), got {alpha}; "
            "0 takes the best candidate"
        )
    if log_ratio is not None:
        if alpha == 0:
            raise ArgumentError("log_ratio must be None when alpha = 0: argmax ignores it")
        _check.dtype("log_ratio", log_ratio, _check.FLOATS)
        _check.shape("log_ratio", log_ratio, [num_rows, num_candidates], "[N, K]")
    counter = _check.counter(step, purpose)
    chains = _check.integers("chains", chains, [num_rows], "[N]")
    particles = _check.optional_integers("particles", particles, [num_rows], "[N]")
    _check.same_device(OP, values, chains=chains, log_ratio=log_ratio, particles=particles)
    items = [
        _gather_item(i, tensor, where, values)
        for i, (tensor, where) in enumerate(zip(tensors, indices, strict=True))
    ]

    if out is None:
        index = torch.empty(num_rows, dtype=torch.int64, device=values.device)
        lme = torch.empty(num_rows, dtype=torch.float64, device=values.device)
        gathered = tuple(
            torch.empty((num_rows, *inner), dtype=tensor.dtype, device=values.device)
            for tensor, _, inner in items
        )
        result = Selection(index, lme, torch.empty_like(lme), gathered)
    else:
        result = Selection(out[0], out[1], out[2], tuple(out[3]))
        _check.output("index", result.index, (num_rows,), torch.int64, values)
        _check.output("lme", result.lme, (num_rows,), torch.float64, values)
        _check.output("ess", result.ess, (num_rows,), torch.float64, values)
        if len(result.gathered) != len(items):
            raise ArgumentError(
                f"out: gathered must hold one tensor per gather item ({len(items)}), "
                f"got {len(result.gathered)}"
            )
        for i, (target, (tensor, _, inner)) in enumerate(zip(result.gathered, items, strict=True)):
            _check.output(f"gathered[{i}]", target, (num_rows, *inner), tensor.dtype, values)

    seed = _check.unsigned_seed(seed)
    if _backend.use_reference(OP, values):
        index, lme, ess, gathered = run_reference(
            OP,
            reference.select,
            values,
            alpha=alpha,
            seed=seed,
            chains=chains,
            step=step,
            log_ratio=log_ratio,
            particles=particles,
            purpose=purpose,
            gather=[t if where is None else (t, where) for t, where, _ in items],
        )
        for target, source in zip(
            (result.index, result.lme, result.ess, *result.gathered),
            (index, lme, ess, *gathered),
            strict=True,
        ):
            target.copy_(source)
        return result
    fault = _backend.native().launch_select(
        values,
        alpha,
        log_ratio,
        seed,
        chains,
        counter,
        particles,
        [(tensor, where) for tensor, where, _ in items],
        result.index,
        result.lme,
        result.ess,
        result.gathered,
    )
    if fault is not None:
        _check.raise_fault(OP, fault)
    return result


def _gather_item(
    i: int, tensor: torch.Tensor, where: torch.Tensor | None, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[int, ...]]:
    """A checked gather item, with the shape of what one row takes from it."""
    name = f"gather[{i}]"
    lead = list(values.shape)
    _check.no_gradient(OP, **{name: tensor})
    _check.same_device(OP, values, **{name: tensor, f"{name}[1]": where})
    if where is None:
        if tensor.dim() < 2 or list(tensor.shape[:2]) != lead:
            raise ShapeError(
                f"{name} must have shape [N, K, ...] = {[*lead, '...']}, got {list(tensor.shape)}; "
                "pass a pair (tensor [U, ...], idx [N, K]) to gather through an index"
            )
        return tensor, None, tuple(tensor.shape[2:])
    if tensor.dim() < 1:
        raise ShapeError(f"{name}[0] must have shape [U, ...], got a scalar")
    return tensor, _check.integers(f"{name}[1]", where, lead, "[N, K]"), tuple(tensor.shape[1:])


def _allocate(
    values: torch.Tensor,
    alpha: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    purpose: int,
    log_ratio: torch.Tensor | None,
    particles: torch.Tensor | None,
    tensors: list[torch.Tensor],
    indices: list[torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    index, lme, ess, gathered = _run(
        values,
        alpha,
        seed,
        chains,
        step,
        purpose,
        log_ratio,
        particles,
        tensors,
        indices,
        None,
    )
    return index, lme, ess, list(gathered)


def _fake(
    values: torch.Tensor,
    alpha: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    purpose: int,
    log_ratio: torch.Tensor | None,
    particles: torch.Tensor | None,
    tensors: list[torch.Tensor],
    indices: list[torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    _check.no_gradient(OP, values=values, log_ratio=log_ratio)
    num_rows = values.shape[0]
    lme = values.new_empty((num_rows,), dtype=torch.float64)
    gathered = []
    for tensor, where in zip(tensors, indices, strict=True):
        _check.no_gradient(OP, gather=tensor)
        inner = tensor.shape[2:] if where is None else tensor.shape[1:]
        gathered.append(tensor.new_empty((num_rows, *inner)))
    return values.new_empty((num_rows,), dtype=torch.int64), lme, torch.empty_like(lme), gathered


register(
    "select(Tensor values, float alpha, int seed, Tensor chains, int step, int purpose, "
    "Tensor? log_ratio, Tensor? particles, Tensor[] tensors, Tensor?[] indices) "
    "-> (Tensor, Tensor, Tensor, Tensor[])",
    _allocate,
    _fake,
)
