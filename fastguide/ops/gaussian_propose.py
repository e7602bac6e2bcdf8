"""Candidates of one Gaussian reverse step: schedule arithmetic and noise in one pass."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from fastguide import reference
from fastguide.errors import ArgumentError, GradientError, ShapeError
from fastguide.ops import _backend, _check, _device
from fastguide.ops._library import LIBRARY, register, run_reference
from fastguide.rng import Purpose

OP = "gaussian_propose"


class GaussianProposal(NamedTuple):
    """candidates [N, K, ...] of the dtype of x, log_ratio [N, K] float64 (nats) or [N, 0]."""

    candidates: torch.Tensor
    log_ratio: torch.Tensor


def gaussian_propose(
    x: torch.Tensor,
    output: torch.Tensor,
    *,
    a: float | torch.Tensor,
    b: float | torch.Tensor,
    s: float | torch.Tensor,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    num_candidates: int,
    index: torch.Tensor | None = None,
    first_candidate: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> GaussianProposal:
    """Draw K successors x' = a x + b output + shift + s z of every chain.

    Args:
        x: [N, ...] float32|float64, the states.   output: [U, ...] of the dtype and trailing shape
            of x, what the denoiser returned; any strides.
        a, b, s: finite coefficients of the step, s >= 0 the standard deviation of the noise.
        seed: int in [0, 2**64).   chains: [N] int64 global chain ids.   step: in [0, 2**24).
            On CUDA, a, b, s (float64), seed and step (int64) may be device tensors of one element,
            which a captured graph reads anew at every replay; s > 0 then if shift is given.
        num_candidates: K >= 1.   index: [N] int64, chain n reads output[index[n]]; None: row n.
        first_candidate: [N] int64, candidate id = first_candidate[n] + k; None: zeros.
        shift: [N, ...] of the dtype of x, added to the mean of the proposal; needs s > 0.
        out: optional (candidates, log_ratio), contiguous, overwritten; log_ratio is [N, 0] without
            a shift. Neither may overlap an input.

    Returns:
        GaussianProposal: candidates [N, K, ...] of the dtype of x; log_ratio [N, K] float64, nats:
        log N(x'; a x + b output, s^2) - log N(x'; a x + b output + shift, s^2), which is
        sum(-shift z / s - shift^2 / (2 s^2)) over the elements; [N, 0] without a shift.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        GradientError: `out` together with an input that requires grad.
        BackendError: no backend can serve.

    Noise: normal e of `philox_normal(seed, chains, step, Purpose.NOISE)` for element e of the
        flattened state, so that x' of (chain, candidate id) does not depend on N, K or any split.
        s = 0 draws nothing.
    Determinism: cpp is bit-equal on every instruction set, thread count and split; across backends
        the noise agrees to 2 ulp of its dtype. NaN and infinities of the inputs go through.
    Gradient: in x, output and shift, once.   Cost: reads x and output once per chain, writes the
        candidates; one normal per element written.   Oracle: fastguide.reference.gaussian_propose.
    """
    on_device = _device.check_scalars(OP, x, a=a, b=b, s=s, seed=seed, step=step)
    arguments = (
        x,
        output,
        _device.number(a),
        _device.number(b),
        _device.number(s),
        _device.signed_seed(seed),
        chains,
        step,
        num_candidates,
        index,
        first_candidate,
        shift,
    )
    if out is None and not on_device:
        return GaussianProposal(*torch.ops.fastguide.gaussian_propose(*arguments))
    for name, tensor in (("x", x), ("output", output), ("shift", shift)):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise GradientError(
                f"gaussian_propose: out= cannot carry a gradient, but {name} requires one; leave "
                "out= away or call it under torch.no_grad()"
            )
    return _run(*arguments, out)


def _run(
    x: torch.Tensor,
    output: torch.Tensor,
    a: float | torch.Tensor,
    b: float | torch.Tensor,
    s: float | torch.Tensor,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    num_candidates: int,
    index: torch.Tensor | None,
    first_candidate: torch.Tensor | None,
    shift: torch.Tensor | None,
    out: tuple[torch.Tensor, torch.Tensor] | None,
) -> GaussianProposal:
    _check.dtype("x", x, _check.FLOATS)
    if x.dim() < 2:
        raise ShapeError(
            "x must have shape [N, ...] with at least one trailing dimension, got "
            f"{list(x.shape)}; use x[:, None] for scalar states"
        )
    num_chains, *inner = x.shape
    _check.dtype("output", output, (x.dtype,))
    rows = None if index is not None else num_chains
    _check.shape("output", output, [rows, *inner], "[U, ...]")
    _coefficients(a, b, s, shift)
    if shift is not None:
        _check.dtype("shift", shift, (x.dtype,))
        _check.shape("shift", shift, [num_chains, *inner], "[N, ...]")
    _check.at_least("num_candidates", num_candidates, 1)
    counter = _device.counter(step, Purpose.NOISE)
    chains = _check.integers("chains", chains, [num_chains], "[N]")
    if index is not None:
        index = _check.integers("index", index, [num_chains], "[N]")
    if first_candidate is not None:
        first_candidate = _check.integers("first_candidate", first_candidate, [num_chains], "[N]")
    _check.same_device(
        OP,
        x,
        output=output,
        chains=chains,
        index=index,
        first_candidate=first_candidate,
        shift=shift,
    )
    due = (num_chains, num_candidates, *inner)
    due_ratio = (num_chains, 0 if shift is None else num_candidates)
    if out is None:
        result = GaussianProposal(
            torch.empty(due, dtype=x.dtype, device=x.device),
            torch.empty(due_ratio, dtype=torch.float64, device=x.device),
        )
    else:
        result = GaussianProposal(*out)
        _check.output("candidates", result.candidates, due, x.dtype, x)
        _check.output("log_ratio", result.log_ratio, due_ratio, torch.float64, x)
    seed = _device.unsigned_seed(seed)
    if _backend.use_reference(OP, x):
        due_result = run_reference(
            OP,
            reference.gaussian_propose,
            x.detach(),
            output.detach(),
            a=a,
            b=b,
            s=s,
            seed=seed,
            chains=chains,
            step=step,
            num_candidates=num_candidates,
            index=index,
            first_candidate=first_candidate,
            shift=None if shift is None else shift.detach(),
        )
        for target, source in zip(result, due_result, strict=True):
            target.copy_(source)
        return result
    fault = _backend.launcher(OP, x)(
        x,
        output,
        a,
        b,
        s,
        seed,
        chains,
        counter,
        index,
        first_candidate,
        shift,
        result.candidates,
        result.log_ratio,
    )
    if fault is not None:
        _check.raise_fault(OP, fault)
    return result


def _coefficients(
    a: float | torch.Tensor,
    b: float | torch.Tensor,
    s: float | torch.Tensor,
    shift: torch.Tensor | None,
) -> None:
    for name, value in (("a", a), ("b", b), ("s", s)):
        if not isinstance(value, torch.Tensor) and not math.isfinite(value):
            raise ArgumentError(f"{name} must be finite, got {value}; check the schedule")
    if isinstance(s, torch.Tensor):
        return
    if s < 0:
        raise ArgumentError(f"s must be >= 0 (a standard deviation), got {s}")
    if shift is not None and s == 0:
        raise ArgumentError(
            "shift needs s > 0: without noise the shifted and the plain step never meet; add the "
            "shift to x yourself, or leave it away at s = 0"
        )


def _allocate(
    x: torch.Tensor,
    output: torch.Tensor,
    a: float,
    b: float,
    s: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    num_candidates: int,
    index: torch.Tensor | None,
    first_candidate: torch.Tensor | None,
    shift: torch.Tensor | None,
) -> GaussianProposal:
    return _run(
        x,
        output,
        a,
        b,
        s,
        seed,
        chains,
        step,
        num_candidates,
        index,
        first_candidate,
        shift,
        None,
    )


def _fake(
    x: torch.Tensor,
    output: torch.Tensor,
    a: float,
    b: float,
    s: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    num_candidates: int,
    index: torch.Tensor | None,
    first_candidate: torch.Tensor | None,
    shift: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    num_chains, *inner = x.shape
    return (
        x.new_empty((num_chains, num_candidates, *inner)),
        x.new_empty((num_chains, 0 if shift is None else num_candidates), dtype=torch.float64),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, rows, ctx.a, ctx.b, ctx.s, ctx.seed, chains, ctx.step, ctx.num_candidates = inputs[:9]
    index, first_candidate, shift = inputs[9:]
    ctx.num_outputs = rows.shape[0]
    ctx.save_for_backward(chains, index, first_candidate, shift)


def _backward(
    ctx: Any, d_candidates: torch.Tensor, d_log_ratio: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    chains, index, first_candidate, shift = ctx.saved_tensors
    dtype = d_candidates.dtype
    total = d_candidates.double().sum(1)
    d_output = ctx.b * total
    if index is not None:
        d_output = total.new_zeros((ctx.num_outputs, *total.shape[1:])).index_add(
            0, index, d_output
        )
    d_shift = None
    if shift is not None:
        inner = shift.shape[1:]
        # The stream gives the noise again, so that nothing of size [N, K, D] is kept.
        z = torch.ops.fastguide.philox_normal(
            ctx.seed,
            chains,
            ctx.step,
            int(Purpose.NOISE),
            inner.numel(),
            ctx.num_candidates,
            first_candidate,
            torch.float64,
        )
        pulled = torch.bmm(d_log_ratio[:, None], z).view(-1, *inner) / ctx.s
        pushed = d_log_ratio.sum(1).view(-1, *[1] * len(inner)) * shift.double() / ctx.s**2
        d_shift = (total - pulled - pushed).to(dtype)
    return (
        (ctx.a * total).to(dtype),
        d_output.to(dtype),
        *[None] * 9,
        d_shift,
    )


register(
    "gaussian_propose(Tensor x, Tensor output, float a, float b, float s, int seed, Tensor chains, "
    "int step, SymInt num_candidates, Tensor? index, Tensor? first_candidate, Tensor? shift) "
    "-> (Tensor, Tensor)",
    _allocate,
    _fake,
)
torch.library.register_autograd(
    "fastguide::gaussian_propose", _backward, setup_context=_setup_context, lib=LIBRARY
)
