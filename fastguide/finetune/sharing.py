"""Network outputs that are not taken twice: of states that a step left alone, of rollouts."""

from __future__ import annotations

from typing import Any

import torch

from fastguide.finetune.laws import Laws, MaskedLaws
from fastguide.finetune.parts import Part

Tensor = torch.Tensor

MOST_KEPT = 2**28
"""Bytes of outputs that are kept of a rollout; what would take more is computed again."""


def reads_states_alone(laws: Laws) -> bool:
    """Whether an output depends on the state and its conditioning only, and not on the step."""
    return isinstance(laws, MaskedLaws) and not laws.diffusion.time_conditioned


def outputs(laws: Laws, part: Part) -> Tensor:
    """`laws.output` of every row of a part [R, ...]; equal states in succession are taken once."""
    x, paths = part.x, part.paths
    if not reads_states_alone(laws):
        return laws.output(x, part.steps, part.cond)
    new = torch.ones_like(paths, dtype=torch.bool)
    new[1:] = (paths[1:] != paths[:-1]) | (x[1:] != x[:-1]).any(dim=1)
    first = new.nonzero()[:, 0]
    if len(first) == len(paths):
        return laws.output(x, part.steps, part.cond)
    some = Part(part.buffer, paths[first], part.steps[first])
    found = laws.output(x[first], some.steps, some.cond)
    return found.index_select(0, new.cumsum(0) - 1)


class Recalling:
    """Laws as a rollout reads them, which take no output twice for a state that a step left alone.

    Portions of paths are asked for one after the other, each step by step.

    Args:
        laws: to be read.   keep: also keep the outputs, for `kept`.
    """

    def __init__(self, laws: Laws, keep: bool = False) -> None:
        self._laws = laws
        self._again = reads_states_alone(laws)
        self._keep = keep
        self._portions: list[list[Tensor]] = []
        self._number = 0
        self._x = self._output = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._laws, name)

    def __len__(self) -> int:
        return len(self._laws)

    def output(self, x: Tensor, index: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Outputs [N, ...] of the states x of the next step."""
        start = self._number == 0
        self._number = (self._number + 1) % len(self)
        if start:
            self._portions.append([])
        if start or not self._again:
            output = self._laws.output(x, index, cond)
        else:
            output = self._renewed(x, index, cond)
        self._x, self._output = x, output
        if self._keep:
            self._portions[-1].append(output)
        return output

    def at(self, x: Tensor, index: Tensor, cond: dict[str, Tensor]) -> Any:
        """The kernels of `output`."""
        return self._laws.law(x, self.output(x, index, cond), index)

    def _renewed(self, x: Tensor, index: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The last outputs, with those of states that are new."""
        rows = (x != self._x).any(dim=1).nonzero()[:, 0]
        if len(rows) == len(x):
            return self._laws.output(x, index, cond)
        if not len(rows):
            return self._output
        some = {name: value[rows] for name, value in cond.items()}
        found = self._laws.output(x[rows], index[rows], some)
        return self._output.index_copy(0, rows, found)

    def kept(self) -> Tensor:
        """[N, T, ...]: outputs of all paths."""
        return torch.cat([torch.stack(steps, dim=1) for steps in self._portions])


def may_keep(laws: Laws, num_paths: int) -> bool:
    """Whether the outputs of so many paths are few enough to be kept."""
    row = 4 * torch.Size(laws.diffusion.output_shape).numel()
    return num_paths * len(laws) * row <= MOST_KEPT
