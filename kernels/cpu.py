"""Launchers of the compiled CPU kernels. The only module that imports `fastguide._C`.

Each `launch_<op>` reads addresses and strides from tensors that `fastguide.ops` has checked, writes
the given outputs and returns None, or the fault (code, row, column, value) of the first bad entry.
Integer side inputs are contiguous; `x`, logits and values may have any strides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch  # before the extension: both then share torch's OpenMP runtime

import fastguide._C as _C
from fastguide.errors import BackendError

Fault = tuple[int, int, int, int]

SOFT_VALUE_KINDS = {"lme": 0, "mean": 1, "cvar": 2}


def cpu_level() -> str:
    """Instruction set in use: "baseline", "avx2" or "avx512".

    Raises:
        BackendError: FASTGUIDE_CPU names a level that is unknown or that this CPU cannot run.
    """
    try:
        return _C.cpu_level()
    except RuntimeError as error:
        raise BackendError(str(error)) from error


def supported_levels() -> list[str]:
    """The instruction sets that this CPU can run, "baseline" first."""
    return _C.supported_levels()


cpu_level()


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def launch_philox_uniform(
    seed: int,
    chains: torch.Tensor,
    counter: int,
    first_candidate: torch.Tensor | None,
    out: torch.Tensor,
) -> Fault | None:
    """chains [N] int64, counter = step << 8 | purpose -> out [N, K, E] float64."""
    return _C.philox_uniform(
        seed,
        chains.data_ptr(),
        _address(first_candidate),
        counter,
        out.shape[0],
        out.shape[1],
        out.shape[2],
        out.data_ptr(),
        torch.get_num_threads(),
    )


def launch_philox_normal(
    seed: int,
    chains: torch.Tensor,
    counter: int,
    first_candidate: torch.Tensor | None,
    out: torch.Tensor,
) -> Fault | None:
    """chains [N] int64, counter = step << 8 | purpose -> out [N, K, E] float32|float64."""
    return _C.philox_normal(
        seed,
        chains.data_ptr(),
        _address(first_candidate),
        counter,
        out.shape[0],
        out.shape[1],
        out.shape[2],
        out.dtype == torch.float64,
        out.data_ptr(),
        torch.get_num_threads(),
    )


def launch_masked_keys(x: torch.Tensor, out: torch.Tensor) -> None:
    """x [R, L] int64 -> out [R, 2] int64."""
    _C.masked_keys(
        x.data_ptr(),
        x.stride(),
        x.shape[0],
        x.shape[1],
        out.data_ptr(),
        torch.get_num_threads(),
    )


def launch_masked_propose(
    logits: torch.Tensor,
    x: torch.Tensor,
    keys: torch.Tensor,
    mask_token: int,
    rho: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    index: torch.Tensor | None,
    temperature: float,
    first_candidate: torch.Tensor | None,
    tokens: torch.Tensor,
    new_keys: torch.Tensor,
    changed: torch.Tensor,
) -> Fault | None:
    """logits [U, L, V], x [N, L], keys [N, 2] -> tokens [N, K, L], new_keys [N, K, 2], changed."""
    return _C.masked_propose(
        logits.data_ptr(),
        logits.dtype == torch.float64,
        logits.stride(),
        logits.shape[0],
        logits.shape[2],
        _address(index),
        temperature,
        x.data_ptr(),
        x.stride(),
        x.shape[0],
        x.shape[1],
        mask_token,
        keys.data_ptr(),
        rho,
        seed,
        chains.data_ptr(),
        _address(first_candidate),
        step,
        tokens.shape[1],
        tokens.data_ptr(),
        new_keys.data_ptr(),
        changed.data_ptr(),
        torch.get_num_threads(),
    )


def launch_masked_posterior(
    logits: torch.Tensor,
    x: torch.Tensor,
    mask_token: int,
    index: torch.Tensor | None,
    num_samples: int,
    keys: torch.Tensor | None,
    seed: int,
    temperature: float,
    purpose: int,
    out: torch.Tensor,
) -> Fault | None:
    """logits [U, L, V], x [R, L] -> out [R, L] (num_samples = 0) or [R, S, L], int64."""
    return _C.masked_posterior(
        logits.data_ptr(),
        logits.dtype == torch.float64,
        logits.stride(),
        logits.shape[0],
        logits.shape[2],
        _address(index),
        temperature,
        x.data_ptr(),
        x.stride(),
        x.shape[0],
        x.shape[1],
        mask_token,
        num_samples,
        _address(keys),
        seed,
        purpose,
        out.data_ptr(),
        torch.get_num_threads(),
    )


def launch_unique_rows(
    rows: torch.Tensor,
    keys: torch.Tensor,
    first: torch.Tensor,
    inverse: torch.Tensor,
    count: torch.Tensor,
) -> None:
    """rows [R, L] with unit stride along L, keys [R, 2] -> first [R], inverse [R], count [1]."""
    size = rows.element_size()
    _C.unique_rows(
        rows.data_ptr(),
        rows.stride(0) * size,
        rows.shape[1] * size,
        rows.shape[0],
        keys.data_ptr(),
        first.data_ptr(),
        inverse.data_ptr(),
        count.data_ptr(),
    )


def _matrix(tensor: torch.Tensor | None) -> tuple[int, int, int, bool]:
    if tensor is None:
        return 0, 0, 0, False
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.dtype == torch.float64


def _gather_item(
    source: torch.Tensor, index: torch.Tensor | None, target: torch.Tensor
) -> tuple[int, int, int, int, int, int, int]:
    size = source.element_size()
    lead = 2 if index is None else 1
    candidate = source.stride(1) * size if index is None else 0
    inner = size
    for length in source.shape[lead:]:
        inner *= length
    row = source.stride(0) * size
    return (
        source.data_ptr(),
        row,
        candidate,
        inner,
        _address(index),
        source.shape[0],
        target.data_ptr(),
    )


def _inner_contiguous(source: torch.Tensor, lead: int) -> bool:
    """What one row takes is one block of memory."""
    due = 1
    for length, stride in zip(
        source.shape[: lead - 1 : -1], source.stride()[: lead - 1 : -1], strict=True
    ):
        if length != 1 and stride != due:
            return False
        due *= length
    return True


def launch_select(
    values: torch.Tensor,
    alpha: float,
    log_ratio: torch.Tensor | None,
    seed: int,
    chains: torch.Tensor,
    counter: int,
    particles: torch.Tensor | None,
    gather: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    index: torch.Tensor,
    lme: torch.Tensor,
    ess: torch.Tensor,
    gathered: Sequence[torch.Tensor],
) -> Fault | None:
    """values [N, K], gather of [N, K, ...] or ([U, ...], [N, K]) -> index, lme, ess, gathered."""
    # Holds the copies until the kernel has read them.
    sources = [
        source if _inner_contiguous(source, 2 if where is None else 1) else source.contiguous()
        for source, where in gather
    ]
    items = [
        _gather_item(source, where, target)
        for source, (_, where), target in zip(sources, gather, gathered, strict=True)
    ]
    return _C.select(
        _matrix(values),
        _matrix(log_ratio),
        values.shape[0],
        values.shape[1],
        alpha,
        seed,
        chains.data_ptr(),
        _address(particles),
        counter,
        items,
        index.data_ptr(),
        lme.data_ptr(),
        ess.data_ptr(),
        torch.get_num_threads(),
    )


def launch_soft_value(
    values: torch.Tensor, alpha: float, kind: str, tau: float | None, out: torch.Tensor
) -> None:
    """values [R, S] -> out [R] of the same dtype; tau for kind "cvar" only."""
    _C.soft_value(
        values.data_ptr(),
        values.dtype == torch.float64,
        values.stride(),
        values.shape[0],
        values.shape[1],
        SOFT_VALUE_KINDS[kind],
        alpha,
        0.0 if tau is None else tau,
        out.data_ptr(),
        torch.get_num_threads(),
    )
