"""FKCGuidance: classifier-free guidance whose particles are weighed, so that it has a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Diffusion, Step
from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.errors import ArgumentError
from fastguide.evaluation import ResidentEvaluator, Rows
from fastguide.policy import Choice, Selection
from fastguide.samplers.particles import ParticleSampler

Tensor = torch.Tensor


class _Gap:
    """Squared distance of the conditional and the unconditional prediction, as a value."""

    needs_denoiser = False
    time_conditioned = True
    deterministic = True

    def __init__(self, diffusion: GaussianChain) -> None:
        self._diffusion = diffusion

    def evaluate(self, evaluator: ResidentEvaluator, rows: Rows, step: Step) -> Tensor:
        """[R] float64; also keeps the outputs, which the next step proposes from."""
        gap = evaluator.denoise_pairs(self._diffusion.predict_pair, rows, step)
        return gap.double().square().flatten(1).sum(dim=1)


class FKCGuidance(ParticleSampler):
    """Particles under classifier-free guidance, weighed by the distance of its two predictions.

    Guidance of scale g moves each step by the geometric mean of two kernels of one variance, the
    unconditional to the power 1 - g and the conditional to the power g. Their product is that
    guided kernel times exp(g (g - 1) |mu_c - mu_u|^2 / (2 s^2)), which plain guidance forgets: it
    samples no known law. With these weights the particles target the product of the two chains,
    which tends to p_u(x)^(1 - g) p_c(x)^g as steps get short. Both predictions are there already:
    no further network calls.

    Args:
        diffusion: a Gaussian, flow or Karras diffusion with null_cond and guidance_scale.
        num_steps: of the runs to come.
        reward: of the final samples, for the result; it does not steer.
        num_particles: P.   resampler, ess_threshold, output: see `SMC`.
    Raises:
        ArgumentError: a diffusion without guidance, or one that is not Gaussian.

    Steps without noise have no weight. Source: Skreta et al. 2025 (arXiv 2503.02819), in the form
    of one step.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any] | None = None,
        num_particles: int = 16,
        resampler: str = "systematic",
        ess_threshold: float = 0.5,
        *,
        num_steps: int,
        output: str = "sample",
    ) -> None:
        if not isinstance(diffusion, GaussianChain) or diffusion.rows_per_state != 2:
            raise ArgumentError(
                "diffusion must be a Gaussian, flow or Karras diffusion with null_cond=... and a "
                f"guidance_scale other than 1, got {type(diffusion).__name__}"
            )
        if output == "best" and reward is None:
            raise ArgumentError("output='best' needs a reward")
        super().__init__(diffusion, reward, value=_Gap(diffusion), num_particles=num_particles)
        self._start(alpha=1.0, resampler=resampler, ess_threshold=ess_threshold, output=output)
        self.num_steps = num_steps
        scale = diffusion.guidance_scale
        self._factors = [0.0] * (num_steps + 1)
        for step in diffusion.steps(num_steps):
            _, b, s = step.params
            if s > 0:
                self._factors[step.index] = scale * (scale - 1) * b**2 / (2 * s**2)

    def scores(self, step: Step, num_candidates: int) -> bool:
        """Always but at the end, where no step follows."""
        return not step.clean

    def select(self, selection: Selection) -> Choice:
        """The weight of the step to come, which the states and their predictions decide."""
        gap = selection.values.view(selection.memory["log_weight"].shape)
        factor = self._factors[selection.step.index + 1]
        index = torch.arange(gap.numel(), device=gap.device)
        return self.reweigh(selection, index, factor * gap, {})

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        found = {**super().settings(), "num_steps": self.num_steps}
        return {name: found[name] for name in found if name != "alpha"}
