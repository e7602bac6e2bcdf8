"""The tensors that a choice takes along, shared by the ops that choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastguide.errors import ArgumentError, ShapeError
from fastguide.ops import _check
from fastguide.reference.gather import GatherItem

# Source [N, K, ...], or source [U, ...] with its index [N, K] contiguous.
Source = tuple[torch.Tensor, torch.Tensor | None]


def split(
    gather: Sequence[GatherItem],
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """The tensors of the items, and the index of each or None, as an operator schema has them."""
    tensors = [item if isinstance(item, torch.Tensor) else item[0] for item in gather]
    indices = [None if isinstance(item, torch.Tensor) else item[1] for item in gather]
    return tensors, indices


def join(items: Sequence[Source]) -> list[GatherItem]:
    """Inverse of `split`, for the reference."""
    return [tensor if where is None else (tensor, where) for tensor, where in items]


def checked(
    op: str,
    tensors: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor | None],
    like: torch.Tensor,
    letters: str,
) -> list[Source]:
    """The items, checked against the [N, K] of `like`, whose shape `letters` names."""
    lead = list(like.shape)
    items: list[Source] = []
    for i, (tensor, where) in enumerate(zip(tensors, indices, strict=True)):
        name = f"gather[{i}]"
        _check.no_gradient(op, **{name: tensor})
        _check.same_device(op, like, **{name: tensor, f"{name}[1]": where})
        if where is not None:
            if tensor.dim() < 1:
                raise ShapeError(f"{name}[0] must have shape [U, ...], got a scalar")
            where = _check.integers(f"{name}[1]", where, lead, letters)
        elif tensor.dim() < 2 or list(tensor.shape[:2]) != lead:
            raise ShapeError(
                f"{name} must have shape {letters[:-1]}, ...] = {[*lead, '...']}, got "
                f"{list(tensor.shape)}; pass a pair (tensor [U, ...], idx {letters}) to gather "
                "through an index"
            )
        items.append((tensor, where))
    return items


def inner_shape(tensor: torch.Tensor, where: torch.Tensor | None) -> tuple[int, ...]:
    """Shape of what one choice takes from an item."""
    return tuple(tensor.shape[2:] if where is None else tensor.shape[1:])


def empty(items: Sequence[Source], lead: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Uninitialised outputs [*lead, ...]."""
    return tuple(
        torch.empty((*lead, *inner_shape(tensor, where)), dtype=tensor.dtype, device=tensor.device)
        for tensor, where in items
    )


def check_outputs(
    targets: Sequence[torch.Tensor], items: Sequence[Source], lead: Sequence[int]
) -> None:
    """The `gathered` tensors of an `out=` fit the items."""
    if len(targets) != len(items):
        raise ArgumentError(
            f"out: gathered must hold one tensor per gather item ({len(items)}), got {len(targets)}"
        )
    for i, (target, (tensor, where)) in enumerate(zip(targets, items, strict=True)):
        due = (*lead, *inner_shape(tensor, where))
        _check.output(f"gathered[{i}]", target, due, tensor.dtype, tensor)


def fake(
    op: str,
    tensors: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor | None],
    lead: Sequence[int],
) -> list[torch.Tensor]:
    """Outputs without contents, for tracing."""
    gathered = []
    for tensor, where in zip(tensors, indices, strict=True):
        _check.no_gradient(op, gather=tensor)
        gathered.append(tensor.new_empty((*lead, *inner_shape(tensor, where))))
    return gathered
