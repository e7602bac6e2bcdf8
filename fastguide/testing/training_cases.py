"""Sample inputs of the training ops: a call, its backward pass, and what autograd makes of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastguide import ops, reference
from fastguide.testing.case import Case, Draw, Sample


@dataclass(frozen=True)
class TrainingCase(Case):
    """A call whose outputs are followed by the gradients that fixed pulls on them give.

    Attributes:
        marked: which inputs carry a gradient: positions in args, names in kwargs.
    """

    marked: tuple[int | str, ...] = ()

    def run(self, **extra: Any) -> Any:
        """The public op, then its backward pass."""
        args, kwargs, leaves = self._marked(None)
        outputs = _flat(getattr(ops, self.op)(*args, **kwargs, **extra))
        return (*(each.detach() for each in outputs), *_gradients(outputs, leaves, outputs))

    def oracle(self) -> Any:
        """The reference, differentiated by autograd in float64."""
        due = _flat(getattr(reference, self.op)(*self.args, **self.kwargs))
        args, kwargs, leaves = self._marked(torch.float64)
        outputs = _flat(getattr(reference, self.op)(*args, **kwargs))
        dtype = self.args[0].dtype
        return (*due, *(each.to(dtype) for each in _gradients(outputs, leaves, due)))

    def _marked(
        self, dtype: torch.dtype | None
    ) -> tuple[list[Any], dict[str, Any], list[torch.Tensor]]:
        """Arguments in `dtype` (None: their own), and those of them that carry a gradient."""
        inputs: dict[Any, Any] = {**dict(enumerate(self.args)), **self.kwargs}
        leaves = []
        for place, value in inputs.items():
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                continue
            inputs[place] = value.detach() if dtype is None else value.to(dtype).detach()
            if place in self.marked:
                leaves.append(inputs[place].requires_grad_())
        args = [inputs.pop(position) for position in range(len(self.args))]
        return args, inputs, leaves


def _flat(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def _gradients(
    outputs: tuple[torch.Tensor, ...],
    leaves: list[torch.Tensor],
    like: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, ...]:
    """Gradients in leaves for a fixed pull on each output, rounded to the dtype in `like`."""
    generator = torch.Generator().manual_seed(9)
    pulled, pulls = [], []
    for output, due in zip(outputs, like, strict=True):
        pull = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        if output.requires_grad:
            pulled.append(output)
            pulls.append(pull.to(due.dtype).to(output))
    return torch.autograd.grad(pulled, leaves, pulls) if pulled else ()


def _rows(draw: Draw, n: int, wide: bool) -> torch.Tensor:
    """[N] of numbers of either dtype, strided."""
    return draw.normal(2 * n, dtype=torch.float64 if wide else torch.float32)[::2]


def _ppo_numbers(draw: Draw, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sample:
    """old_log_prob and advantage, so that ratios fall on both sides of both bounds."""
    n = len(args[0])
    nothing = torch.zeros(n)
    log_prob = getattr(reference, op)(*args, nothing, nothing, **kwargs)[2]
    old = log_prob - 0.3 * draw.normal(n, dtype=torch.float64)
    return "", (*args, old, draw.normal(n)), kwargs


def gaussian_ppo() -> Iterator[Sample]:
    draw = Draw(11)
    shapes: list[tuple[int, ...]] = [(0, 3), (2, 0), (1, 1), (5, 7), (3, 2, 33), (2, 4100), (70, 3)]
    for i, shape in enumerate(shapes):
        dtype = torch.float64 if i % 2 else torch.float32
        n = shape[0]
        output, x, ref = (draw.normal(n, 2 * shape[1], *shape[2:], dtype=dtype) for _ in range(3))
        output, x, ref = (tensor[:, : shape[1]] for tensor in (output, x, ref))
        x_next = 0.9 * x + 0.3 * output + 0.2 * draw.normal(*shape, dtype=dtype)
        rows = dict(a=_rows(draw, n, True), b=0.3, s=0.5 + _rows(draw, n, False).abs())
        numbers: dict[str, Any] = rows if i % 2 else dict(a=0.9, b=-0.3, s=0.2)
        kwargs = dict(numbers, clip=(0.8, 1.2), output_ref=None if i == 2 else ref)
        _, args, kwargs = _ppo_numbers(draw, "gaussian_ppo", (output, x, x_next), kwargs)
        yield "x".join(map(str, shape)), args, kwargs
    apart = draw.normal(6, 4).T
    args = (apart, apart + 0.1, apart - 0.1, torch.zeros(4), torch.ones(4))
    yield "transposed", args, dict(a=1.0, b=0.1, s=1.0, clip=(0.9, 1.1), output_ref=apart + 0.3)


def _steps(
    draw: Draw, n: int, length: int, vocab: int, mask: int, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """States before and after a step, and clean ones: a few of the masked sites are revealed."""
    x = draw.states(n, length, vocab, mask, share)
    x_next = draw.states(n, length, vocab, mask, 0.5)
    return x, torch.where(x == mask, x_next, x)


_MASKED = [
    ("no rows", 0, 4, 3, 0.5),
    ("no sites", 3, 0, 4, 0.5),
    ("one of everything", 1, 1, 1, 1.0),
    ("small", 5, 7, 4, 0.6),
    ("usual", 6, 50, 5, 0.5),
    ("nothing masked", 3, 9, 4, 0.0),
    ("a vocabulary of two registers and a rest", 2, 9, 37, 0.7),
    ("large vocabulary", 2, 5, 1031, 0.8),
    ("another large vocabulary", 2, 5, 1500, 0.8),
]

# Name, N, L, V and share of masked sites of logits of 16 bits.
_HALVES = [
    ("nothing masked", 3, 9, 4, 0.0),
    ("small", 5, 7, 5, 0.6),
    ("two registers and a rest", 2, 37, 37, 0.7),
    ("large", 2, 5, 1031, 0.8),
]


def _halves() -> Iterator[tuple[torch.dtype, str, int, int, int, float]]:
    for dtype in (torch.bfloat16, torch.float16):
        for name, n, length, vocab, share in _HALVES:
            yield dtype, f"{name}, {str(dtype)[6:]}", n, length, vocab, share


def masked_ppo() -> Iterator[Sample]:
    draw = Draw(12)
    for i, (name, n, length, vocab, share) in enumerate(_MASKED):
        dtype = torch.float64 if i % 2 else torch.float32
        x, x_next = _steps(draw, n, length, vocab, vocab, share)
        ref = draw.logits(n, length, vocab, dtype)
        kwargs: dict[str, Any] = dict(
            mask_token=vocab,
            rho=_rows(draw, n, False).abs() if i % 3 else 0.3,
            clip=(0.7, 1.4),
            logits_ref=None if i == 2 else ref,
            temperature=1.0 if i % 3 else 0.6,
        )
        args = (draw.logits(n, length, vocab, dtype), x, x_next)
        _, args, kwargs = _ppo_numbers(draw, "masked_ppo", args, kwargs)
        yield name, args, kwargs
    logits, ref = draw.normal(2, 4, 3, 6).permute(0, 2, 3, 1)
    logits = logits.clone().transpose(1, 2).contiguous().transpose(1, 2)
    logits[..., 1] = -torch.inf
    ref[..., 1] = -torch.inf
    x, x_next = _steps(draw, 3, 6, 4, -7, 0.7)
    x_next = torch.where((x == -7) & (x_next == 1), 0, x_next)
    kwargs = dict(mask_token=-7, rho=0.5, clip=(0.7, 1.4), logits_ref=ref)
    _, args, kwargs = _ppo_numbers(draw, "masked_ppo", (logits, x, x_next), kwargs)
    yield "strided, a forbidden token, negative mask", args, kwargs
    for dtype, name, n, length, vocab, share in _halves():
        x, x_next = _steps(draw, n, length, vocab, vocab, share)
        logits, ref = (draw.logits(n, length, vocab, dtype) for _ in range(2))
        logits[..., 1], ref[..., 1] = -torch.inf, -torch.inf
        x_next = torch.where((x == vocab) & (x_next == 1), 0, x_next)
        kwargs = dict(mask_token=vocab, rho=0.5, clip=(0.7, 1.4), logits_ref=ref, temperature=0.8)
        _, args, kwargs = _ppo_numbers(draw, "masked_ppo", (logits, x, x_next), kwargs)
        yield name, args, kwargs
    plain = (
        draw.normal(300, 3, 4).to(torch.bfloat16).permute(2, 1, 0),
        *_steps(draw, 4, 3, 300, 300, 0.7),
    )
    kwargs = dict(mask_token=300, rho=0.5, clip=(0.7, 1.4), logits_ref=None)
    _, args, kwargs = _ppo_numbers(draw, "masked_ppo", plain, kwargs)
    yield "strided, no reference, bfloat16", args, kwargs


def subs_cross_entropy() -> Iterator[Sample]:
    draw = Draw(13)
    for i, (name, n, length, vocab, share) in enumerate(_MASKED):
        dtype = torch.float64 if i % 2 else torch.float32
        x = draw.states(n, length, vocab, vocab, share)
        targets = draw.integers(0, vocab, n, length)
        kwargs: dict[str, Any] = dict(mask_token=vocab, head=None)
        if i % 3:
            kwargs["weight"] = _rows(draw, n, False)
        yield name, (draw.logits(n, length, vocab, dtype), x, targets), kwargs
        hidden, head = draw.normal(n, length, 10, dtype=dtype), draw.normal(vocab, 5, dtype=dtype)
        yield f"{name}, with a head", (hidden[..., ::2], x, targets), dict(kwargs, head=head)
    logits = draw.normal(4, 3, 6).permute(1, 2, 0)
    logits[..., 1] = -torch.inf
    x, targets = draw.states(3, 6, 4, -7, 0.7), 2 + draw.integers(0, 2, 3, 6)
    yield (
        "strided, a forbidden token, negative mask",
        (logits, x, targets),
        dict(mask_token=-7, head=None),
    )
    for dtype, name, n, length, vocab, share in _halves():
        x = draw.states(n, length, vocab, vocab, share)
        logits, targets = draw.logits(n, length, vocab, dtype), draw.integers(2, vocab, n, length)
        logits[..., 1] = -torch.inf
        yield name, (logits, x, targets), dict(mask_token=vocab, weight=_rows(draw, n, True))
        apart = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        yield f"strided, {name}", (apart, x, targets), dict(mask_token=vocab)


def gumbel_softmax_step() -> Iterator[Sample]:
    draw = Draw(14)
    for i, (name, n, length, vocab, share) in enumerate(_MASKED):
        dtype = torch.float64 if i % 2 else torch.float32
        x = (2 * draw.normal(n, length, vocab + 1, dtype=dtype)).softmax(-1)
        if i % 3 == 0:
            states = draw.states(n, length, vocab, vocab, share)
            x = torch.nn.functional.one_hot(states, vocab + 1).to(dtype)
        kwargs: dict[str, Any] = dict(
            rho=_rows(draw, n, False).sigmoid() if i % 3 else 0.3,
            tau=0.5 + 0.25 * (i % 3),
            seed=2**64 - 1 - i,
            chains=torch.arange(n) + 2**32 - n,
            step=i,
            logits_ref=None if i == 2 else draw.logits(n, length, vocab, dtype),
            temperature=1.0 if i % 3 else 0.6,
            straight_through=i % 4 == 3,
        )
        yield name, (draw.logits(n, length, vocab, dtype), x), kwargs
    logits, ref = draw.normal(2, 4, 3, 6).permute(0, 2, 3, 1)
    logits[..., 1] = -torch.inf
    ref[..., 1] = -torch.inf
    x = draw.normal(5, 3, 6).permute(1, 2, 0).softmax(-1)
    common: dict[str, Any] = dict(
        seed=3, chains=torch.arange(6)[::2], step=2**24 - 1, logits_ref=ref
    )
    yield "strided, a forbidden token", (logits, x), dict(common, rho=0.5, tau=0.7)
    yield "everything revealed", (logits, x), dict(common, rho=1.0, tau=1.0)


MARKED: dict[str, tuple[int | str, ...]] = {
    "gaussian_ppo": (0,),
    "masked_ppo": (0,),
    "gumbel_softmax_step": (0, 1, "logits_ref"),
    "subs_cross_entropy": (0, "head"),
}
TRAINING_OPS = {
    "gaussian_ppo": gaussian_ppo,
    "masked_ppo": masked_ppo,
    "gumbel_softmax_step": gumbel_softmax_step,
    "subs_cross_entropy": subs_cross_entropy,
}


def training_cases(op: str) -> list[Case]:
    """Every sample call of a training op; the same tensors in every process."""
    return [TrainingCase(op, name, args, kw, MARKED[op]) for name, args, kw in TRAINING_OPS[op]()]
