"""One sample call of an op, and the draws that its inputs come from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastguide import ops, reference


@dataclass(frozen=True)
class Case:
    """One call of one op.

    Attributes:
        op, name: what is called and what is special about it.
        args, kwargs: as `fastguide.ops.<op>` takes them.
    """

    op: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def changed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Case:
        """The same call with other arguments."""
        return replace(self, args=args, kwargs=kwargs)

    def run(self, **extra: Any) -> Any:
        """Call the public op."""
        return getattr(ops, self.op)(*self.args, **self.kwargs, **extra)

    def oracle(self) -> Any:
        """Call the reference."""
        return getattr(reference, self.op)(*self.args, **self.kwargs)


Sample = tuple[str, tuple[Any, ...], dict[str, Any]]


class Draw:
    """Random inputs from a private generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=dtype)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def logits(self, u: int, length: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
        """[U, L, V], a slice of [U, L, V + 1] as a denoiser with a mask column gives it."""
        return (3 * self.normal(u, length, vocab + 1, dtype=dtype))[..., :vocab]

    def states(self, n: int, length: int, vocab: int, mask: int, share: float) -> torch.Tensor:
        """[N, L], a strided slice, with a share of masked sites."""
        x = self.integers(0, vocab, n, 2 * length)
        masked = torch.rand(n, 2 * length, generator=self.generator) < share
        return torch.where(masked, mask, x)[:, ::2]
