"""BeamSearch: keep the best states of all candidates; and its form with a width that varies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion import Diffusion, Step
from fastguide.errors import ArgumentError, DtypeError
from fastguide.policy import Choice, Final, Selection
from fastguide.rng import Purpose
from fastguide.samplers.base import Sampler, best_of_each

Tensor = torch.Tensor


class BeamSearch(Sampler):
    """Keep P states per output; expand each into M candidates, keep the best P of all P M.

    A greedy search by value: it targets no law. Equal values are put in order by a keyed draw, so
    that no parent is favoured; the sample of a group is its best final state.

    Args:
        diffusion: what is sampled.   reward: callable(samples [B, ...]) -> [B].
        value: estimate of the soft value; see `Sampler`.
        num_particles: P, the beam.   num_candidates: M per state of the beam.
        on_invalid: see `Sampler`.
    Raises:
        ArgumentError: a size below 1.

    `result.particles` holds the whole beam, best first. With P = 1 it is SVDD(alpha=0) up to the
    order of ties.
    """

    couples = True

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        value: Any = "posterior_mean",
        num_particles: int = 4,
        num_candidates: int = 4,
        *,
        on_invalid: str = "raise",
    ) -> None:
        super().__init__(
            diffusion,
            reward,
            value=value,
            num_particles=num_particles,
            num_candidates=num_candidates,
            on_invalid=on_invalid,
        )

    def scores(self, step: Step, num_candidates: int) -> bool:
        """Always."""
        return True

    def select(self, selection: Selection) -> Choice:
        """The best P of each group's candidates."""
        size = self.num_particles
        values = selection.values.view(len(selection.values) // size, -1)
        num, width = values.shape
        draw = ops.philox_uniform(
            selection.seed,
            selection.chains.view(num, size)[:, 0],
            selection.step.counter,
            Purpose.RESAMPLE,
            num_elements=width,
        )[:, 0]
        # by the draw first: a stable sort by value then leaves ties in its order
        order = draw.argsort(dim=1)
        order = order.gather(
            1, values.gather(1, order).argsort(dim=1, descending=True, stable=True)
        )
        best = order[:, :size]
        index = best + torch.arange(num, device=best.device)[:, None] * width
        valid = values.gather(1, best[:, :1])[:, 0] > float("-inf")
        return Choice(index.flatten(), torch.ones_like(valid, dtype=torch.float64), valid)

    def finish(self, rewards: Tensor | None, selection: Selection) -> Final:
        """The best of each beam; weights say nothing, they are equal."""
        assert rewards is not None
        equal = torch.zeros((len(rewards) // self.num_particles, self.num_particles)).double()
        return Final(
            best_of_each(rewards, self.num_particles), equal.log_softmax(dim=1).to(rewards.device)
        )


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: done,
    "exponential": lambda done: 1 - math.exp(-4 * done),
}


class ScheduledSearch(BeamSearch):
    """BeamSearch whose width follows a schedule: few candidates early, all of them late.

    Early values say little about the sample, so early candidates are worth little. At a share `d`
    of the steps done, each state of the beam gets max(1, round(schedule(d) * num_candidates))
    candidates.

    Args:
        schedule: "constant", "linear" (d), "exponential" (1 - exp(-4 d)), or a callable from d in
            [0, 1] to a share in [0, 1].
        num_steps: of the runs to come; the schedule is spread over them.
        The others: see `BeamSearch`.
    Raises:
        ArgumentError: an unknown schedule, a share outside [0, 1], or a size below 1.

    Source: after the dynamic search of Li et al. 2025 (DSearch, arXiv 2503.02039), whose schedule
    says at which steps to search at all.
    """

    num_steps: int

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        value: Any = "posterior_mean",
        num_particles: int = 1,
        num_candidates: int = 16,
        schedule: str | Callable[[float], float] = "linear",
        *,
        num_steps: int,
        on_invalid: str = "raise",
    ) -> None:
        super().__init__(
            diffusion, reward, value, num_particles, num_candidates, on_invalid=on_invalid
        )
        if isinstance(schedule, str):
            if schedule not in SCHEDULES:
                raise ArgumentError(
                    f"schedule must be one of {', '.join(SCHEDULES)} or a callable, got "
                    f"{schedule!r}"
                )
        elif not callable(schedule):
            raise DtypeError(f"schedule must be a name or a callable, got {schedule!r}")
        if num_steps < 1:
            raise ArgumentError(f"num_steps must be at least 1, got {num_steps}")
        self.schedule = schedule
        self.num_steps = num_steps
        share = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
        self._widths = []
        for index in range(num_steps + 1):
            part = share(min(index / num_steps, 1.0))
            if not 0 <= part <= 1:
                raise ArgumentError(
                    f"schedule({index / num_steps:.3g}) is {part}; it must be a share in [0, 1]"
                )
            self._widths.append(max(1, round(part * num_candidates)))

    def width(self, step: Step) -> int:
        """Candidates per state at this step."""
        return self._widths[min(step.index, self.num_steps)]

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        named = isinstance(self.schedule, str)
        name = self.schedule if named else getattr(self.schedule, "__name__", "callable")
        return {**super().settings(), "schedule": name, "widths": self._widths}
