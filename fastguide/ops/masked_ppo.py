"""PPO terms of a masked step: token log-probabilities, clipped surrogate and KL in one pass."""

from __future__ import annotations

from typing import Any

import torch

from fastguide import reference
from fastguide.ops import _backend, _check
from fastguide.ops._library import run_reference
from fastguide.ops._training import (
    PULLS,
    PPOTerms,
    TrainingOp,
    clip_bounds,
    doubles,
    empty_terms,
    joined_pulls,
    row_numbers,
    slope_of_surrogate,
)
from fastguide.reference.masked_ppo import masked_ppo_backward, site_terms

OP = "masked_ppo"


def masked_ppo(
    logits: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    *,
    mask_token: int,
    rho: float | torch.Tensor,
    clip: tuple[float, float],
    logits_ref: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> PPOTerms:
    """PPO terms of the transitions x -> x_next of a masked policy, row by row.

    Args:
        logits: [N, L, V] bfloat16|float16|float32|float64, any strides; the policy draws tokens
            from softmax(logits / temperature). Carries the gradient; read at masked sites only.
            Those of 16 bits are computed with in float32, without a copy; their gradient is that,
            rounded to their dtype.
        x, x_next: [N, L] int64, the states before and after: mask_token or a token in [0, V). Where
            x is clean, x_next is not read.
        old_log_prob: [N] float32|float64, `log_prob` of this op when the data were drawn.
        advantage: [N] float32|float64, in reward units.
        rho: probability that a masked site is revealed in this step, a number or [N]; scales kl.
        clip: least and greatest ratio, such as (0.8, 1.2).
        logits_ref: [N, L, V] as logits, of the reference; None: kl is 0.
        temperature: > 0, of policy and reference.

    Returns:
        PPOTerms of [N]; log_prob is the sum of log softmax(logits / temperature)[x_next] over the
        sites revealed in this step. The law of the reveals does not depend on the logits and is
        left out; it cancels in every ratio. kl = rho times the sum over the masked sites of the
        KL of the token: that of the step, exactly.
        A loss is `(terms.surrogate + alpha * terms.kl).mean()`.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        GradientError: another input than logits requires grad.
        BackendError: no backend can serve.

    Determinism: bit-equal for any number of rows, threads and instruction set; equal weights give
        ratio = 1 exactly. NaN goes through; a logit of -inf forbids its token.
    Gradient: in logits, once; 0 at clean sites.   Oracle: fastguide.reference.masked_ppo.
    Source: Schulman et al. 2017 (arXiv 1707.06347); Sahoo et al. 2024 (arXiv 2406.07524).
    """
    given = dict(logits_ref=logits_ref, old_log_prob=old_log_prob, advantage=advantage)
    _check.no_gradient(OP, **given)
    low, high = clip_bounds(clip)
    _check.temperature(temperature)
    numbers = row_numbers(x, old_log_prob=old_log_prob, advantage=advantage, rho=rho)
    before = (logits, x, x_next, numbers[0], numbers[1], mask_token, numbers[2])
    return PPOTerms(*OPERATOR(*before, low, high, logits_ref, float(temperature))[:5])


def _run(
    logits: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    mask_token: int,
    rho: torch.Tensor,
    low: float,
    high: float,
    logits_ref: torch.Tensor | None,
    temperature: float,
) -> tuple[torch.Tensor, ...]:
    _check.dtype("logits", logits, _check.HALVES + _check.FLOATS)
    x = _check.integers("x", x, [None, None], "[N, L]")
    num_rows, length = x.shape
    x_next = _check.integers("x_next", x_next, [num_rows, length], "[N, L]")
    _check.shape("logits", logits, [num_rows, length, None], "[N, L, V]")
    _check.at_least("the number of tokens logits.shape[2]", logits.shape[2], 1)
    if logits_ref is not None:
        _check.dtype("logits_ref", logits_ref, (logits.dtype,))
        _check.shape("logits_ref", logits_ref, list(logits.shape), "[N, L, V]")
    given = dict(x=x, x_next=x_next, logits_ref=logits_ref, old_log_prob=old_log_prob)
    _check.same_device(OP, logits, **given, advantage=advantage, rho=rho)
    backend, launch = _backend.served(OP, logits)
    if backend != "cpp":
        old_log_prob, advantage, rho = doubles(old_log_prob, advantage, rho)
    if launch is None:
        due = run_reference(
            OP,
            reference.masked_ppo,
            logits.detach(),
            x,
            x_next,
            old_log_prob,
            advantage,
            mask_token=mask_token,
            rho=rho,
            clip=(low, high),
            logits_ref=logits_ref,
            temperature=temperature,
        )
        terms = PPOTerms(*due)
        # the backward pass may be served by another backend, which reads them
        sites = site_terms(logits.detach(), x, mask_token, logits_ref, temperature)
        return (*terms, slope_of_surrogate(terms, advantage), sites)
    sites = logits.new_empty((num_rows, length, 3), dtype=torch.float64)
    outputs = (*empty_terms(logits), sites)
    fault = launch(
        logits,
        x,
        x_next,
        old_log_prob,
        advantage,
        mask_token,
        rho,
        low,
        high,
        logits_ref,
        temperature,
        *outputs,
    )
    if fault is not None:
        _check.raise_fault(OP, fault)
    return outputs


def _fake(logits: torch.Tensor, x: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    return (*empty_terms(logits), logits.new_empty((*x.shape, 3), dtype=torch.float64))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits, x, x_next, _, _, ctx.mask_token, rho, _, _, logits_ref, ctx.temperature = inputs
    _, _, _, ratio, clipped, slope, sites = output
    ctx.mark_non_differentiable(clipped, slope, sites)
    ctx.save_for_backward(logits, x, x_next, rho, logits_ref, sites, ratio, slope)


def _pull(
    ctx: Any,
    d_surrogate: torch.Tensor | None,
    d_kl: torch.Tensor | None,
    d_log_prob: torch.Tensor | None,
    d_ratio: torch.Tensor | None,
    *_: None,
) -> tuple[torch.Tensor | None, ...]:
    logits, x, x_next, rho, logits_ref, sites, ratio, slope = ctx.saved_tensors
    step = (logits, x, x_next, ctx.mask_token, rho, logits_ref, ctx.temperature)
    pulls = (d_surrogate, d_kl, d_log_prob, d_ratio, ratio, slope)
    return (OPERATOR.backward(*step, sites, *pulls), *[None] * 10)


def _run_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    mask_token: int,
    rho: torch.Tensor,
    logits_ref: torch.Tensor | None,
    temperature: float,
    sites: torch.Tensor,
    *pulls: Any,
) -> torch.Tensor:
    backend, launch = _backend.served(OP, logits, "_backward")
    if backend != "cpp":
        (rho,) = doubles(rho)
        pulls = joined_pulls(*pulls)
    inputs = (logits, x.contiguous(), x_next.contiguous(), mask_token, rho, logits_ref, temperature)
    if launch is None:
        return masked_ppo_backward(*inputs, *pulls)
    d_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    launch(*inputs, sites, *pulls, d_logits)
    return d_logits


def _fake_backward(logits: torch.Tensor, *others: Any) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


OPERATOR = TrainingOp(
    OP,
    "Tensor logits, Tensor x, Tensor x_next, Tensor old_log_prob, Tensor advantage, "
    "int mask_token, Tensor rho, float low, float high, Tensor? logits_ref, float temperature",
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
    backward=(
        "Tensor logits, Tensor x, Tensor x_next, int mask_token, Tensor rho, Tensor? logits_ref, "
        "float temperature, Tensor sites, " + PULLS,
        "Tensor",
        _run_backward,
        _fake_backward,
    ),
    save=_save,
    pull=_pull,
)
