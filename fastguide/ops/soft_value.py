"""Soft values from inner samples."""

from __future__ import annotations

import math
from typing import Any

import torch

from fastguide import reference
from fastguide.errors import ArgumentError, GradientError
from fastguide.ops import _backend, _check
from fastguide.ops._library import LIBRARY, register
from fastguide.reference.soft_value import cvar_weights

OP = "soft_value"
KINDS = ("lme", "mean", "cvar")


def soft_value(
    values: torch.Tensor,
    alpha: float,
    *,
    kind: str = "lme",
    tau: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Reduce S inner samples per row to one value.

    Args:
        values: [R, S] float32|float64, reward units, any strides. NaN gives NaN.
        alpha: >= 0, reward units per nat; used by "lme" only, where 0 is the maximum.
        kind: "lme": alpha * log mean exp(values / alpha); "mean"; "cvar": mean of the worst tau
            share, the last sample in part when tau * S is no integer.
        tau: share in (0, 1], for "cvar" only.   out: optional [R] of the dtype of values.

    Returns:
        [R] of the dtype of values, in reward units; computed in float64.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        GradientError: `out` together with an input that requires grad.
        BackendError: no backend can serve.

    Gradient: in values, once (lme: softmax weights, alpha = 0: the first maximum; cvar: the weights
        of the sorted samples).   Oracle: fastguide.reference.soft_value.
    Source: soft value with S inner samples; CVaR of Rockafellar and Uryasev 2000.
    """
    arguments = (values, float(alpha), kind, None if tau is None else float(tau))
    if out is None:
        result: torch.Tensor = torch.ops.fastguide.soft_value(*arguments)
        return result
    if values.requires_grad and torch.is_grad_enabled():
        raise GradientError(
            "soft_value: out= cannot carry a gradient, but values requires one; leave out= away "
            "or call it under torch.no_grad()"
        )
    return _run(*arguments, out)


def _run(
    values: torch.Tensor, alpha: float, kind: str, tau: float | None, out: torch.Tensor | None
) -> torch.Tensor:
    _check.dtype("values", values, _check.FLOATS)
    _check.shape("values", values, [None, None], "[R, S]")
    num_rows, num_samples = values.shape
    _check.at_least("the number of samples values.shape[1]", num_samples, 1)
    if kind not in KINDS:
        raise ArgumentError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "lme" and not (alpha >= 0 and math.isfinite(alpha)):
        raise ArgumentError(f"alpha must be finite and >= 0 (reward units per nat), got {alpha}")
    if (kind == "cvar") != (tau is not None):
        raise ArgumentError(f"tau belongs to kind='cvar' alone, got kind={kind!r}, tau={tau}")
    if tau is not None and not 0 < tau <= 1:
        raise ArgumentError(f"tau must be a share in (0, 1], got {tau}")
    if out is None:
        out = torch.empty(num_rows, dtype=values.dtype, device=values.device)
    else:
        _check.output("the soft values", out, (num_rows,), values.dtype, values)
    if _backend.use_reference(OP, values):
        return out.copy_(reference.soft_value(values.detach(), alpha, kind=kind, tau=tau))
    _backend.launcher(OP, values)(values, alpha, kind, tau, out)
    return out


def _allocate(values: torch.Tensor, alpha: float, kind: str, tau: float | None) -> torch.Tensor:
    return _run(values, alpha, kind, tau, None)


def _fake(values: torch.Tensor, alpha: float, kind: str, tau: float | None) -> torch.Tensor:
    return values.new_empty((values.shape[0],))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    values, ctx.alpha, ctx.kind, ctx.tau = inputs
    ctx.save_for_backward(values)


def _backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
    (values,) = ctx.saved_tensors
    v = values.double()
    num_samples = v.shape[1]
    if ctx.kind == "mean":
        weights = torch.full_like(v, 1.0 / num_samples)
    elif ctx.kind == "cvar":
        ascending = cvar_weights(num_samples, ctx.tau, v.device).expand_as(v)
        weights = torch.zeros_like(v).scatter(1, v.sort(dim=-1, stable=True).indices, ascending)
    elif ctx.alpha == 0:
        best = (v == v.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1, keepdim=True)
        weights = torch.zeros_like(v).scatter(1, best, 1.0)
    else:
        weights = torch.softmax(v / ctx.alpha, -1)
    return (d_out.double()[:, None] * weights).to(values.dtype), None, None, None


register("soft_value(Tensor values, float alpha, str kind, float? tau) -> Tensor", _allocate, _fake)
torch.library.register_autograd(
    "fastguide::soft_value", _backward, setup_context=_setup_context, lib=LIBRARY
)
