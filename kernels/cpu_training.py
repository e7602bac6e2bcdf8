"""Launchers of the compiled CPU kernels of the training ops, in the manner of kernels/cpu.py."""

from __future__ import annotations

import torch

from fastguide.kernels import chunked_head
from fastguide.kernels.cpu import Fault, _address, _rows, of_dtype

TOKEN_FAULT = 2
Absent = tuple[int, tuple[int, int, int]]
ABSENT: Absent = (0, (0, 0, 0))


def _sites(logits: torch.Tensor | None) -> tuple[int, tuple[int, ...]]:
    return ABSENT if logits is None else (logits.data_ptr(), logits.stride())


def _ppo_rows(
    output: torch.Tensor, x: torch.Tensor, x_next: torch.Tensor, output_ref: torch.Tensor | None
) -> list[torch.Tensor | None]:
    """[N, D] each with contiguous rows; the caller holds them until the kernel has read them."""
    ref = None if output_ref is None else _rows(output_ref)
    return [_rows(output), _rows(x), _rows(x_next), ref]


def _row_addresses(rows: list[torch.Tensor | None]) -> tuple[tuple[int, int], ...]:
    return tuple((0, 0) if row is None else (row.data_ptr(), row.stride(0)) for row in rows)


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
    *terms: torch.Tensor,
) -> Fault | None:
    """output, x, x_next, output_ref [N, ...], numbers [N] -> the five PPO terms and the slope of
    the surrogate in log_prob, [N]."""
    rows = _ppo_rows(output, x, x_next, output_ref)
    run = of_dtype("gaussian_ppo", output.dtype)
    return run(
        _row_addresses(rows),
        a.data_ptr(),
        b.data_ptr(),
        s.data_ptr(),
        output.shape[0],
        output.shape[1:].numel(),
        (old_log_prob.data_ptr(), advantage.data_ptr(), low, high),
        tuple(term.data_ptr() for term in terms),
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
    d_log_prob: torch.Tensor,
    d_kl: torch.Tensor,
    d_output: torch.Tensor,
) -> None:
    """Inputs of the forward launch, d_log_prob, d_kl [N] -> d_output [N, ...]."""
    rows = _ppo_rows(output, x, x_next, output_ref)
    run = of_dtype("gaussian_ppo_backward", output.dtype)
    run(
        _row_addresses(rows),
        a.data_ptr(),
        b.data_ptr(),
        s.data_ptr(),
        output.shape[0],
        output.shape[1:].numel(),
        d_log_prob.data_ptr(),
        d_kl.data_ptr(),
        d_output.data_ptr(),
        torch.get_num_threads(),
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
        rho.data_ptr(),
        temperature,
        (old_log_prob.data_ptr(), advantage.data_ptr(), low, high),
        tuple(term.data_ptr() for term in terms),
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
    d_log_prob: torch.Tensor,
    d_kl: torch.Tensor,
    d_logits: torch.Tensor,
) -> None:
    """Inputs and sites of the forward launch, d_log_prob, d_kl [N] -> d_logits [N, L, V]."""
    run = of_dtype("masked_ppo_backward", logits.dtype)
    run(
        _sites(logits),
        _sites(logits_ref),
        _step(x, x_next, logits.shape[2], mask_token),
        rho.data_ptr(),
        temperature,
        sites.data_ptr(),
        d_log_prob.data_ptr(),
        d_kl.data_ptr(),
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
        rho.data_ptr(),
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
    d_kl: torch.Tensor,
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
        rho.data_ptr(),
        tau,
        temperature,
        (seed, chains.data_ptr(), counter),
        d_next.data_ptr(),
        d_kl.data_ptr(),
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
        d_loss.data_ptr(),
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
