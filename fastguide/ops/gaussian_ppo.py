"""PPO terms of a Gaussian reverse step: log-probability, clipped surrogate and KL in one pass."""

from __future__ import annotations

from typing import Any

import torch

from fastguide import reference
from fastguide.errors import ArgumentError, ShapeError
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
from fastguide.reference.gaussian_ppo import gaussian_ppo_backward

OP = "gaussian_ppo"
# The gradients of the inputs after the first.
NOTHING = (None,) * 10


def gaussian_ppo(
    output: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    *,
    a: float | torch.Tensor,
    b: float | torch.Tensor,
    s: float | torch.Tensor,
    clip: tuple[float, float],
    output_ref: torch.Tensor | None = None,
) -> PPOTerms:
    """PPO terms of the transitions x -> x_next of a policy N(a x + b output, s^2), row by row.

    Args:
        output: [N, ...] float32|float64, what the trained denoiser returns; carries the gradient.
        x, x_next: [N, ...] of the dtype and shape of output, the stored states before and after.
        old_log_prob: [N] float32|float64, `log_prob` of this op when the data were drawn.
        advantage: [N] float32|float64, in reward units.
        a, b, s: coefficients of the step, numbers or [N] where rows stand at different steps;
            s > 0 (a step without noise has no density; leave it out).
        clip: least and greatest ratio, such as (0.8, 1.2).
        output_ref: [N, ...] as output, what the reference denoiser returns; None: kl is 0.

    Returns:
        PPOTerms of [N]; log_prob is the full density, summed over the dimensions, as
        `diffusion.log_prob` gives it; kl = sum((b (output - output_ref))^2) / (2 s^2), summed too.
        A loss is `(terms.surrogate + alpha * terms.kl).mean()`.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        GradientError: another input than output requires grad.
        BackendError: no backend can serve.

    Determinism: bit-equal for any number of rows, threads and instruction set; sums in float64, so
        that equal weights give ratio = 1 exactly. NaN goes through.
    Gradient: in output, once.   Oracle: fastguide.reference.gaussian_ppo.
    Source: Schulman et al. 2017 (arXiv 1707.06347); Black et al. 2023 (arXiv 2305.13301).
    """
    if output.dim() < 2:
        raise ShapeError(
            "output must have shape [N, ...] with at least one trailing dimension, got "
            f"{list(output.shape)}; use output[:, None] for scalar states"
        )
    if torch.is_grad_enabled():
        given = dict(x=x, x_next=x_next, output_ref=output_ref)
        _check.no_gradient(OP, **given, old_log_prob=old_log_prob, advantage=advantage)
    low, high = clip_bounds(clip)
    if not isinstance(s, torch.Tensor) and not s > 0:
        raise ArgumentError(f"s must be > 0 (a step without noise has no density), got {s}")
    numbers = row_numbers(output, old_log_prob=old_log_prob, advantage=advantage, a=a, b=b, s=s)
    return PPOTerms(*OPERATOR(output, x, x_next, *numbers, low, high, output_ref)[:5])


def _run(
    output: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    s: torch.Tensor,
    low: float,
    high: float,
    output_ref: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    if output.dtype not in _check.FLOATS:
        _check.dtype("output", output, _check.FLOATS)
    shape, dtype = output.shape, output.dtype
    for name, tensor in (("x", x), ("x_next", x_next), ("output_ref", output_ref)):
        if tensor is not None and (tensor.dtype is not dtype or tensor.shape != shape):
            _check.dtype(name, tensor, (dtype,))
            _check.shape(name, tensor, list(shape), "[N, ...]")
    device = output.device
    for each in (x, x_next, old_log_prob, advantage, a, b, s, output_ref):
        if each is not None and each.device != device:
            given = dict(x=x, x_next=x_next, output_ref=output_ref, old_log_prob=old_log_prob)
            _check.same_device(OP, output, **given, advantage=advantage, a=a, b=b, s=s)
    backend, launch = _backend.served(OP, output)
    if backend != "cpp":
        old_log_prob, advantage, a, b, s = doubles(old_log_prob, advantage, a, b, s)
    if launch is None:
        due = run_reference(
            OP,
            reference.gaussian_ppo,
            *(output.detach(), x, x_next, old_log_prob, advantage),
            **dict(a=a, b=b, s=s, clip=(low, high), output_ref=output_ref),
        )
        terms = PPOTerms(*due)
        return (*terms, slope_of_surrogate(terms, advantage))
    outputs = empty_terms(output)
    fault = launch(
        output, x, x_next, old_log_prob, advantage, a, b, s, low, high, output_ref, outputs
    )
    if fault is not None:
        _check.raise_fault(OP, fault)
    return outputs


def _fake(output: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    return empty_terms(output)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    rows, x, x_next, _, _, a, b, s, _, _, output_ref = inputs
    _, _, _, ratio, clipped, slope = output
    ctx.mark_non_differentiable(clipped, slope)
    ctx.save_for_backward(rows, x, x_next, a, b, s, output_ref, ratio, slope)


def _pull(
    ctx: Any,
    d_surrogate: torch.Tensor | None,
    d_kl: torch.Tensor | None,
    d_log_prob: torch.Tensor | None,
    d_ratio: torch.Tensor | None,
    *_: None,
) -> tuple[torch.Tensor | None, ...]:
    *inputs, ratio, slope = ctx.saved_tensors
    pulls = (d_surrogate, d_kl, d_log_prob, d_ratio, ratio, slope)
    return OPERATOR.backward(*inputs, *pulls), *NOTHING


def _run_backward(
    output: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    s: torch.Tensor,
    output_ref: torch.Tensor | None,
    *pulls: Any,
) -> torch.Tensor:
    backend, launch = _backend.served(OP, output, "_backward")
    if backend != "cpp":
        a, b, s = doubles(a, b, s)
        pulls = joined_pulls(*pulls)
    if launch is None:
        return gaussian_ppo_backward(output, x, x_next, a, b, s, output_ref, *pulls)
    d_output = torch.empty_like(output, memory_format=torch.contiguous_format)
    launch(output, x, x_next, a, b, s, output_ref, pulls, d_output)
    return d_output


def _fake_backward(output: torch.Tensor, *others: Any) -> torch.Tensor:
    return torch.empty_like(output, memory_format=torch.contiguous_format)


OPERATOR = TrainingOp(
    OP,
    "Tensor output, Tensor x, Tensor x_next, Tensor old_log_prob, Tensor advantage, Tensor a, "
    "Tensor b, Tensor s, float low, float high, Tensor? output_ref",
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
    backward=(
        "Tensor output, Tensor x, Tensor x_next, Tensor a, Tensor b, Tensor s, Tensor? output_ref, "
        + PULLS,
        "Tensor",
        _run_backward,
        _fake_backward,
    ),
    save=_save,
    pull=_pull,
)
