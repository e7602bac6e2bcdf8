"""A relaxed masked step with keyed Gumbel noise, and its KL to a reference."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from fastguide import reference
from fastguide.errors import ArgumentError
from fastguide.ops import _backend, _check
from fastguide.ops._library import run_reference
from fastguide.ops._training import TrainingOp, doubles, given_or_zeros, row_numbers
from fastguide.reference.gumbel_softmax_step import gumbel_softmax_step_backward
from fastguide.rng import Purpose

OP = "gumbel_softmax_step"


class RelaxedStep(NamedTuple):
    """x [N, L, V + 1] of the dtype of the logits, the next state; kl [N] float64, nats."""

    x: torch.Tensor
    kl: torch.Tensor


def gumbel_softmax_step(
    logits: torch.Tensor,
    x: torch.Tensor,
    *,
    rho: float | torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    logits_ref: torch.Tensor | None = None,
    temperature: float = 1.0,
    straight_through: bool = False,
) -> RelaxedStep:
    """Move relaxed states one step: reveal and token are drawn together by Gumbel-softmax.

    x' = (1 - m) x + m y per site, m = x[..., V] the share that is still masked, and
    y = softmax((log q + g) / tau) with q = rho softmax(logits / temperature) for the tokens and
    1 - rho for the mask, and standard Gumbel noise g. On one-hot states with straight_through, x'
    is an exact draw of the masked step.

    Args:
        logits: [N, L, V] float32|float64.   x: [N, L, V + 1] of their dtype, rows of the simplex;
            the last column is the mask (`diffusion.relax` makes them).
        rho: probability that a masked site is revealed in this step, a number or [N], in [0, 1].
        tau: > 0, temperature of the relaxation.   seed: int in [0, 2**64).
        chains: [N] int64 global chain ids.   step: in [0, 2**24).
        logits_ref: [N, L, V] as logits, of the reference; None: kl is 0.
        temperature: > 0, of the softmax of logits and logits_ref.
        straight_through: x' is the one-hot of its largest entry (the first on ties), with the
            gradient of the relaxed x'.

    Returns:
        RelaxedStep(x, kl). kl = rho times the sum over the sites of m KL(policy's token ||
        reference's token): on hard states the KL of the masked step, exactly.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        BackendError: no backend can serve.

    Noise: g = -log(-log u), u = (w + 1/2) 2**-32 with word e % 4 of counter (e // 4, 0, chain,
        step << 8 | RELAX), where e = column + (V + 1) site. Backward draws it again: nothing but
        the inputs is kept.
    Determinism: bit-equal for any number of rows, threads and instruction set.
    Gradient: in logits, x and logits_ref, once; biased for straight_through.
    Oracle: fastguide.reference.gumbel_softmax_step.
    Source: Jang et al. 2017 (arXiv 1611.01144); the step: Wang et al. 2024 (arXiv 2410.13643).
    """
    if not (tau > 0 and math.isfinite(tau)):
        raise ArgumentError(f"tau must be positive and finite, got {tau}")
    _check.temperature(temperature)
    result = OPERATOR(
        logits,
        x,
        *row_numbers(logits, rho=rho),
        float(tau),
        _check.signed_seed(seed),
        chains,
        step,
        logits_ref,
        float(temperature),
        straight_through,
    )
    return RelaxedStep(*result)


def _run(
    logits: torch.Tensor,
    x: torch.Tensor,
    rho: torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    logits_ref: torch.Tensor | None,
    temperature: float,
    straight_through: bool,
) -> RelaxedStep:
    _check.dtype("logits", logits, _check.FLOATS)
    _check.shape("logits", logits, [None, None, None], "[N, L, V]")
    num_rows, length, vocab_size = logits.shape
    _check.at_least("the number of tokens logits.shape[2]", vocab_size, 1)
    _check.dtype("x", x, (logits.dtype,))
    _check.shape("x", x, [num_rows, length, vocab_size + 1], "[N, L, V + 1]")
    if logits_ref is not None:
        _check.dtype("logits_ref", logits_ref, (logits.dtype,))
        _check.shape("logits_ref", logits_ref, list(logits.shape), "[N, L, V]")
    chains = _check.integers("chains", chains, [num_rows], "[N]")
    _check.same_device(OP, logits, x=x, rho=rho, chains=chains, logits_ref=logits_ref)
    counter = _check.counter(step, Purpose.RELAX)
    seed = _check.unsigned_seed(seed)
    backend, launch = _backend.served(OP, logits)
    if backend != "cpp":
        (rho,) = doubles(rho)
    if launch is None:
        return RelaxedStep(
            *run_reference(
                OP,
                reference.gumbel_softmax_step,
                logits.detach(),
                x.detach(),
                rho=rho,
                tau=tau,
                seed=seed,
                chains=chains,
                step=step,
                logits_ref=None if logits_ref is None else logits_ref.detach(),
                temperature=temperature,
                straight_through=straight_through,
            )
        )
    result = RelaxedStep(
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty(num_rows, dtype=torch.float64, device=x.device),
    )
    fault = launch(
        logits,
        x,
        rho,
        tau,
        seed,
        chains,
        counter,
        logits_ref,
        temperature,
        straight_through,
        *result,
    )
    if fault is not None:
        _check.raise_fault(OP, fault)
    return result


def _fake(logits: torch.Tensor, x: torch.Tensor, *others: Any) -> RelaxedStep:
    kl = logits.new_empty((logits.shape[0],), dtype=torch.float64)
    return RelaxedStep(torch.empty_like(x, memory_format=torch.contiguous_format), kl)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits, x, rho, ctx.tau, ctx.seed, chains, ctx.step, logits_ref, ctx.temperature, _ = inputs
    ctx.save_for_backward(logits, x, rho, chains, logits_ref)


def _pull(
    ctx: Any, d_next: torch.Tensor | None, d_kl: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    logits, x, rho, chains, logits_ref = ctx.saved_tensors
    step = (logits, x, rho, ctx.tau, ctx.seed, chains, ctx.step, logits_ref, ctx.temperature)
    pulls = (given_or_zeros(d_next, x), d_kl)
    d_logits, d_x, d_ref = OPERATOR.backward(*step, *pulls)
    return (d_logits, d_x, *[None] * 5, None if logits_ref is None else d_ref, None, None)


def _run_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    rho: torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    logits_ref: torch.Tensor | None,
    temperature: float,
    d_next: torch.Tensor,
    d_kl: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    seed, chains = _check.unsigned_seed(seed), chains.contiguous()
    backend, launch = _backend.served(OP, logits, "_backward")
    if backend != "cpp":
        (rho,) = doubles(rho)
        d_kl = given_or_zeros(d_kl, rho)
    after: tuple[Any, ...] = (logits_ref, temperature, d_next, d_kl)
    if launch is None:
        given = (logits, x, rho, tau, seed, chains, step)
        d_logits, d_x, d_ref = gumbel_softmax_step_backward(*given, *after)
        return d_logits, d_x, logits.new_empty(0) if d_ref is None else d_ref
    result = _fake_backward(logits, x, rho, tau, seed, chains, step, *after)
    counter = _check.counter(step, Purpose.RELAX)
    launch(logits, x, rho, tau, seed, chains, counter, *after, *result)
    return result


def _fake_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    rho: torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    logits_ref: torch.Tensor | None,
    *others: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    d_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return d_logits, d_x, logits.new_empty(0 if logits_ref is None else logits.shape)


OPERATOR = TrainingOp(
    OP,
    "Tensor logits, Tensor x, Tensor rho, float tau, int seed, Tensor chains, int step, "
    "Tensor? logits_ref, float temperature, bool straight_through",
    "(Tensor, Tensor)",
    _run,
    _fake,
    backward=(
        "Tensor logits, Tensor x, Tensor rho, float tau, int seed, Tensor chains, int step, "
        "Tensor? logits_ref, float temperature, Tensor d_next, Tensor? d_kl",
        "(Tensor, Tensor, Tensor)",
        _run_backward,
        _fake_backward,
    ),
    save=_save,
    pull=_pull,
)
