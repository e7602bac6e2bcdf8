"""128-bit keys of whole token rows."""

from __future__ import annotations

import torch

from fastguide import reference
from fastguide.ops import _backend, _check
from fastguide.ops._library import register

OP = "masked_keys"


def masked_keys(x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Zobrist key of each row: the XOR over its sites of word(site, token).

    Args:
        x: [R, L] int64, any token ids, any strides.   out: optional [R, 2] int64, contiguous.

    Returns:
        [R, 2] int64 bit patterns; equal rows have equal keys, and `masked_propose` carries them
        along in O(changes).

    Raises:
        ShapeError, DtypeError: another shape or dtype.   BackendError: no backend can serve.

    Determinism: equal bits on every backend; independent of any seed.   Gradient: none.
    Cost: one Philox block per site.   Oracle: fastguide.reference.masked_keys.
    Source: Zobrist, "A new hashing method with application for game playing", 1970.
    """
    if out is None:
        result: torch.Tensor = torch.ops.fastguide.masked_keys(x)
        return result
    return _run(x, out)


def _run(x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    _check.dtype("x", x, (torch.int64,))
    _check.shape("x", x, [None, None], "[R, L]")
    due = (x.shape[0], 2)
    if out is None:
        out = torch.empty(due, dtype=torch.int64, device=x.device)
    else:
        _check.output("the keys", out, due, torch.int64, x)
    if _backend.use_reference(OP, x):
        return out.copy_(reference.masked_keys(x))
    _backend.launcher(OP, x)(x, out)
    return out


def _allocate(x: torch.Tensor) -> torch.Tensor:
    return _run(x, None)


def _fake(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((x.shape[0], 2))


register("masked_keys(Tensor x) -> Tensor", _allocate, _fake)
