"""Checks of the arguments that all methods have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastguide.errors import ArgumentError, DtypeError


def check_counts(**counts: int | None) -> None:
    """Raise ArgumentError where a number by its name is below 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ArgumentError(f"{name} must be at least 1, got {count}")


def check_target(reward: Callable[..., Any], alpha: float, on_invalid: str) -> None:
    """Raise DtypeError or ArgumentError where these do not say what to train towards."""
    if not callable(reward):
        raise DtypeError(
            f"reward must be a callable from samples [B, ...] to [B], got {type(reward)}"
        )
    if not 0 < alpha < float("inf"):
        raise ArgumentError(f"alpha must be positive, in reward units per nat, got {alpha}")
    if on_invalid not in ("raise", "reject"):
        raise ArgumentError(f"on_invalid must be 'raise' or 'reject', got {on_invalid!r}")
