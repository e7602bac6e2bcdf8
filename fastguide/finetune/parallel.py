"""Data parallel training by plain collectives: each process has chains of its own.

Chains are numbered across processes, so the random numbers, and with them the update, are those of
one process with all the chains. Start the processes with torchrun and call
`torch.distributed.init_process_group("gloo")` (or "nccl") before training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed

Tensor = torch.Tensor


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) if there is no process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gathered(rows: Tensor) -> Tensor:
    """Rows [N, ...] of every process, in the order of their ranks; of equal number everywhere."""
    _, size = world()
    if size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(size)]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in one message per dtype."""
    _, size = world()
    if size == 1:
        return
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    for group in kinds.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def agreed(decision: Any) -> Any:
    """The decision of rank 0, everywhere."""
    _, size = world()
    if size == 1:
        return decision
    box = [decision]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
