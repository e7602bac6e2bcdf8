"""Weighted cross-entropy of the masked sites, from logits or from hidden states and a head."""

from __future__ import annotations

from typing import Any

import torch

from fastguide import reference
from fastguide.errors import ShapeError
from fastguide.ops import _backend, _check
from fastguide.ops._library import run_reference
from fastguide.ops._training import TrainingOp, doubles, row_numbers
from fastguide.reference.subs_cross_entropy import (
    site_normalisers,
    subs_cross_entropy_backward,
)

OP = "subs_cross_entropy"


def subs_cross_entropy(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    *,
    mask_token: int,
    weight: torch.Tensor | None = None,
    head: torch.Tensor | None = None,
) -> torch.Tensor:
    """SUBS loss per row: weight times the sum over masked sites of -log softmax(logits)[target].

    Args:
        logits: [N, L, V] bfloat16|float16|float32|float64, any strides; read at masked sites only.
            With a head: the hidden states [N, L, H] before it. Those of 16 bits are computed with
            in float32, without a copy; their gradient is that, rounded to their dtype.
        x: [N, L] int64, the noised state: mask_token or a token in [0, V).
        targets: [N, L] int64, the clean state; read where x is masked, and in [0, V) there.
        weight: [N] float32|float64, such as the rate a'(t) / a(t) of a schedule times the weight of
            a sample; None: 1.
        head: [V, H] of the dtype of logits: logits are hidden @ head.T in that dtype, made and used
            a slice of the vocabulary at a time, forward and backward; they never exist as a whole.
            A bias is a column of the head against a column of ones.

    Returns:
        [N] float64, nats.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        GradientError: weight requires grad.
        BackendError: no backend can serve.

    Determinism: bit-equal for any number of rows, threads and instruction set; with a head as far
        as torch.mm is. NaN goes through; a logit of -inf forbids its token.
    Gradient: in logits (or hidden states) and head, once; 0 at clean sites.
    Cost: with a head, memory for R x min(V, max(2**22 / R, 128)) logits, R masked sites, where all
        of them would take R x V several times over; one more product of that size in backward.
    Oracle: fastguide.reference.subs_cross_entropy.
    Source: Sahoo et al. 2024 (arXiv 2406.07524), eq. 10.
    """
    loss, _ = OPERATOR(logits, x, targets, mask_token, head)
    if weight is None:
        return loss
    _check.no_gradient(OP, weight=weight)
    return loss * row_numbers(x, weight=weight)[0]


def _run(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check.dtype("logits", logits, _check.HALVES + _check.FLOATS)
    x = _check.integers("x", x, [None, None], "[N, L]")
    num_rows, length = x.shape
    targets = _check.integers("targets", targets, [num_rows, length], "[N, L]")
    letters = "[N, L, V]" if head is None else "hidden [N, L, H]"
    _check.shape("logits", logits, [num_rows, length, None], letters)
    vocab_size = logits.shape[2]
    if head is not None:
        _check.dtype("head", head, (logits.dtype,))
        _check.shape("head", head, [None, logits.shape[2]], "[V, H]")
        vocab_size = head.shape[0]
    if vocab_size == 0:
        raise ShapeError(f"{OP}: there must be at least one token, got V = 0")
    _check.same_device(OP, logits, x=x, targets=targets, head=head)
    loss = logits.new_empty((num_rows,), dtype=torch.float64)
    normalisers = logits.new_empty((num_rows, length), dtype=torch.float64)
    _, launch = _backend.served(OP, logits, "" if head is None else "_head")
    if launch is None:
        given = (logits.detach(), x, targets)
        heads = None if head is None else head.detach()
        function = reference.subs_cross_entropy
        due = run_reference(OP, function, *given, mask_token=mask_token, head=heads)
        # the backward pass may be served by another backend, which reads them
        return loss.copy_(due), site_normalisers(given[0], x, mask_token, heads)
    outputs = (loss, normalisers)
    if head is None:
        fault = launch(logits, x, targets, mask_token, *outputs)
    else:
        fault = launch(logits, x, targets, mask_token, head.detach(), *outputs)
    if fault is not None:
        _check.raise_fault(OP, fault)
    return loss, normalisers


def _fake(logits: torch.Tensor, x: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    loss = logits.new_empty((x.shape[0],), dtype=torch.float64)
    return loss, logits.new_empty(x.shape, dtype=torch.float64)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits, x, targets, ctx.mask_token, head = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, x, targets, head, output[1])


def _pull(ctx: Any, d_loss: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, ...]:
    logits, x, targets, head, normalisers = ctx.saved_tensors
    if d_loss is None:
        return (None,) * 5
    d_logits, d_head = OPERATOR.backward(
        logits, x, targets, ctx.mask_token, head, normalisers, d_loss
    )
    return d_logits, None, None, None, None if head is None else d_head


def _run_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor | None,
    normalisers: torch.Tensor,
    d_loss: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, targets = x.contiguous(), targets.contiguous()
    part = "_backward" if head is None else "_head_backward"
    backend, launch = _backend.served(OP, logits, part)
    if backend != "cpp" or head is not None:
        (d_loss,) = doubles(d_loss)
    if launch is None:
        d_logits, d_head = subs_cross_entropy_backward(logits, x, targets, mask_token, head, d_loss)
        return d_logits, logits.new_empty(0) if d_head is None else d_head
    d_logits, d_head = _fake_backward(logits, x, targets, mask_token, head)
    arguments = (logits, x, targets, mask_token)
    if head is None:
        launch(*arguments, normalisers, d_loss, d_logits)
    else:
        launch(*arguments, head, normalisers, d_loss, d_logits, d_head)
    return d_logits, d_head


def _fake_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor | None,
    *others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    d_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return d_logits, logits.new_empty(0 if head is None else head.shape)


OPERATOR = TrainingOp(
    OP,
    "Tensor logits, Tensor x, Tensor targets, int mask_token, Tensor? head",
    "(Tensor, Tensor)",
    _run,
    _fake,
    backward=(
        "Tensor logits, Tensor x, Tensor targets, int mask_token, Tensor? head, "
        "Tensor normalisers, Tensor d_loss",
        "(Tensor, Tensor)",
        _run_backward,
        _fake_backward,
    ),
    save=_save,
    pull=_pull,
)
