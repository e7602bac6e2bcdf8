"""Rounds of a method that draws from a frozen policy: the reference, then the policy so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fastguide.errors import ArgumentError
from fastguide.finetune.adapters import frozen_copy, with_network
from fastguide.finetune.laws import Laws, laws_of

if TYPE_CHECKING:
    from fastguide.finetune.method import Method

Tensor = torch.Tensor


class Rounds:
    """`count` equal parts of training, each with a sampler that is frozen at its beginning.

    In the first it is the reference. A tilt of 1 / (count alpha) in each compounds to 1 / alpha.
    """

    def __init__(self, method: Method, count: int) -> None:
        if count < 1:
            raise ArgumentError(f"rounds must be at least 1, got {count}")
        if method._learn_scale and count > 1:
            raise ArgumentError("learn_scale needs rounds=1; the samplers of rounds do not have it")
        self.count = count
        self._method = method
        self.begin()

    def begin(self) -> None:
        """Back to the first round."""
        self._number = 0
        self._values: dict[str, Tensor] | None = None
        self._laws: Laws | None = None

    def sampler(self, share: float) -> Laws:
        """The laws to draw from when `share` of training is done."""
        method = self._method
        # a share such as 29 / 100 times 100 may fall short of 29
        number = int(share * self.count + 1e-9)
        if number > self._number:
            assert method._update is not None
            self._number, self._laws = number, None
            self._values = {
                name: value.detach().clone() for name, value in method._update.parameters.items()
            }
        if self._values is None:
            return method.reference
        if self._laws is None:
            network = frozen_copy(method._network, self._values)
            diffusion = with_network(method._pretrained, network)
            self._laws = laws_of(diffusion, method.num_steps, method.autocast)
        return self._laws

    def memory(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"round": self._number, "values": self._values}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take up what `memory` gave."""
        self._number, self._values = memory["round"], memory["values"]
        self._laws = None
