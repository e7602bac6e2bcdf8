"""Launchers of the compiled CPU kernels. The only module that imports `fastguide._C`.

Each `launch_<op>` reads addresses and strides from tensors that `fastguide.ops` has checked, writes
the given outputs and returns None, or the fault (code, row, column, value) of the first bad entry.
Integer side inputs are contiguous; `x`, logits and values may have any strides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch  # before the extension: both then share torch's OpenMP runtime

import fastguide._C as _C
from fastguide.errors import BackendError

Fault = tuple[int, int, int, int]

SOFT_VALUE_KINDS = {"lme": 0, "mean": 1, "cvar": 2}
RESAMPLE_SCHEMES = {
    "systematic": 0,
    "stratified": 1,
    "multinomial": 2,
    "residual": 3,
    "ssp": 4,
    "killing": 5,
}
GatherTuple = tuple[int, int, int, int, int, int, int]


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


def environment(name: str) -> str:
    """The environment variable as it is now, or "": in a tenth of the time of os.environ."""
    return _C.environment(name)


cpu_level()


@functools.cache
def of_dtype(name: str, dtype: torch.dtype) -> Callable[..., Fault | None]:
    """The compiled function of a training op for tensors of this dtype."""
    function: Callable[..., Fault | None] = getattr(_C, f"{name}_{str(dtype)[6:]}")
    return function


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
    rows, length = x.shape
    _C.masked_keys(x.data_ptr(), x.stride(), rows, length, out.data_ptr(), torch.get_num_threads())


def _site_strides(logits: torch.Tensor) -> tuple[int, int, int]:
    """Strides of logits [U, L, V]; of [S, V] with none for sites, which have an index each."""
    row, *site, token = logits.stride()
    return row, site[0] if site else 0, token


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
    """logits [U, L, V] or [S, V], x [N, L] -> tokens [N, K, L], new_keys [N, K, 2], changed."""
    return _C.masked_propose(
        logits.data_ptr(),
        logits.dtype == torch.float64,
        _site_strides(logits),
        logits.shape[0],
        logits.shape[-1],
        _address(index),
        logits.dim() == 2,
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
    """logits [U, L, V] or [S, V], x [R, L] -> out [R, L] (num_samples = 0) or [R, S, L]."""
    return _C.masked_posterior(
        logits.data_ptr(),
        logits.dtype == torch.float64,
        _site_strides(logits),
        logits.shape[0],
        logits.shape[-1],
        _address(index),
        logits.dim() == 2,
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


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """[N, ...] as [N, D] with unit stride along D; a copy where the strides do not allow a view."""
    rows = tensor.flatten(1)
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def launch_gaussian_propose(
    x: torch.Tensor,
    output: torch.Tensor,
    a: float,
    b: float,
    s: float,
    seed: int,
    chains: torch.Tensor,
    counter: int,
    index: torch.Tensor | None,
    first_candidate: torch.Tensor | None,
    shift: torch.Tensor | None,
    candidates: torch.Tensor,
    log_ratio: torch.Tensor,
) -> Fault | None:
    """x, shift [N, ...], output [U, ...] -> candidates [N, K, ...], log_ratio [N, K]."""
    # Holds the copies until the kernel has read them.
    x, output = _rows(x), _rows(output)
    shift = None if shift is None else _rows(shift)
    return _C.gaussian_propose(
        x.dtype == torch.float64,
        (x.data_ptr(), x.stride(0)),
        (output.data_ptr(), output.stride(0)),
        output.shape[0],
        (0, 0) if shift is None else (shift.data_ptr(), shift.stride(0)),
        a,
        b,
        s,
        seed,
        chains.data_ptr(),
        _address(first_candidate),
        counter,
        _address(index),
        x.shape[0],
        candidates.shape[1],
        x.shape[1],
        candidates.data_ptr(),
        0 if shift is None else log_ratio.data_ptr(),
        torch.get_num_threads(),
    )


def _matrix(tensor: torch.Tensor | None) -> tuple[int, int, int, bool]:
    if tensor is None:
        return 0, 0, 0, False
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.dtype == torch.float64


def _gather_item(
    source: torch.Tensor, index: torch.Tensor | None, target: torch.Tensor
) -> GatherTuple:
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


def _gather_sources(
    gather: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
) -> list[torch.Tensor]:
    """What to read from: copies, which the caller holds until the kernel is done, where one row is
    not one block of memory."""
    return [
        source if _inner_contiguous(source, 2 if where is None else 1) else source.contiguous()
        for source, where in gather
    ]


def _gather_items(
    sources: Sequence[torch.Tensor],
    gather: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    gathered: Sequence[torch.Tensor],
) -> list[GatherTuple]:
    return [
        _gather_item(source, where, target)
        for source, (_, where), target in zip(sources, gather, gathered, strict=True)
    ]


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
    tensors = (particles, gather, index, lme, ess, gathered)
    return plan_select(values, alpha, log_ratio, seed, chains, *tensors)(counter)


def plan_select(
    values: torch.Tensor,
    alpha: float,
    log_ratio: torch.Tensor | None,
    seed: int,
    chains: torch.Tensor,
    particles: torch.Tensor | None,
    gather: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    index: torch.Tensor,
    lme: torch.Tensor,
    ess: torch.Tensor,
    gathered: Sequence[torch.Tensor],
) -> Callable[[int], Fault | None]:
    """`launch_select` with everything but the counter: addresses are read once, here."""
    sources = _gather_sources(gather)
    held = (values, log_ratio, chains, particles, sources, gather, index, lme, ess, gathered)
    before = (
        _matrix(values),
        _matrix(log_ratio),
        values.shape[0],
        values.shape[1],
        alpha,
        seed,
        chains.data_ptr(),
        _address(particles),
    )
    after = (
        _gather_items(sources, gather, gathered),
        index.data_ptr(),
        lme.data_ptr(),
        ess.data_ptr(),
    )

    def run(counter: int, held: tuple[object, ...] = held) -> Fault | None:
        return _C.select(*before, counter, *after, torch.get_num_threads())

    return run


def launch_resample(
    log_w: torch.Tensor,
    seed: int,
    chains: torch.Tensor,
    counter: int,
    scheme: str,
    ess_threshold: float | None,
    gather: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    ancestors: torch.Tensor,
    log_z: torch.Tensor,
    resampled: torch.Tensor,
    ess: torch.Tensor,
    gathered: Sequence[torch.Tensor],
) -> Fault | None:
    """log_w [G, N], gather of [G, N, ...] or ([U, ...], [G, N]) -> ancestors [G, N], log_z,
    resampled, ess [G], gathered [G, N, ...]."""
    sources = _gather_sources(gather)
    return _C.resample(
        _matrix(log_w),
        log_w.shape[0],
        log_w.shape[1],
        RESAMPLE_SCHEMES[scheme],
        -1.0 if ess_threshold is None else ess_threshold,
        seed,
        chains.data_ptr(),
        counter,
        _gather_items(sources, gather, gathered),
        ancestors.data_ptr(),
        log_z.data_ptr(),
        resampled.data_ptr(),
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
