"""ClassifierGuidance and DPS: plain chains whose proposals follow a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Diffusion, Step
from fastguide.errors import ArgumentError, DtypeError
from fastguide.evaluation import Evaluator, Rows
from fastguide.evaluation.gradients import posterior_mean_value, state_value
from fastguide.policy import Choice, Selection
from fastguide.samplers.base import Sampler

Tensor = torch.Tensor


class Differentiated:
    """A value that brings its gradient, as samplers with `guides` use it.

    Args:
        build: `posterior_mean_value` or `state_value`.   function: the reward or value.
    """

    needs_denoiser = False
    time_conditioned = True
    deterministic = True

    def __init__(self, build: Callable[[Diffusion, Any], Any], function: Any) -> None:
        self.build = build
        self.function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def evaluate(self, evaluator: Evaluator, rows: Rows, step: Step) -> Tensor:
        """See `fastguide.evaluation.Value`."""
        value = self.build(evaluator.diffusion, self.function)
        return evaluator.differentiate(value, rows, step)


def check_scale(alpha: float, guidance_scale: float) -> None:
    """alpha > 0 and a finite guidance_scale >= 0."""
    if not alpha > 0:
        raise ArgumentError(
            f"alpha must be positive where a gradient is divided by it, got {alpha}"
        )
    if not (guidance_scale >= 0 and math.isfinite(guidance_scale)):
        raise ArgumentError(f"guidance_scale must be finite and not negative, got {guidance_scale}")


class _Guided(Sampler):
    """One chain per sample; the proposal of each step is moved along the value's gradient."""

    guides = True

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any] | None,
        value: Differentiated,
        alpha: float,
        guidance_scale: float,
        on_invalid: str,
    ) -> None:
        check_scale(alpha, guidance_scale)
        super().__init__(diffusion, reward, value=value, on_invalid=on_invalid)
        self.alpha = float(alpha)
        self.guidance_scale = float(guidance_scale)
        # what cannot be differentiated is said before any work is done
        value.build(diffusion, value.function)

    def shift(self, rows: Rows, step: Step, memory: dict[str, Tensor]) -> Tensor | None:
        """Along the gradient in the current state."""
        assert rows.gradient is not None
        scale = self.guidance_scale / self.alpha
        return self.diffusion.shift_along(rows.gradient, step, scale)

    def scores(self, step: Step, num_candidates: int) -> bool:
        """Always: the next step needs the gradient."""
        return True

    def select(self, selection: Selection) -> Choice:
        """There is one candidate."""
        value = selection.values[:, 0]
        index = torch.arange(len(value), device=value.device)
        return Choice(index, torch.ones_like(value), value > float("-inf"))

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        return {
            **super().settings(),
            "alpha": self.alpha,
            "guidance_scale": self.guidance_scale,
        }


class DPS(_Guided):
    """Move each proposal along the gradient of the reward of the predicted clean sample.

    Gaussian: mean + s^2 guidance_scale grad_x r(x0_hat(x)) / alpha. Masked: reveals are tilted to
    first order in the relaxed one-hot state (`soft` methods of denoiser and reward). The gradient
    goes through the denoiser, of each row by itself.

    Not exact: the shift uses the slope at the state rather than at its successor, and the posterior
    mean for the value. `TDS` corrects both by weights.

    Args:
        diffusion: what is sampled.   reward: differentiable, callable(x0 [B, ...]) -> [B].
        alpha: temperature in reward units per nat, positive.   guidance_scale: 1 is the target's.
        on_invalid: see `Sampler`.
    Raises:
        ArgumentError: alpha <= 0 or a bad scale.   GradientError: no gradient can be taken.

    Source: Chung et al. 2023 (arXiv 2209.14687), with the scale in units of 1 / alpha.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        alpha: float = 0.1,
        guidance_scale: float = 1.0,
        *,
        on_invalid: str = "raise",
    ) -> None:
        value = Differentiated(posterior_mean_value, reward)
        super().__init__(diffusion, reward, value, alpha, guidance_scale, on_invalid)


class ClassifierGuidance(_Guided):
    """Move each proposal along the gradient of a value that knows noisy states.

    Gaussian: mean + s^2 guidance_scale grad_x v(x, t) / alpha, without a pass through the denoiser.
    Masked: reveals tilted to first order by v.soft(onehot [B, L, V + 1], t).

    Args:
        diffusion: what is sampled.
        value: differentiable, callable(x [B, ...], t [B]) -> [B]: log-probability of a class, times
            alpha, or an estimate of the soft value.
        reward: of the final samples, for the result; None if there is none.
        alpha: temperature in reward units per nat, positive.   guidance_scale: 1 is the target's.
        on_invalid: see `Sampler`.
    Raises:
        ArgumentError: alpha <= 0 or a bad scale.   GradientError: no gradient can be taken.

    Source: Dhariwal, Nichol 2021 (arXiv 2105.05233); masked: Nisonoff et al. 2024 (arXiv
    2406.01572), its first-order form.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        value: Callable[..., Any],
        reward: Callable[..., Any] | None = None,
        alpha: float = 1.0,
        guidance_scale: float = 1.0,
        *,
        on_invalid: str = "raise",
    ) -> None:
        if not callable(value):
            raise DtypeError(
                f"value must be a callable from states and times to [B], got {type(value).__name__}"
            )
        known = Differentiated(state_value, value)
        super().__init__(diffusion, reward, known, alpha, guidance_scale, on_invalid)
