"""What particle methods share: weights that accumulate, resampling in groups, a weighted result."""

from __future__ import annotations

from typing import Any

import torch

from fastguide import ops
from fastguide.errors import ArgumentError
from fastguide.policy import Choice, Final, Selection
from fastguide.reference.resample import SCHEMES
from fastguide.rng import Purpose
from fastguide.samplers.base import Sampler, best_of_each

Tensor = torch.Tensor


class ParticleSampler(Sampler):
    """Groups of P particles that never mix, one group per output.

    Particles carry log-weights; a group resamples when its effective number of particles falls
    below ess_threshold * P, and otherwise keeps its weights for the next step. The last step never
    resamples, so the particles are returned with their weights.

    Subclasses call `_start` with the settings of every particle method.
    """

    couples = True
    select_initial = True

    def _start(self, *, alpha: float, resampler: str, ess_threshold: float, output: str) -> None:
        if not alpha > 0:
            raise ArgumentError(
                f"alpha must be positive for weighted particles, got {alpha}; for the best of a "
                "group use BestOfN, BeamSearch or SVDD(alpha=0)"
            )
        if resampler not in SCHEMES:
            raise ArgumentError(f"resampler must be one of {', '.join(SCHEMES)}, got {resampler!r}")
        if not 0 <= ess_threshold <= 1:
            raise ArgumentError(
                f"ess_threshold must be a share of the particles in [0, 1], got {ess_threshold}; "
                "0 never resamples, 1 at every step"
            )
        if output not in ("sample", "best"):
            raise ArgumentError(f"output must be 'sample' or 'best', got {output!r}")
        self.alpha = float(alpha)
        self.resampler = resampler
        self.ess_threshold = float(ess_threshold)
        self.output = output

    def memory(self, num_chains: int) -> dict[str, Tensor]:
        """log_weight [N, P] and log_z [N], nats."""
        device = self.diffusion.device
        weights = torch.zeros((num_chains, self.num_particles), dtype=torch.float64, device=device)
        return {"log_weight": weights, "log_z": weights[:, 0].clone()}

    def reweigh(
        self,
        selection: Selection,
        index: Tensor,
        increment: Tensor,
        kept: dict[str, Tensor],
    ) -> Choice:
        """Add to the weights, and resample the groups that need it.

        Args:
            index: [R] candidate of each particle.   increment: [N, P] of its log-weight.
            kept: tensors [N, P, ...] that belong to those candidates; the memory holds what the
                same names were before.
        """
        old = selection.memory
        weight = old["log_weight"] + increment
        # a particle without weight stays without, whatever is added to it
        weight = weight.where(old["log_weight"] > float("-inf"), float("-inf"))
        dead = ~(weight > float("-inf")).any(dim=1)
        # a group without a valid particle goes on as if this step had not been looked at
        weight = torch.where(dead[:, None], old["log_weight"], weight)
        kept = {
            name: torch.where(_like(dead, value), old[name], value) for name, value in kept.items()
        }
        if selection.step.clean:
            ess = _ess(weight)
            weight = weight.masked_fill(dead[:, None], float("-inf"))
            return Choice(index, ess, ~dead, {**kept, "log_weight": weight, "log_z": old["log_z"]})
        num, size = weight.shape
        again = ops.resample(
            weight,
            seed=selection.seed,
            step=selection.step.counter,
            chains=selection.chains.view(num, size)[:, 0],
            scheme=self.resampler,
            ess_threshold=None if self.ess_threshold == 1 else self.ess_threshold,
            gather=[index.view(num, size), *kept.values()],
        )
        index, *moved = again.gathered
        memory = dict(zip(kept, moved, strict=True))
        memory["log_weight"] = torch.where(again.resampled[:, None], 0.0, weight)
        memory["log_z"] = old["log_z"] + again.log_z
        return Choice(index.flatten(), again.ess, ~dead, memory)

    def finish(self, rewards: Tensor | None, selection: Selection) -> Final:
        """One particle of each group: drawn by the final weights, or the best."""
        weight = selection.memory["log_weight"]
        num, size = weight.shape
        if self.output == "best":
            assert rewards is not None
            index = best_of_each(rewards, size)
        else:
            chosen = ops.select(
                weight,
                alpha=1.0,
                seed=selection.seed,
                chains=selection.chains.view(num, size)[:, 0],
                step=selection.step.counter,
                purpose=Purpose.FINAL,
            )
            index = chosen.index + torch.arange(num, device=weight.device) * size
        total = weight.logsumexp(dim=1)
        log_z = selection.memory["log_z"] + total - torch.tensor(float(size)).log().item()
        return Final(index, weight - total[:, None], log_z)

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        return {
            **super().settings(),
            "alpha": self.alpha,
            "resampler": self.resampler,
            "ess_threshold": self.ess_threshold,
            "output": self.output,
        }


def _like(flag: Tensor, value: Tensor) -> Tensor:
    return flag.view(-1, *[1] * (value.dim() - 1))


def _ess(log_weight: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of log-weights [N, P], [N] float64; 0 where there is none."""
    ess = (2 * log_weight.logsumexp(1) - (2 * log_weight).logsumexp(1)).exp()
    return ess.nan_to_num()
