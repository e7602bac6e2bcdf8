"""Running a pipeline again along a known path, and running it with its graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from fastguide.errors import ArgumentError
from fastguide.integrations.diffusers import levels
from fastguide.integrations.diffusers.call import expand_call
from fastguide.integrations.diffusers.decode import make_decoder
from fastguide.integrations.diffusers.moves import (
    find_move,
    halves,
    keyed_prior,
    other_noise,
    propose,
)
from fastguide.integrations.diffusers.noise import drawn_from
from fastguide.integrations.diffusers.rows import map_rows
from fastguide.integrations.diffusers.session import DENOISERS, attached, frozen
from fastguide.integrations.diffusers.trajectory import Trajectory
from fastguide.integrations.diffusers.transition import (
    ConstantNoise,
    detach_history,
    rebuilt,
)
from fastguide.rng import check_seed

Tensor = torch.Tensor

LEARNING = (*DENOISERS, "controlnet")
"""Networks whose parameters keep their gradient."""

TOLERANCE = 1e-3
"""Relative distance of the pipeline's states from the recorded ones that rounding explains."""


class _PlainRun:
    """One row per image: what replaying and differentiating share."""

    def __init__(self, pipe: Any, seed: int, first_chain: int, eta: float | None) -> None:
        self._pipe, self._seed, self._first_chain, self._eta = pipe, seed, first_chain, eta
        self._probe = ConstantNoise()
        self._chains: Tensor | None = None
        self._draws = 0
        self._step = 0
        self._steps = 0
        self._owner: int | None = None

    @property
    def running(self) -> bool:
        """A call is in progress."""
        return self._chains is not None

    def call(self, run: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Run the pipeline in the caller's gradient mode."""
        parameters = inspect.signature(run).parameters
        wide, images = expand_call(type(self._pipe).__name__, arguments, parameters, 1)
        known = {name: each.default for name, each in parameters.items()} | wide
        self._begin(images, known)
        device = getattr(self._pipe, "_execution_device", None) or self._pipe.device
        self._chains = torch.arange(images, device=device) + self._first_chain
        self._draws = self._step = self._steps = 0
        self._owner = None
        try:
            with drawn_from(self), frozen(self._pipe, LEARNING):
                return self._end(run(**wide))
        finally:
            self._chains = None

    def noise(
        self,
        shape: tuple[int, ...],
        generator: Any,
        device: torch.device,
        dtype: torch.dtype,
        draw: Callable[..., Tensor],
    ) -> Tensor:
        """Keyed by chain, as in a guided run."""
        assert self._chains is not None
        if shape[0] != len(self._chains):
            return other_noise(self._seed, generator, draw)
        kept, number = self._drawn(self._draws), self._draws
        self._draws += 1
        if kept is not None and kept.shape == shape:
            return kept.to(device, dtype)
        first = torch.zeros_like(self._chains)
        return keyed_prior(self._seed, self._chains, number, shape, first, device, dtype)

    def model(
        self, name: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As it is."""
        return run(*args, **kwargs)

    def step(self, scheduler: Any, run: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """One step along the path that a subclass says."""
        assert self._chains is not None
        rows = len(self._chains)
        sample, output, doubled = halves(arguments, rows)
        if self._owner is None:
            self._owner = id(scheduler)
        if self._owner != id(scheduler):
            raise ArgumentError(
                f"{type(self._pipe).__name__} steps two schedulers; only pipelines with one can be "
                "replayed or differentiated"
            )
        at = levels.place(scheduler, arguments["timestep"])
        if self._step == 0:
            self._steps = len(scheduler.timesteps) - at.position
        x = self._states(sample)
        changed = arguments | {"sample": x, "model_output": output.float()}
        move = find_move(scheduler, run, changed, at, self._eta, self._probe, self._step == 0)
        states = self._next(move)
        if self._cuts:
            detach_history(scheduler)
        back = torch.arange(rows, device=states.device)
        self._step += 1
        if doubled:
            states, back = torch.cat([states, states]), torch.cat([back, back])
        handed = states.detach() if at.last else states  # pipelines end in NumPy
        made = rebuilt(move.result, handed, rows, back, arguments["sample"].dtype)
        return map_rows(made, len(states), torch.Tensor.detach) if self._cuts else made

    @property
    def _cuts(self) -> bool:
        """Each step's graph ends with it."""
        return False

    def _drawn(self, draw: int) -> Tensor | None:
        """The noise [N, ...] that draw number `draw` before the first step must give, if known."""
        return None

    def _begin(self, images: int, arguments: dict[str, Any]) -> None:
        """Before a call of `images` rows."""

    def _end(self, output: Any) -> Any:
        return output

    def _states(self, sample: Tensor) -> Tensor:
        return sample.float()

    def _next(self, move: Any) -> Tensor:
        raise NotImplementedError


class Replay(_PlainRun):
    """A pipeline held to a recorded path.

    Attributes:
        log_probs: [T, N] float64 nats of the recorded steps under the pipeline as it is now, with
            the gradient in its parameters where gradients are enabled.
    """

    def __init__(
        self,
        pipe: Any,
        trajectory: Trajectory,
        on_step: Callable[[int, Tensor], Any] | None,
    ) -> None:
        super().__init__(pipe, trajectory.seed, trajectory.first_chain, trajectory.eta)
        self._trajectory, self._on_step = trajectory, on_step
        self._log_probs: list[Tensor] = []

    @property
    def log_probs(self) -> Tensor:
        """See the class."""
        return torch.stack(self._log_probs)

    def _begin(self, images: int, arguments: dict[str, Any]) -> None:
        due = self._trajectory.states.shape[1]
        if images != due:
            raise ArgumentError(
                f"the trajectory is one of {due} images, but this call makes {images}; call the "
                "pipeline with the prompts that were recorded"
            )
        self._log_probs = []

    @property
    def _cuts(self) -> bool:
        return self._on_step is not None

    def _drawn(self, draw: int) -> Tensor | None:
        prior = self._trajectory.prior
        return prior[draw] if draw < len(prior) else None

    def _states(self, sample: Tensor) -> Tensor:
        known = self._trajectory.states
        if self._steps != len(known) - 1:
            raise ArgumentError(
                f"the trajectory has {len(known) - 1} steps, and this call {self._steps}; give it "
                "the num_inference_steps that was recorded"
            )
        here = known[self._step].to(sample.device)
        gap = float((here - sample.detach().float()).abs().max())
        scale = float(here.abs().max())
        coarse = 0.0 if sample.dtype == torch.float32 else 0.02
        if here.shape != sample.shape or gap > (TOLERANCE + coarse) * max(scale, 1.0):
            raise ArgumentError(
                f"at step {self._step} the pipeline's states are not the recorded ones (largest "
                f"difference {gap:.3g}); call it with the arguments that were recorded"
            )
        return here

    def _next(self, move: Any) -> Tensor:
        following = self._trajectory.states[self._step + 1].to(move.x.device)
        log_prob = move.log_prob(following)
        if self._on_step is not None:
            self._on_step(self._step, log_prob)
            log_prob = log_prob.detach()
        self._log_probs.append(log_prob)
        return following


class Differentiable(_PlainRun):
    """A pipeline that keeps its graph; outputs get `.latents` and `.pixels`."""

    def __init__(
        self,
        pipe: Any,
        seed: int,
        first_chain: int,
        eta: float | None,
        last_steps: int | None,
        decode: Any,
        recompute: bool,
    ) -> None:
        super().__init__(pipe, seed, first_chain, eta)
        self._last_steps, self._how, self._recompute = last_steps, decode, recompute
        self._decode: Callable[[Tensor], Tensor] = make_decoder(pipe, lambda x: x, {})
        self._latents: Tensor | None = None

    @property
    def _learns(self) -> bool:
        """The step at hand is among the last ones, which keep their graph."""
        scheduler = self._pipe.scheduler
        steps = self._steps or len(scheduler.timesteps) - (
            getattr(scheduler, "begin_index", None) or 0
        )
        return self._last_steps is None or self._step >= steps - self._last_steps

    def model(
        self, name: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """With its graph, or recomputed when it is needed, or without one."""
        if name not in DENOISERS or not torch.is_grad_enabled():
            return run(*args, **kwargs)
        if not self._learns:
            with torch.no_grad():
                return run(*args, **kwargs)
        if self._recompute:
            return checkpoint(run, *args, use_reentrant=False, **kwargs)
        return run(*args, **kwargs)

    def _begin(self, images: int, arguments: dict[str, Any]) -> None:
        self._decode = make_decoder(self._pipe, self._how, arguments)

    def _states(self, sample: Tensor) -> Tensor:
        x = sample.float()
        return x if self._learns else x.detach()

    def _next(self, move: Any) -> Tensor:
        assert self._chains is not None
        mean = move.mean()
        moved, _ = propose(
            move,
            seed=self._seed,
            chains=self._chains,
            step=self._step,
            num_candidates=1,
            first_candidate=torch.zeros_like(self._chains),
        )
        # the draw itself, with the gradient of its mean: its noise does not depend on the model
        self._latents = mean + (moved - mean.detach())
        return self._latents

    def _end(self, output: Any) -> Any:
        assert self._latents is not None
        if not isinstance(output, tuple):
            output.latents = self._latents
            output.pixels = self._decode(self._latents)
        return output


@contextmanager
def replay(
    pipe: Any, trajectory: Trajectory, *, on_step: Callable[[int, Tensor], Any] | None = None
) -> Iterator[Replay]:
    """Hold a pipeline to a recorded path; `log_probs` of what `with` gives are the path's.

    Inside it, call the pipeline with the arguments that were recorded. Where gradients are enabled
    the log-probabilities have the gradient in the denoiser's parameters: with those recorded they
    make the ratio of policy gradients, which is 1 as long as nothing has been learned and the rows
    of a call are the same.

    Args:
        pipe: a diffusers pipeline.   trajectory: of `guide(..., record=True)`.
        on_step: called as on_step(step, log_prob [N]) while the step's graph is alive: a backward
            pass in it keeps the memory to one step. Nothing is kept after it, so that what a
            multistep scheduler remembers of earlier steps counts as given.

    Raises:
        ArgumentError: other images, steps or states than those recorded.
    """
    held = Replay(pipe, trajectory, on_step)
    with attached(pipe, held):
        yield held


@contextmanager
def differentiable(
    pipe: Any,
    *,
    seed: int = 0,
    first_chain: int = 0,
    eta: float | None = None,
    last_steps: int | None = None,
    recompute: bool = False,
    decode: str | Callable[[Tensor], Tensor] = "vae",
) -> Iterator[None]:
    """Sample with the graph of the whole run, for rewards that are propagated back into the model.

    Inside it, where gradients are enabled, the pipeline's output has `.latents` [N, ...] and
    `.pixels`, their decoded form, as `guide` decodes; both have the gradient in the denoiser's
    parameters.

    Args:
        seed, first_chain, eta: as in `guide`; the images are those of method="unguided".
        last_steps: only so many steps at the end keep their graph (DRaFT-K); None: all.
        recompute: keep the inputs of each denoiser call and run it again in the backward pass.
        decode: as in `guide`.

    Source: Clark et al. 2024 (DRaFT, arXiv 2309.17400).
    """
    check_seed(seed)
    if last_steps is not None and last_steps < 1:
        raise ArgumentError(f"last_steps must be at least 1 or None, got {last_steps}")
    with attached(
        pipe, Differentiable(pipe, seed, first_chain, eta, last_steps, decode, recompute)
    ):
        yield
