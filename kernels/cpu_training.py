"""Launchers of the compiled CPU kernels of the training ops, in the manner of kernels/cpu.py."""

from __future__ import annotations

from typing import Any

import torch

from fastguide.kernels import chunked_head
from fastguide.kernels.cpu import Fault, _address, _rows, of_dtype

TOKEN_FAULT = 2
Absent = tuple[int, tuple[int, int, int]]
ABSENT: Absent = (0, (0, 0, 0))
Numbers = tuple[int, int, bool]
NO_NUMBERS: Numbers = (0, 0, True)
Pull = torch.Tensor | None


def _sites(logits: torch.Tensor | None) -> tuple[int, tuple[int, ...]]:
    return ABSENT if logits is None else (logits.data_ptr(), logits.stride())


def _numbers(values: torch.Tensor | None) -> Numbers:
    """[N] of float32|float64, any stride."""
    if values is None:
        return NO_NUMBERS
    return values.data_ptr(), values.stride()[0], values.dtype is torch.float64


def _pulls(
    d_surrogate: Pull,
    d_kl: Pull,
    d_log_prob: Pull,
    d_ratio: Pull,
    ratio: torch.Tensor,
    slope: torch.Tensor,
) -> tuple[Numbers, Numbers, Numbers, Numbers, int, int]:
    return (
        _numbers(d_surrogate),
        _numbers(d_kl),
        _numbers(d_log_prob),
        _numbers(d_ratio),
        ratio.data_ptr(),
        slope.data_ptr(),
    )


Rows = tuple[torch.Tensor | None, ...]


def _contiguous_rows(rows: Rows) -> Rows:
    """[N, ...] with contiguous rows; the caller holds them until the kernel has read them."""
    for row in rows:
        if row is not None and not row.is_contiguous():
            return tuple(None if each is None else _rows(each) for each in rows)
    return rows


def _law(rows: Rows, numbers: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
    """What both launches of gaussian_ppo begin with: rows, numbers [N] of each, N and D."""
    shape = rows[0].shape  # type: ignore[union-attr]
    return (
        # The rows of contiguous tensors follow one another: their stride is that of [N, ...] too.
        [(0, 0) if row is None else (row.data_ptr(), row.stride()[0]) for row in rows],
        [(each.data_ptr(), each.stride()[0], each.dtype is torch.float64) for each in numbers],
        shape[0],
        shape[1] if len(shape) == 2 else shape[1:].numel(),
    )


def launch_gaussian_ppo(
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
    outputs: tuple[torch.Tensor, ...],
) -> Fault | None:
    """output, x, x_next, output_ref [N, ...], numbers [N] -> the five PPO terms and the slope of
    the surrogate in log_prob, [N]."""
    rows = _contiguous_rows((output, x, x_next, output_ref))
    return of_dtype("gaussian_ppo", output.dtype)(
        *_law(rows, (a, b, s)),
        (_numbers(old_log_prob), _numbers(advantage), low, high),
        [each.data_ptr() for each in outputs],
        torch.get_num_threads(),
    )


def launch_gaussian_ppo_backward(
    output: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    s: torch.Tensor,
    output_ref: torch.Tensor | None,
    pulls: tuple[Any, ...],
    d_output: torch.Tensor,
) -> None:
    """Inputs of the forward launch, gradients in surrogate, kl, log_prob and ratio [N] or None,
    ratio and slope [N] -> d_output [N, ...]."""
    rows = _contiguous_rows((output, x, x_next, output_ref))
    of_dtype("gaussian_ppo_backward", output.dtype)(
        *_law(rows, (a, b, s)), _pulls(*pulls), d_output.data_ptr(), torch.get_num_threads()
    )


def _step(
    x: torch.Tensor, x_next: torch.Tensor, vocab_size: int, mask_token: int
) -> tuple[int, int, int, int, int, int]:
    return x.data_ptr(), x_next.data_ptr(), x.shape[0], x.shape[1], vocab_size, mask_token


def launch_masked_ppo(
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
    *outputs: torch.Tensor,
) -> Fault | None:
    """logits, logits_ref [N, L, V], x, x_next [N, L], numbers [N] -> the PPO terms and the slope
    [N], and sites [N, L, 3] float64."""
    *terms, sites = outputs
    run = of_dtype("masked_ppo", logits.dtype)
    return run(
        _sites(logits),
        _sites(logits_ref),
        _step(x, x_next, logits.shape[2], mask_token),
        _numbers(rho),
        temperature,
        (_numbers(old_log_prob), _numbers(advantage), low, high),
        [term.data_ptr() for term in terms],
        sites.data_ptr(),
        torch.get_num_threads(),
    )


def launch_masked_ppo_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    mask_token: int,
    rho: torch.Tensor,
    logits_ref: torch.Tensor | None,
    temperature: float,
    sites: torch.Tensor,
    *pulls_and_output: Any,
) -> None:
    """Inputs and sites of the forward launch, gradients in surrogate, kl, log_prob and ratio [N] or
    None, ratio and slope [N] -> d_logits [N, L, V]."""
    *pulls, d_logits = pulls_and_output
    run = of_dtype("masked_ppo_backward", logits.dtype)
    run(
        _sites(logits),
        _sites(logits_ref),
        _step(x, x_next, logits.shape[2], mask_token),
        _numbers(rho),
        temperature,
        sites.data_ptr(),
        _pulls(*pulls),
        d_logits.data_ptr(),
        torch.get_num_threads(),
    )


def launch_gumbel_softmax_step(
    logits: torch.Tensor,
    x: torch.Tensor,
    rho: torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    counter: int,
    logits_ref: torch.Tensor | None,
    temperature: float,
    straight_through: bool,
    x_next: torch.Tensor,
    kl: torch.Tensor,
) -> Fault | None:
    """logits, logits_ref [N, L, V], x [N, L, V + 1], rho, chains [N] -> x_next as x, kl [N]."""
    x = x.contiguous()
    run = of_dtype("gumbel_softmax_step", logits.dtype)
    return run(
        _sites(logits),
        _sites(logits_ref),
        (x.data_ptr(), *logits.shape),
        _numbers(rho),
        tau,
        temperature,
        (seed, chains.data_ptr(), counter),
        straight_through,
        x_next.data_ptr(),
        kl.data_ptr(),
        torch.get_num_threads(),
    )


def launch_gumbel_softmax_step_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    rho: torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    counter: int,
    logits_ref: torch.Tensor | None,
    temperature: float,
    d_next: torch.Tensor,
    d_kl: torch.Tensor | None,
    d_logits: torch.Tensor,
    d_x: torch.Tensor,
    d_ref: torch.Tensor,
) -> None:
    """Inputs of the forward launch, d_next as x, d_kl [N] -> d_logits, d_x, d_ref (if any)."""
    x = x.contiguous()
    run = of_dtype("gumbel_softmax_step_backward", logits.dtype)
    run(
        _sites(logits),
        _sites(logits_ref),
        (x.data_ptr(), *logits.shape),
        _numbers(rho),
        tau,
        temperature,
        (seed, chains.data_ptr(), counter),
        d_next.data_ptr(),
        _numbers(d_kl),
        d_logits.data_ptr(),
        d_x.data_ptr(),
        _address(None if logits_ref is None else d_ref),
        torch.get_num_threads(),
    )


def launch_subs_cross_entropy(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    loss: torch.Tensor,
    normalisers: torch.Tensor,
) -> Fault | None:
    """logits [N, L, V], x, targets [N, L] -> loss [N], normalisers [N, L], both float64."""
    run = of_dtype("subs_cross_entropy", logits.dtype)
    return run(
        _sites(logits),
        _step(x, targets, logits.shape[2], mask_token),
        loss.data_ptr(),
        normalisers.data_ptr(),
        torch.get_num_threads(),
    )


def launch_subs_cross_entropy_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    normalisers: torch.Tensor,
    d_loss: torch.Tensor,
    d_logits: torch.Tensor,
) -> None:
    """Inputs and normalisers of the forward launch, d_loss [N] -> d_logits [N, L, V]."""
    run = of_dtype("subs_cross_entropy_backward", logits.dtype)
    run(
        _sites(logits),
        _step(x, targets, logits.shape[2], mask_token),
        normalisers.data_ptr(),
        _numbers(d_loss),
        d_logits.data_ptr(),
        torch.get_num_threads(),
    )


def _slice_sums(
    logits: torch.Tensor,
    first: int,
    targets: torch.Tensor,
    top: torch.Tensor,
    total: torch.Tensor,
    chosen: torch.Tensor,
) -> None:
    run = of_dtype("subs_slice_sums", logits.dtype)
    outputs = (top.data_ptr(), total.data_ptr(), chosen.data_ptr())
    given = (logits.data_ptr(), *logits.shape, first, targets.data_ptr())
    run(*given, *outputs, torch.get_num_threads())


def _slice_pull(
    logits: torch.Tensor,
    first: int,
    targets: torch.Tensor,
    normalisers: torch.Tensor,
    scale: torch.Tensor,
) -> None:
    run = of_dtype("subs_slice_pull", logits.dtype)
    given = (logits.data_ptr(), *logits.shape, first, targets.data_ptr())
    run(*given, normalisers.data_ptr(), scale.data_ptr(), torch.get_num_threads())


def launch_subs_cross_entropy_head(
    hidden: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor,
    loss: torch.Tensor,
    normalisers: torch.Tensor,
) -> Fault | None:
    """hidden [N, L, H], x, targets [N, L], head [V, H] -> loss [N], normalisers [N, L]."""
    fault = chunked_head.first_bad_token(x, targets, head.shape[0], mask_token)
    if fault is not None:
        return (TOKEN_FAULT, *fault)
    given = (hidden, x, targets, mask_token, head)
    chunked_head.head_forward(_slice_sums, *given, loss, normalisers)
    return None


def launch_subs_cross_entropy_head_backward(
    hidden: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor,
    normalisers: torch.Tensor,
    d_loss: torch.Tensor,
    d_hidden: torch.Tensor,
    d_head: torch.Tensor,
) -> None:
    """Inputs and normalisers of the forward launch, d_loss [N] -> d_hidden, d_head."""
    given = (hidden, x, targets, mask_token, head, normalisers, d_loss)
    chunked_head.head_backward(_slice_pull, *given, d_hidden, d_head)
