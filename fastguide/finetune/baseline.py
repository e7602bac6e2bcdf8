"""A running mean of the returns for each distinct prompt and conditioning."""

from __future__ import annotations

import torch

from fastguide.checkpoint import digest
from fastguide.finetune import parallel

Tensor = torch.Tensor

DECAY = 0.9


class RunningMeans:
    """Means with decay 0.9 over the iterations of one training, by what a path was given.

    Attributes:
        means: [T] by key, a digest of the given row, which is the same in every process and run.
    """

    def __init__(self, means: dict[int, Tensor] | None = None) -> None:
        self.means = {} if means is None else dict(means)
        self._keys: Tensor | None = None

    def before(self, returns: Tensor, given: dict[str, Tensor]) -> Tensor:
        """The baseline [N, T] of returns [N, T], which then become part of it.

        A key that is new starts at the mean of its own returns.

        Args:
            given: rows [N, ...] that tell the paths apart, the same in every iteration; without any
                all are of one kind.
        """
        if self._keys is None:
            self._keys = row_keys(given, len(returns)).to(returns.device)
        kinds, member = parallel.gathered(self._keys).unique(return_inverse=True)
        rows = parallel.gathered(returns)
        sums = rows.new_zeros(len(kinds), rows.shape[1]).index_add_(0, member, rows)
        current = sums / member.bincount(minlength=len(kinds))[:, None]
        names = kinds.tolist()
        pairs = zip(names, current, strict=True)
        earlier = torch.stack([self.means.get(name, mean).to(mean) for name, mean in pairs])
        later = DECAY * earlier + (1 - DECAY) * current
        self.means.update(zip(names, later, strict=True))
        return earlier[torch.searchsorted(kinds, self._keys)]


def row_keys(given: dict[str, Tensor], count: int) -> Tensor:
    """[count] int64: a digest of row i of every tensor [count, ...]."""
    rows = {name: value.detach().cpu() for name, value in given.items()}
    digests = (digest({name: value[i] for name, value in rows.items()}) for i in range(count))
    return torch.tensor([int(found or "0", 16) - 2**63 for found in digests])
