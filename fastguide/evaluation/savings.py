"""Which reuse of model calls a run may make."""

from __future__ import annotations

from collections.abc import Collection

import torch

from fastguide.errors import ArgumentError

ALL = frozenset({"duplicates", "parent", "history", "carry", "rewards", "skip"})
"""What `savings` may hold. None of them changes a sample; each saves rows.

duplicates: equal rows of one step are evaluated once.
parent: a candidate equal to its parent takes the parent's output and value.
history: a state met at an earlier step takes its remembered output or value.
carry: the chosen candidate's denoiser output proposes the next step.
rewards: equal predictions are rewarded once, in the step and (deterministic rewards) in the run.
skip: no selection where all candidates of every chain are the same state, no step without masks.

`parent` and `history` hold only where time does not enter: for outputs if the diffusion is not
time-conditioned, for values if the value is not.
"""


RESIDENT = frozenset({"duplicates", "parent", "carry"})
"""Those that need no dictionary on the host, and on a GPU no waiting but for one count a step."""

RESIDENT_DEVICES = {"cuda"}
"""Where "all" means RESIDENT: waiting for the device costs more than the others save.

Asked for by name, the others work there too, at several waits a step: worth it for a slow denoiser
or a reward that runs on the host anyway.
"""


def runs_ahead(device: torch.device) -> bool:
    """Whether the host would have to wait for this device to look at a number."""
    return device.type in RESIDENT_DEVICES


def stays_resident(savings: frozenset[str], device: torch.device) -> bool:
    """Whether a run on this device, of states that can be equal, needs no memory on the host."""
    return runs_ahead(device) and savings <= RESIDENT


def resolve_savings(savings: str | Collection[str], device: torch.device) -> frozenset[str]:
    """Return the set for "all", "none" or a collection of names, or raise ArgumentError."""
    if savings == "all":
        return RESIDENT if runs_ahead(device) else ALL
    if savings == "none":
        return frozenset()
    chosen = frozenset([savings] if isinstance(savings, str) else savings)
    if unknown := chosen - ALL:
        raise ArgumentError(
            f"savings must be 'all', 'none' or a set of {sorted(ALL)}; unknown: {sorted(unknown)}"
        )
    return chosen
