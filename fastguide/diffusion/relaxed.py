"""Relaxed states of a masked chain: simplex points, so that there is something to differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion.base import Step
from fastguide.errors import GradientError

Tensor = torch.Tensor


def soft_method(model: Any, name: str, signature: str) -> Callable[..., Tensor]:
    """`model.soft`, or an error that says what to write and what to use instead.

    Raises:
        GradientError: there is none. It is never guessed from the forward pass.
    """
    soft = getattr(model, "soft", None)
    if not callable(soft):
        raise GradientError(
            f"{name} ({type(model).__name__}) cannot be differentiated in tokens; give it a method "
            f"{signature}, or use SVDD, SMC, NestedSMC or FKSteering, which need no gradient"
        )
    method: Callable[..., Tensor] = soft
    return method


def one_hot(x: Tensor, mask_token: int, vocab_size: int) -> Tensor:
    """States [B, L] as [B, L, V + 1] float32; the last column is the mask."""
    columns = torch.where(x == mask_token, vocab_size, x)
    return torch.nn.functional.one_hot(columns, vocab_size + 1).float()


def predicted(relaxed: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """The predicted sample as probabilities [B, L, V]: known sites stay, masked ones are filled."""
    probs = (logits / temperature).softmax(dim=-1)
    return relaxed[..., :-1] + relaxed[..., -1:] * probs.to(relaxed.dtype)


class RelaxedTokens:
    """The part of `MaskedDiffusion` that gradient methods use."""

    denoiser: Any
    head: Any
    mask_token: int
    vocab_size: int
    temperature: float
    _run: Callable[..., Any]
    _finished: Callable[[Any, int], Tensor]

    def relax(self, x: Tensor) -> Tensor:
        """States [B, L] as points [B, L, V + 1] of the simplex; the last column is the mask."""
        return one_hot(x, self.mask_token, self.vocab_size)

    def predict_relaxed(
        self, x: Tensor, t: Tensor, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, L, V] of relaxed states [B, L, V + 1], and the predicted probabilities.

        Raises:
            GradientError: the denoiser has no method soft(onehot, t).
        """
        soft = soft_method(
            self.denoiser, "denoiser", "soft(onehot [B, L, V + 1], t [B]) -> logits [B, L, V]"
        )
        logits = self._finished(self._run(x, t, cond, soft), len(x))
        return logits, predicted(x, logits, self.temperature)

    def relaxed_reward(self, reward: Any) -> Callable[[Tensor], Tensor]:
        """reward.soft, from probabilities [B, L, V].

        Raises:
            GradientError: there is none, or the diffusion has a head of its own.
        """
        if self.head is not None:
            raise GradientError(
                "a gradient through the denoiser needs denoiser.soft to return logits, which a "
                "diffusion with head= has none of; leave head away, or use a method without "
                "gradients such as SVDD or SMC"
            )
        return soft_method(reward, "reward", "soft(probs [B, L, V]) -> [B]")

    def relaxed_value(self, value: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """value.soft, from relaxed states [B, L, V + 1] and times [B]."""
        return soft_method(value, "value", "soft(onehot [B, L, V + 1], t [B]) -> [B]")

    def shift_along(self, gradient: Tensor, step: Step, scale: Tensor | float) -> Tensor:
        """Log-tilts [R, L, V] of the reveals: the gain of each token over the mask, to first order.

        gradient: [R, L, V + 1].   scale: 1 / alpha times the guidance, one number or [R].
        """
        gain = gradient[..., :-1] - gradient[..., -1:]
        return gain * (scale.view(-1, 1, 1) if isinstance(scale, Tensor) else scale)
