"""What the training ops share: numbers per row, PPO terms, and gradients that come once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from fastguide.errors import ArgumentError, GradientError
from fastguide.ops import _check
from fastguide.ops._library import LIBRARY, register


class PPOTerms(NamedTuple):
    """What one transition of each row gives to PPO, each [N] and differentiable but the last.

    Attributes:
        surrogate: float64, -min(ratio A, clamp(ratio) A).
        kl: float64 nats, of the transition from the reference's; 0 without a reference.
        log_prob: float64 nats, of the transition.
        ratio: float64, exp(log_prob - old_log_prob).
        clipped: bool, where the clamp holds and the surrogate has no gradient.
    """

    surrogate: torch.Tensor
    kl: torch.Tensor
    log_prob: torch.Tensor
    ratio: torch.Tensor
    clipped: torch.Tensor


def empty_terms(like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Terms for the rows of `like`, and the slope of the surrogate in log_prob, to be written."""
    first = like.new_empty(like.shape[:1], dtype=torch.float64)
    empty = torch.empty_like
    clipped = empty(first, dtype=torch.bool)
    return first, empty(first), empty(first), empty(first), clipped, empty(first)


def row_numbers(like: torch.Tensor, **values: float | torch.Tensor) -> list[torch.Tensor]:
    """Numbers, or float32|float64 tensors [N], as tensors [N] beside `like` [N, ...].

    Raises:
        ArgumentError, ShapeError, DtypeError: neither.
    """
    size = like.shape[:1]
    found = []
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            if not math.isfinite(value):
                raise ArgumentError(f"{name} must be finite, got {value}")
            value = torch.full(size, float(value), dtype=torch.float64, device=like.device)
        elif value.dtype not in _check.FLOATS or value.shape != size:
            _check.dtype(name, value, _check.FLOATS)
            _check.shape(name, value, list(size), "[N]")
        found.append(value)
    return found


def doubles(*numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Contiguous float64, as every backend but the CPU kernels wants `row_numbers`."""
    return tuple(each.double().contiguous() for each in numbers)


def clip_bounds(clip: tuple[float, float]) -> tuple[float, float]:
    """Least and greatest ratio, checked.

    Raises:
        ArgumentError: not 0 <= low <= 1 <= high.
    """
    low, high = map(float, clip)
    if not 0 <= low <= 1 <= high:
        raise ArgumentError(
            "clip must be the least and the greatest ratio, 0 <= low <= 1 <= high, for example "
            f"(0.8, 1.2), got {clip}"
        )
    return low, high


def slope_of_surrogate(terms: PPOTerms, advantage: torch.Tensor) -> torch.Tensor:
    """Derivative of the surrogate in log_prob, [N]."""
    return torch.where(terms.clipped, 0.0, -advantage * terms.ratio)


def joined_pulls(
    d_surrogate: torch.Tensor | None,
    d_kl: torch.Tensor | None,
    d_log_prob: torch.Tensor | None,
    d_ratio: torch.Tensor | None,
    ratio: torch.Tensor,
    slope: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients in log_prob and kl [N] from those in all terms; None: none."""
    pull = torch.zeros_like(slope) if d_surrogate is None else d_surrogate * slope
    if d_log_prob is not None:
        pull = pull + d_log_prob
    if d_ratio is not None:
        pull = pull + d_ratio * ratio
    return pull, given_or_zeros(d_kl, slope)


def given_or_zeros(gradient: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """A gradient [N], contiguous; zeros for one that nobody asked for."""
    return torch.zeros_like(like) if gradient is None else gradient.contiguous()


PULLS = (
    "Tensor? d_surrogate, Tensor? d_kl, Tensor? d_log_prob, Tensor? d_ratio, Tensor ratio, "
    "Tensor slope"
)
"""Of the schema of a gradient operator: what `joined_pulls` takes."""

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, type(None), bool, int, float})


class TrainingOp:
    """A registered operator with a gradient, `torch.ops.fastguide.<name>`, and a short way to it.

    torch.library needs about 60 us for a call with a gradient, as much as a small minibatch takes.
    Plain tensors in plain eager code go straight to `run` and `run_backward`; whatever traces,
    transforms or watches goes through the dispatcher.

    Args:
        name, arguments, outputs: of the schema.   run, fake: the kernel call and its shapes.
        backward: arguments, outputs, run and fake of the gradient operator `<name>_backward`, which
            refuses to be differentiated.
        save, pull: as `torch.library.register_autograd` takes setup_context and backward; `pull`
            gets None for gradients that nobody asked for.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        outputs: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        *,
        backward: tuple[str, str, Callable[..., Any], Callable[..., Any]],
        save: Callable[..., None],
        pull: Callable[..., tuple[Any, ...]],
    ) -> None:
        self._name, self._run = name, run
        register(f"{name}({arguments}) -> {outputs}", run, fake)
        backward_arguments, backward_outputs, self._run_backward, backward_fake = backward
        schema = f"{name}_backward({backward_arguments}) -> {backward_outputs}"
        register(schema, self._run_backward, backward_fake)

        def refuse(ctx: Any, *gradients: Any) -> Sequence[Any]:
            raise GradientError(
                f"{name} can be differentiated once, not twice; leave create_graph=True away"
            )

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)
            save(ctx, inputs, output)

        torch.library.register_autograd(
            f"fastguide::{name}", pull, setup_context=setup, lib=LIBRARY
        )
        torch.library.register_autograd(f"fastguide::{name}_backward", refuse, lib=LIBRARY)

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = run(*inputs)
            ctx.set_materialize_grads(False)
            save(ctx, inputs, output)
            return output

        steps = {"forward": staticmethod(forward), "backward": staticmethod(pull)}
        function: Any = torch.autograd.Function
        direct: Any = type(f"Direct_{name}", (function,), steps)
        # Function.apply without what it does for functorch, which goes through the dispatcher.
        bound: Any = super(function, direct)
        self._apply = bound.apply

    def __call__(self, *arguments: Any) -> tuple[torch.Tensor, ...]:
        """The operator on its arguments in order."""
        if not _is_plain(arguments):
            found: tuple[torch.Tensor, ...] = getattr(torch.ops.fastguide, self._name)(*arguments)
            return found
        if torch.is_grad_enabled():
            result: tuple[torch.Tensor, ...] = self._apply(*arguments)
            return result
        plain: tuple[torch.Tensor, ...] = self._run(*arguments)
        return plain

    def backward(self, *arguments: Any) -> Any:
        """The gradient operator on its arguments in order."""
        if torch.is_grad_enabled() or not _is_plain(arguments):
            return getattr(torch.ops.fastguide, f"{self._name}_backward")(*arguments)
        return self._run_backward(*arguments)


def _is_plain(arguments: tuple[Any, ...]) -> bool:
    """No tracer, mode, transform or tensor of another class is at work."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and _PLAIN.issuperset(map(type, arguments))
    )
