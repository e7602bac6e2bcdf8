"""Standard normals of the random stream."""

from __future__ import annotations

import torch

from fastguide import reference
from fastguide.ops import _backend, _check, _device
from fastguide.ops._library import register, run_reference

OP = "philox_normal"


def philox_normal(
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    purpose: int,
    *,
    num_elements: int,
    num_candidates: int = 1,
    first_candidate: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Independent standard normals of the stream, one per (chain, candidate, element).

    Args:
        seed: int in [0, 2**64).   chains: [N] int64 global chain ids in [0, 2**32).
        step: in [0, 2**24).   purpose: a `fastguide.rng.Purpose` (or any int in [0, 256)).
            On CUDA, seed and step may be device tensors of one int64, which a captured graph reads
            anew at every replay.
        num_elements, num_candidates: sizes E >= 0 and K >= 1.
        first_candidate: [N] int64, candidate id = first_candidate[n] + k; None: zeros.
        dtype: float32 or float64 of the result; the arithmetic is float64.
        out: optional [N, K, E], contiguous, overwritten; its dtype goes before `dtype`.

    Returns:
        [N, K, E] of `dtype`.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        BackendError: no backend can serve.

    Noise: counter (element // 4, candidate id, chain, step << 8 | purpose); the word pairs (0, 1)
        and (2, 3) are Box-Muller pairs (r cos, r sin), so the tail reaches 6.66.
    Determinism: cpp gives equal bits on every instruction set and split, and is within 2 ulp
        (float32) of the reference.
    Gradient: none (no float input).   Oracle: fastguide.reference.philox_normal.
    """
    dtype = dtype if out is None else out.dtype
    on_device = _device.check_scalars(OP, chains, seed=seed, step=step)
    arguments = (
        _device.signed_seed(seed),
        chains,
        step,
        int(purpose),
        num_elements,
        num_candidates,
    )
    if out is None and not on_device:
        result: torch.Tensor = torch.ops.fastguide.philox_normal(*arguments, first_candidate, dtype)
        return result
    return _run(*arguments, first_candidate, dtype, out)


def _run(
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    purpose: int,
    num_elements: int,
    num_candidates: int,
    first_candidate: torch.Tensor | None,
    dtype: torch.dtype,
    out: torch.Tensor | None,
) -> torch.Tensor:
    _check.at_least("num_elements", num_elements, 0)
    _check.at_least("num_candidates", num_candidates, 1)
    _check.float_dtype("dtype", dtype)
    counter = _device.counter(step, purpose)
    chains = _check.integers("chains", chains, [None], "[N]")
    num_chains = len(chains)
    first_candidate = _check.optional_integers(
        "first_candidate", first_candidate, [num_chains], "[N]"
    )
    _check.same_device(OP, chains, first_candidate=first_candidate)
    due = (num_chains, num_candidates, num_elements)
    if out is None:
        out = torch.empty(due, dtype=dtype, device=chains.device)
    else:
        _check.output("the normals", out, due, dtype, chains)
    seed = _device.unsigned_seed(seed)
    if _backend.use_reference(OP, chains):
        return out.copy_(
            run_reference(
                OP,
                reference.philox_normal,
                seed,
                chains,
                step,
                purpose,
                num_elements=num_elements,
                num_candidates=num_candidates,
                first_candidate=first_candidate,
                dtype=dtype,
            )
        )
    fault = _backend.launcher(OP, chains)(seed, chains, counter, first_candidate, out)
    if fault is not None:
        _check.raise_fault(OP, fault)
    return out


def _allocate(
    seed: int,
    chains: torch.Tensor,
    step: int,
    purpose: int,
    num_elements: int,
    num_candidates: int,
    first_candidate: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    return _run(
        seed, chains, step, purpose, num_elements, num_candidates, first_candidate, dtype, None
    )


def _fake(
    seed: int,
    chains: torch.Tensor,
    step: int,
    purpose: int,
    num_elements: int,
    num_candidates: int,
    first_candidate: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    return chains.new_empty((chains.shape[0], num_candidates, num_elements), dtype=dtype)


register(
    "philox_normal(int seed, Tensor chains, int step, int purpose, SymInt num_elements, "
    "SymInt num_candidates, Tensor? first_candidate, ScalarType dtype) -> Tensor",
    _allocate,
    _fake,
)
