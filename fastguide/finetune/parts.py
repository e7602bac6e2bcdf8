"""Which (path, step) rows of a buffer an update reads, and in what portions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from fastguide import ops
from fastguide.finetune.rollout import Buffer
from fastguide.rng import Purpose
from fastguide.samplers.refinement import round_seed

Tensor = torch.Tensor

CPU_BYTES = 2**16
"""Bytes of states in one pass on a CPU; convolutions of more take up to 1.4 times as long."""


@dataclass(frozen=True)
class Part:
    """R rows of a buffer.

    Attributes:
        paths, steps: [R] int64, which path and which of its steps a row is.
    """

    buffer: Buffer
    paths: Tensor
    steps: Tensor

    @cached_property
    def x(self) -> Tensor:
        """[R, ...] states before the step."""
        return self.buffer.states[self.paths, self.steps]

    @cached_property
    def following(self) -> Tensor:
        """[R, ...] states after it."""
        return self.buffer.states[self.paths, self.steps + 1]

    @property
    def clean(self) -> Tensor:
        """[R, ...] the samples that the paths end at."""
        return self.buffer.samples[self.paths]

    @property
    def cond(self) -> dict[str, Tensor]:
        """Conditioning rows [R, ...]."""
        return {name: rows[self.paths] for name, rows in self.buffer.cond.items()}

    def extra(self, name: str) -> Tensor:
        """What the method derived of each step, [R, ...]."""
        return self.buffer.extra[name][self.paths, self.steps]


def minibatch_numbers(
    key: int,
    epoch: int,
    chains: Tensor,
    num_steps: int,
    count: int,
    whole_paths: bool,
    kept: int | None = None,
) -> Tensor:
    """[N, T] in [0, count): which minibatch of an epoch reads each row; -1: none does.

    A chain's steps are spread over the minibatches in an order drawn for (key, epoch, chain), so
    that a chain's assignment does not depend on which process it runs in. With `whole_paths` all
    steps of a chain are in one. `kept`: steps of each chain that are read, None: all.
    """
    kept = num_steps if kept is None else kept
    if whole_paths or (count == 1 and kept == num_steps):
        return ((chains + epoch) % count)[:, None].expand(-1, num_steps)
    seed = round_seed(key, epoch + 1)
    draw = ops.philox_uniform(seed, chains, 0, Purpose.SELECT, num_elements=num_steps)[:, 0]
    rank = draw.argsort(dim=1).argsort(dim=1)
    return torch.where(rank < kept, (chains[:, None] + rank) % count, -1)


def parts(
    buffer: Buffer, chosen: Tensor, *, whole_paths: bool, max_rows: int | None
) -> Iterator[Part]:
    """The chosen rows [N, T] bool, path after path, at most `max_rows` at a time.

    With `whole_paths` a path is never split, even if it alone is longer. Where there is a choice a
    CPU gets as many rows at a time as its caches are for, which is faster than all at once.
    """
    paths, steps = chosen.nonzero(as_tuple=True)
    if max_rows is None and not whole_paths and chosen.device.type == "cpu":
        row = buffer.states[0, 0]
        max_rows = max(1, CPU_BYTES // max(1, row.numel() * row.element_size()))
    if max_rows is None or len(paths) <= max_rows:
        if len(paths):
            yield Part(buffer, paths, steps)
        return
    if whole_paths:
        length = chosen.shape[1]
        max_rows = max(1, max_rows // length) * length
    for some, at in zip(paths.split(max_rows), steps.split(max_rows), strict=True):
        yield Part(buffer, some, at)
