"""Clean predictions of masked states."""

from __future__ import annotations

import torch

from fastguide import reference
from fastguide.errors import ArgumentError
from fastguide.ops import _backend, _check, _device
from fastguide.ops._library import register, run_reference
from fastguide.rng import Purpose

OP = "masked_posterior"


def masked_posterior(
    logits: torch.Tensor,
    x: torch.Tensor,
    *,
    mask_token: int,
    index: torch.Tensor | None = None,
    num_samples: int = 0,
    keys: torch.Tensor | None = None,
    seed: int | torch.Tensor = 0,
    temperature: float | torch.Tensor = 1.0,
    purpose: int = Purpose.POSTERIOR,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fill the masked sites of each state with the mode or with samples; carry the others over.

    Args:
        logits: [U, L, V] float32|float64, any strides; -inf forbids a token. Read only at masked
            sites. Or [S, V], rows of single sites, with index [R, L].
        x: [R, L] int64, any strides.   mask_token: any int.
        index: [R] int64, row of logits of each state; None: row r. With logits [S, V]: [R, L]
            int64, row of each site; read at masked sites.
        num_samples: 0 for the mode (first maximum); S > 0 for S independent samples per state.
        keys: [R, 2] int64, `masked_keys(x)`; needed for samples: they replace chain and step in the
            counter, so equal states get equal samples wherever and whenever they appear.
        seed: int in [0, 2**64).   temperature: positive; samples follow
            softmax(logits / temperature). On CUDA, both may be device tensors of one element
            (int64, float64), which a captured graph reads anew at every replay.
        purpose: Purpose.POSTERIOR or Purpose.LOOKAHEAD.
        out: optional result, contiguous, overwritten.

    Returns:
        [R, L] int64 (mode) or [R, S, L] int64 (samples).

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that cannot work, by name.
        NonFiniteError: NaN, +inf, or only -inf among the logits of a masked site.
        GradientError: logits requires grad.   BackendError: no backend can serve.

    Noise: 53 bits of block (site, sample, key[0] low 32 bits, next 24 bits << 8 | purpose).
    Determinism: equal integers on every backend, instruction set, thread count and split.
    Oracle: fastguide.reference.masked_posterior.
    """
    on_device = _device.check_scalars(OP, x, seed=seed, temperature=temperature)
    arguments = (
        logits,
        x,
        mask_token,
        index,
        num_samples,
        keys,
        _device.signed_seed(seed),
        _device.number(temperature),
        int(purpose),
    )
    if out is None and not on_device:
        result: torch.Tensor = torch.ops.fastguide.masked_posterior(*arguments)
        return result
    return _run(*arguments, out)


def _run(
    logits: torch.Tensor,
    x: torch.Tensor,
    mask_token: int,
    index: torch.Tensor | None,
    num_samples: int,
    keys: torch.Tensor | None,
    seed: int | torch.Tensor,
    temperature: float | torch.Tensor,
    purpose: int,
    out: torch.Tensor | None,
) -> torch.Tensor:
    _check.no_gradient(OP, logits=logits)
    _check.dtype("x", x, (torch.int64,))
    _check.shape("x", x, [None, None], "[R, L]")
    num_rows, length = x.shape
    index = _check.site_logits(logits, index, num_rows, length, "[R]", "[R, L]")
    keys = _check.optional_integers("keys", keys, [num_rows, 2], "[R, 2]")
    _check.same_device(OP, logits, x=x, index=index, keys=keys)
    _check.at_least("num_samples", num_samples, 0)
    if not isinstance(temperature, torch.Tensor):
        _check.temperature(temperature)
    _check.counter(0, purpose)
    if num_samples > 0 and keys is None:
        raise ArgumentError(
            f"keys is needed for num_samples={num_samples} (draws are keyed by the state); "
            "pass fastguide.ops.masked_keys(x)"
        )
    due = (num_rows, length) if num_samples == 0 else (num_rows, num_samples, length)
    if out is None:
        out = torch.empty(due, dtype=torch.int64, device=x.device)
    else:
        _check.output("the predictions", out, due, torch.int64, x)
    seed = _device.unsigned_seed(seed)
    if _backend.use_reference(OP, x):
        return out.copy_(
            run_reference(
                OP,
                reference.masked_posterior,
                logits,
                x,
                mask_token=mask_token,
                index=index,
                num_samples=num_samples,
                keys=keys,
                seed=seed,
                temperature=temperature,
                purpose=purpose,
            )
        )
    fault = _backend.launcher(OP, x)(
        logits, x, mask_token, index, num_samples, keys, seed, temperature, purpose, out
    )
    if fault is not None:
        _check.raise_fault(OP, fault)
    return out


def _allocate(
    logits: torch.Tensor,
    x: torch.Tensor,
    mask_token: int,
    index: torch.Tensor | None,
    num_samples: int,
    keys: torch.Tensor | None,
    seed: int,
    temperature: float,
    purpose: int,
) -> torch.Tensor:
    return _run(logits, x, mask_token, index, num_samples, keys, seed, temperature, purpose, None)


def _fake(
    logits: torch.Tensor,
    x: torch.Tensor,
    mask_token: int,
    index: torch.Tensor | None,
    num_samples: int,
    keys: torch.Tensor | None,
    seed: int,
    temperature: float,
    purpose: int,
) -> torch.Tensor:
    _check.no_gradient(OP, logits=logits)
    num_rows, length = x.shape
    return x.new_empty((num_rows, length) if num_samples == 0 else (num_rows, num_samples, length))


register(
    "masked_posterior(Tensor logits, Tensor x, int mask_token, Tensor? index, int num_samples, "
    "Tensor? keys, int seed, float temperature, int purpose) -> Tensor",
    _allocate,
    _fake,
)
