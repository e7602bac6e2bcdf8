"""One candidate per chain, with log-mean-exp, effective sample size and the gather that follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from fastguide import reference
from fastguide.errors import ArgumentError
from fastguide.ops import _backend, _check, _device, _gather
from fastguide.ops._library import register, run_reference
from fastguide.reference.gather import GatherItem
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
    alpha: float | torch.Tensor,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
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
            On CUDA, alpha (float64), seed and step (int64) may be device tensors of one element,
            which a captured graph reads anew at every replay; alpha > 0 then if log_ratio is given.
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
    on_device = _device.check_scalars(OP, values, alpha=alpha, seed=seed, step=step)
    tensors, indices = _gather.split(gather)
    arguments = (
        values,
        alpha if isinstance(alpha, torch.Tensor) else float(alpha),
        _device.signed_seed(seed),
        chains,
        step,
        int(purpose),
        log_ratio,
        particles,
        tensors,
        indices,
    )
    if out is None and not on_device:
        index, lme, ess, gathered = torch.ops.fastguide.select(*arguments)
        return Selection(index, lme, ess, tuple(gathered))
    return _run(*arguments, out)


def _run(
    values: torch.Tensor,
    alpha: float | torch.Tensor,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    purpose: int,
    log_ratio: torch.Tensor | None,
    particles: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor | None],
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Sequence[torch.Tensor]] | None,
    launch: Callable[..., Any] | None = None,
) -> Selection:
    _check.no_gradient(OP, values=values, log_ratio=log_ratio)
    _check.dtype("values", values, _check.FLOATS)
    _check.shape("values", values, [None, None], "[N, K]")
    num_rows, num_candidates = values.shape
    _check.at_least("the number of candidates values.shape[1]", num_candidates, 1)
    on_host = not isinstance(alpha, torch.Tensor)
    if on_host and not (alpha >= 0 and math.isfinite(alpha)):
        raise ArgumentError(
            f"alpha must be finite and >= 0 (reward units per nat), got {alpha}; "
            "0 takes the best candidate"
        )
    if log_ratio is not None:
        if on_host and alpha == 0:
            raise ArgumentError("log_ratio must be None when alpha = 0: argmax ignores it")
        _check.dtype("log_ratio", log_ratio, _check.FLOATS)
        _check.shape("log_ratio", log_ratio, [num_rows, num_candidates], "[N, K]")
    counter = _device.counter(step, purpose)
    chains = _check.integers("chains", chains, [num_rows], "[N]")
    particles = _check.optional_integers("particles", particles, [num_rows], "[N]")
    _check.same_device(OP, values, chains=chains, log_ratio=log_ratio, particles=particles)
    items = _gather.checked(OP, tensors, indices, values, "[N, K]")

    if out is None:
        index = torch.empty(num_rows, dtype=torch.int64, device=values.device)
        lme = torch.empty(num_rows, dtype=torch.float64, device=values.device)
        result = Selection(index, lme, torch.empty_like(lme), _gather.empty(items, (num_rows,)))
    else:
        result = Selection(out[0], out[1], out[2], tuple(out[3]))
        _check.output("index", result.index, (num_rows,), torch.int64, values)
        _check.output("lme", result.lme, (num_rows,), torch.float64, values)
        _check.output("ess", result.ess, (num_rows,), torch.float64, values)
        _gather.check_outputs(result.gathered, items, (num_rows,))

    seed = _device.unsigned_seed(seed)
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
            gather=_gather.join(items),
        )
        for target, source in zip(
            (result.index, result.lme, result.ess, *result.gathered),
            (index, lme, ess, *gathered),
            strict=True,
        ):
            target.copy_(source)
        return result
    fault = (launch or _backend.launcher(OP, values))(
        values,
        alpha,
        log_ratio,
        seed,
        chains,
        counter,
        particles,
        items,
        result.index,
        result.lme,
        result.ess,
        result.gathered,
    )
    if fault is not None:
        _check.raise_fault(OP, fault)
    return result


def plan_select(
    values: torch.Tensor,
    *,
    alpha: float,
    seed: int,
    chains: torch.Tensor,
    log_ratio: torch.Tensor | None = None,
    particles: torch.Tensor | None = None,
    purpose: int = Purpose.SELECT,
    gather: Sequence[GatherItem] = (),
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Sequence[torch.Tensor]] | None = None,
) -> Callable[[int], Selection]:
    """`select` for a loop that calls it with the same tensors at every step.

    Shapes, dtypes and devices are checked here, once; a call of the plan then costs little more
    than the kernel. It reads what the inputs hold at that moment and overwrites the same outputs.

    Args:
        As `select`. Inputs must be contiguous (values and log_ratio may have any strides) and keep
        their memory: fill them in place. out: None allocates once.

    Returns:
        plan(step) -> Selection, always of the same tensors.

    Raises:
        As `select`: arguments here, contents at the call. ArgumentError also for an input that is
        not contiguous.
    """
    tensors, indices = _gather.split(gather)
    inputs = {"chains": chains, "particles": particles}
    inputs |= {f"gather[{i}]": tensor for i, tensor in enumerate(tensors)}
    inputs |= {f"gather[{i}][1]": where for i, where in enumerate(indices)}
    for name, tensor in inputs.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ArgumentError(
                f"plan_select: {name} must be contiguous, because a plan reads it in place at "
                f"every step; pass {name}.contiguous() or call select"
            )
    seed = _check.signed_seed(seed)
    arguments = (alpha, seed, chains, 0, int(purpose), log_ratio, particles, tensors, indices)
    calls: list[tuple[Any, ...]] = []
    result = _run(values, *arguments, out, launch=lambda *call: calls.append(call))
    if not calls:
        return lambda step: _run(values, alpha, seed, chains, step, *arguments[4:], result)
    before, after = calls[0][:5], calls[0][6:]
    launch = _backend.launcher(OP, values)
    if launch is _backend.native().launch_select:
        before, after, launch = (), (), _backend.native().plan_select(*before, *after)

    def run(step: int) -> Selection:
        fault = launch(*before, _check.counter(step, purpose), *after)
        if fault is not None:
            _check.raise_fault(OP, fault)
        return result

    return run


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
    return (
        values.new_empty((num_rows,), dtype=torch.int64),
        lme,
        torch.empty_like(lme),
        _gather.fake(OP, tensors, indices, (num_rows,)),
    )


register(
    "select(Tensor values, float alpha, int seed, Tensor chains, int step, int purpose, "
    "Tensor? log_ratio, Tensor? particles, Tensor[] tensors, Tensor?[] indices) "
    "-> (Tensor, Tensor, Tensor, Tensor[])",
    _allocate,
    _fake,
)
