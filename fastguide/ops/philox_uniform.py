"""Uniforms of the random stream."""

from __future__ import annotations

import torch

from fastguide import reference
from fastguide.ops import _backend, _check, _device
from fastguide.ops._library import register, run_reference

OP = "philox_uniform"


def philox_uniform(
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    purpose: int,
    *,
    num_elements: int,
    num_candidates: int = 1,
    first_candidate: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """53-bit uniforms in [0, 1) of the stream, one per (chain, candidate, element).

    Args:
        seed: int in [0, 2**64).   chains: [N] int64 global chain ids in [0, 2**32).
        step: in [0, 2**24).   purpose: a `fastguide.rng.Purpose` (or any int in [0, 256)).
            On CUDA, seed and step may be device tensors of one int64, which a captured graph reads
            anew at every replay.
        num_elements, num_candidates: sizes E >= 0 and K >= 1.
        first_candidate: [N] int64, candidate id = first_candidate[n] + k; None: zeros.
        out: optional [N, K, E] float64, contiguous, overwritten.

    Returns:
        [N, K, E] float64.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        BackendError: no backend can serve.

    Noise: counter (element, candidate id, chain, step << 8 | purpose), words 0 and 1.
    Determinism: equal bits on every backend, thread count and split.
    Gradient: none (no float input).   Oracle: fastguide.reference.philox_uniform.
    Source: Salmon et al., SC 2011.
    """
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
        result: torch.Tensor = torch.ops.fastguide.philox_uniform(*arguments, first_candidate)
        return result
    return _run(*arguments, first_candidate, out)


def _run(
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    purpose: int,
    num_elements: int,
    num_candidates: int,
    first_candidate: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    _check.at_least("num_elements", num_elements, 0)
    _check.at_least("num_candidates", num_candidates, 1)
    counter = _device.counter(step, purpose)
    chains = _check.integers("chains", chains, [None], "[N]")
    num_chains = len(chains)
    first_candidate = _check.optional_integers(
        "first_candidate", first_candidate, [num_chains], "[N]"
    )
    _check.same_device(OP, chains, first_candidate=first_candidate)
    due = (num_chains, num_candidates, num_elements)
    if out is None:
        out = torch.empty(due, dtype=torch.float64, device=chains.device)
    else:
        _check.output("the uniforms", out, due, torch.float64, chains)
    seed = _device.unsigned_seed(seed)
    if _backend.use_reference(OP, chains):
        return out.copy_(
            run_reference(
                OP,
                reference.philox_uniform,
                seed,
                chains,
                step,
                purpose,
                num_elements=num_elements,
                num_candidates=num_candidates,
                first_candidate=first_candidate,
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
) -> torch.Tensor:
    return _run(seed, chains, step, purpose, num_elements, num_candidates, first_candidate, None)


def _fake(
    seed: int,
    chains: torch.Tensor,
    step: int,
    purpose: int,
    num_elements: int,
    num_candidates: int,
    first_candidate: torch.Tensor | None,
) -> torch.Tensor:
    return chains.new_empty((chains.shape[0], num_candidates, num_elements), dtype=torch.float64)


register(
    "philox_uniform(int seed, Tensor chains, int step, int purpose, SymInt num_elements, "
    "SymInt num_candidates, Tensor? first_candidate) -> Tensor",
    _allocate,
    _fake,
)
