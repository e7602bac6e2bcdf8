"""Values of given states, outside a run."""

from __future__ import annotations

from typing import Any

import exact
import torch

from fastguide.diffusion import Batch, Diffusion, Step
from fastguide.evaluation import Evaluator, Limits, Rows
from fastguide.ops import masked_keys

STATES = torch.tensor(exact.STATES)


def evaluator(diffusion: Diffusion, savings: Any = (), **how: Any) -> Evaluator:
    """The evaluator of a run with seed 0."""
    how = {"cond": {}, "limits": Limits(), "reject": False, "cache_bytes": 2**28, "seed": 0, **how}
    return Evaluator(diffusion, savings=frozenset(savings), **how)


def rows_of(x: torch.Tensor) -> Rows:
    """Rows of states of which nothing is known."""
    keys = None if x.is_floating_point() else masked_keys(x)
    places = torch.arange(len(x))
    value = torch.full((len(x),), torch.nan, dtype=torch.float64)
    return Rows(Batch(x, keys), places, places * 0, places * 0, places * 0 - 1, value)


def values_of(value: Any, x: torch.Tensor = STATES, time: float = 0.5, **how: Any) -> torch.Tensor:
    """value [B] of states x [B, ...] that stand at `time`."""
    how = {"diffusion": exact.diffusion(), **how}
    step = Step(0, time, time, clean=False, varies=True, params=())
    with torch.no_grad():
        return evaluator(**how).values(value, rows_of(x), step)
