"""Distinct rows in order of first appearance."""

from __future__ import annotations

import torch


def unique_rows(
    rows: torch.Tensor, keys: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Group equal rows. Compares whole rows; `keys` are not needed for the definition.

    Args:
        rows: [R, L] integer.   keys: ignored.

    Returns:
        first [R] int64: first[:count] are the rows that open each group, ascending; the rest is 0.
        inverse [R] int64: group of each row.   count [1] int64.
    """
    groups: dict[tuple[int, ...], int] = {}
    opened: list[int] = []
    inverse: list[int] = []
    for r, row in enumerate(rows.tolist()):
        group = groups.setdefault(tuple(row), len(groups))
        if group == len(opened):
            opened.append(r)
        inverse.append(group)
    first = opened + [0] * (len(inverse) - len(opened))
    device = rows.device
    return (
        torch.tensor(first, dtype=torch.int64, device=device),
        torch.tensor(inverse, dtype=torch.int64, device=device),
        torch.tensor([len(opened)], dtype=torch.int64, device=device),
    )
