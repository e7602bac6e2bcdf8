"""Shifted selection: the loop of a guided pipeline, one scheduler step at a time.

A pipeline runs R rows, all candidates of all images. When its scheduler is asked for a step, the
model's output at hand is the evaluation of the last step's candidates, with whatever conditioning
the pipeline applies. So a step values the candidates, chooses, moves the chosen by the scheduler's
own transition, and returns fresh candidates: the call that scores them is the one that moves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Step
from fastguide.diffusion.universal import Kernel
from fastguide.errors import ArgumentError, NonFiniteError
from fastguide.integrations.diffusers import levels
from fastguide.integrations.diffusers.layout import Layout, Ledger
from fastguide.integrations.diffusers.moves import (
    Move,
    find_move,
    halves,
    keyed_prior,
    other_noise,
    propose,
)
from fastguide.integrations.diffusers.records import Candidates, Settings
from fastguide.integrations.diffusers.rows import call_distinct, check_conditioning, num_rows, take
from fastguide.integrations.diffusers.scores import PipelineCost, Scores
from fastguide.integrations.diffusers.session import DENOISERS
from fastguide.integrations.diffusers.streams import Stream
from fastguide.integrations.diffusers.trajectory import Recorder, Trajectory
from fastguide.integrations.diffusers.transition import ConstantNoise, forget_history, rebuilt
from fastguide.policy import Selection
from fastguide.result import Trace
from fastguide.samplers.base import Sampler

Tensor = torch.Tensor


class GuidedCall:
    """One call of the pipeline in progress: N images, R = N P K rows, image by image.

    Attributes:
        source: [R] the row that each row is a copy of.   spread: the K rows of a state differ.
        candidates, rewards: once the last step is done, and the reward [N] of each winner.
    """

    def __init__(
        self,
        policy: Sampler,
        settings: Settings,
        images: int,
        decode: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self.policy, self.settings, self.decode = policy, settings, decode
        self.width = policy.num_candidates
        self.at = Layout(images, policy.num_particles, self.width, settings.first_chain, device)
        self.rows = self.at.rows
        self.cost = PipelineCost()
        self.scores = Scores(policy, settings.max_rows, self.cost)
        self.spread = policy.select_initial and self.width > 1
        self.source = self.at.place if self.spread else self.at.state_first
        self.index = self.at.place
        self.memory = policy.memory(images)
        self.candidates: Candidates | None = None
        self.rewards: Tensor | None = None
        self._recorder = Recorder() if settings.record else None
        self._streams: dict[int, Stream] = {}
        self._log_ratio: Tensor | None = None
        self._probe = ConstantNoise()
        self._prior_draws = 0
        self._checked = False
        self._scoring = False
        self._silent = 0.0  # below 0: guided steps so far, none of which added noise
        self._total = 0
        self._ledger = Ledger(self.cost)
        self._winner = torch.arange(images) * policy.num_particles
        self._best: Tensor | None = None  # rows of the winners, once they are known

    # -- the pipeline's draws and networks -----------------------------------------------------

    def noise(
        self,
        shape: tuple[int, ...],
        generator: Any,
        device: torch.device,
        dtype: torch.dtype,
        draw: Callable[..., Tensor],
    ) -> Tensor:
        """What is drawn for all rows is keyed by chain; the rest by the seed, or the generator."""
        if self._scoring:  # a reward that samples has draws of its own
            return draw(generator)
        if shape[0] != self.rows:
            return other_noise(self.settings.seed, generator, draw)
        place = self.at.place
        first = self.at.number if self.spread else self.at.first_candidate(place)
        states = keyed_prior(
            self.settings.seed, self.at.chain, self._prior_draws, shape, first, device, dtype
        )
        self._prior_draws += 1
        if self._recorder is not None:
            self._recorder.drawn(states)
        return states.requires_grad_() if self.scores.differentiates else states

    def model(
        self, name: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A network on distinct rows."""
        cost = self.cost
        if name == "vae" and self._scoring:
            cost.decoder_rows += num_rows(args, kwargs)
            if torch.is_grad_enabled():
                return run(*args, **kwargs)
            with cost.timed("decoder"):
                return run(*args, **kwargs)
        if name in DENOISERS:
            cost.denoiser_rows_requested += num_rows(args, kwargs)
            if not self._checked:
                shared = torch.equal(self.source, self.at.image_first)
                check_conditioning(args, kwargs, self.at.image_first, shared)
                self._checked = True

        def executed(rows: int) -> None:
            if name in DENOISERS:
                cost.denoiser_rows += rows
            elif name == "vae":
                cost.decoder_rows += rows

        with cost.timed("decoder" if name == "vae" else "denoiser"):
            return call_distinct(
                run,
                args,
                kwargs,
                source=self.source,
                max_rows=self.settings.max_rows,
                executed=executed,
            )

    # -- a step --------------------------------------------------------------------------------

    def step(self, scheduler: Any, run: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Value, choose, move, propose; returns what the scheduler would, for all rows."""
        sample, output, doubled = halves(arguments, self.rows)
        given = arguments["sample"]
        stream = self._streams.setdefault(id(scheduler), Stream(len(self._streams)))
        stream.enter(scheduler)
        at = levels.place(scheduler, arguments["timestep"])
        if stream.number == 0 and stream.steps == 0:
            self._total = len(scheduler.timesteps) - at.position
        guides = self.settings.guides(stream.steps, self._total)
        time_now = float(arguments["timestep"])
        connected = self.scores.differentiates and stream.number == 0
        x = sample.float() if connected else stream.exact(sample)
        gradient = None
        if stream.number == 0:
            first_order = getattr(scheduler, "state_in_first_order", True)
            gradient = self._choose(
                stream.steps, guides, first_order, scheduler, at, given, x, output, time_now
            )
        x, output = take(x.detach(), self.index), take(output.detach().float(), self.index)
        recorder = self._recorder if stream.number == 0 else None
        if recorder is not None:
            ancestors = None if stream.parent is None else stream.parent[self.index]
            recorder.arrived(x, self.index, ancestors)
        stream.follow(scheduler, self.index)
        changed = {
            name: take(value, self.index)
            if isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == self.rows
            else value
            for name, value in arguments.items()
        } | {"sample": x, "model_output": output}
        left = not guides and stream.steps > 0
        eta = self.settings.eta if guides else None
        if left and self.settings.eta is not None:
            self._leave_window(stream, scheduler)
        move = find_move(scheduler, run, changed, at, eta, self._probe, stream.steps == 0)
        if stream.number == 0 and guides and not at.last:
            self._check_noise(scheduler, move.varies)
        if recorder is not None:
            recorder.left(move)
        states = self._move(stream, move, gradient, guides)
        if stream.number == 0 and at.last:
            winner = self._finish(stream.steps, states, time_now)
            if recorder is not None and stream.parent is not None:
                recorder.arrived(states[winner], winner, stream.parent[winner])
            self._best = winner
        if self._best is not None:
            states = states[self._best].repeat_interleave(self.rows // self.at.images, dim=0)
        result = self._hand_back(stream, states, move.result, given.dtype, doubled, at.last)
        stream.steps += 1
        return result

    def _choose(
        self,
        step: int,
        guides: bool,
        first_order: bool,
        scheduler: Any,
        at: levels.Place,
        sample: Tensor,
        x: Tensor,
        output: Tensor,
        time_now: float,
    ) -> Tensor | None:
        """Set `index` to the rows that go on; return their gradients if proposals follow them."""
        policy, settings = self.policy, self.settings
        before = settings.guides(max(step - 1, 0), self._total)
        due = before and (step % settings.interval == 0 or not guides)
        count = self.width if self.spread else 1
        move = Step(step - 1, time_now, time_now, clean=False, varies=count > 1, params=())
        chooses = policy.select_initial if step == 0 else self.spread or policy.couples
        # chains without candidates are valued at every step where each follows its gradient
        chooses = chooses or (policy.guides and step > 0)
        selects = due and chooses and first_order and policy.scores(move, count)
        shifts = self.scores.differentiates and guides and first_order
        record: dict[str, Any] = {"ess": torch.nan, "invalid": 0, "time": time_now}
        values = gradient = None
        if selects or shifts:
            looked = self.at.looked_at(self.spread)
            values, gradient = self._value(looked, scheduler, at, sample, x, output, step, time_now)
        index = self.at.looked_at(self.spread)
        if selects:
            assert values is not None
            index = self._select(move, values.view(-1, count), record)
        self.index = index
        if step > 0:
            chosen = torch.full((self.rows // self.width,), torch.nan, dtype=torch.float64)
            if values is not None and len(index) == len(chosen):
                chosen = values[index if self.spread else index // self.width].cpu()
            self._ledger.note(chosen, **record)
        return None if gradient is None else gradient[index]

    def _value(
        self,
        looked: Tensor,
        scheduler: Any,
        at: levels.Place,
        sample: Tensor,
        x: Tensor,
        output: Tensor,
        step: int,
        time_now: float,
    ) -> tuple[Tensor, Tensor | None]:
        scores, connected = self.scores, self.scores.differentiates
        names = self.at.named(looked)
        self._scoring = True
        try:
            with torch.set_grad_enabled(connected):
                picked = x if connected else take(x, looked)
                x0 = None
                if scores.reads_prediction:
                    given = output.float() if connected else take(output.float(), looked)
                    x0 = levels.predict_clean(scheduler, at, given, picked)
            if connected:
                return scores.with_gradient(
                    self.decode, sample, picked, x0, names, step - 1, time_now
                )
            return scores.values(self.decode, picked, x0, names, step - 1, time_now), None
        finally:
            self._scoring = False

    def _select(self, move: Step, values: Tensor, record: dict[str, Any]) -> Tensor:
        """[S] rows that go on, of candidates with values [S, K']."""
        with self.cost.timed("kernels"):
            choice = self.policy.select(self._selection(move, values, self._log_ratio))
        self.memory, self._log_ratio = choice.memory, None
        record["ess"] = float(choice.ess.mean())
        record["invalid"] = int((~choice.valid).sum())
        if record["invalid"] and move.clean:
            chain = self._selection(move, values, None).chains[(~choice.valid).nonzero()[0, 0]]
            raise NonFiniteError(
                f"every candidate of chain {int(chain)} was invalid at the last selection (step "
                f"{move.index}): the reward returned NaN or infinity for all of them; fix it for "
                "such inputs, or raise num_candidates"
            )
        return choice.index * (self.width // values.shape[1])

    def _leave_window(self, stream: Stream, scheduler: Any) -> None:
        """Behind the window the scheduler's own steps begin anew, without a history."""
        if self.settings.guides(stream.steps - 1, self._total):
            forget_history(scheduler, stream.fresh)

    def _move(self, stream: Stream, move: Move, gradient: Tensor | None, guides: bool) -> Tensor:
        """Candidates of S states, as all R rows."""
        shift = None
        if gradient is not None and move.varies and move.deviations is None:
            shift = self._shift(gradient, stream.steps, move.kernel)
        size, place = len(move.x), self.at.place
        states = size * self.width == self.rows
        wide = self.width if states and move.varies and guides else 1
        self.cost.candidate_rows += size * wide
        # the draw is that of the place where a state goes: copies of one ancestor part there
        goes = self.at.looked_at(not states)
        first = self.at.first_candidate(goes) if states else self.at.number[goes]
        with self.cost.timed("kernels"):
            moved, log_ratio = propose(
                move,
                seed=self.settings.seed,
                chains=self.at.chain[goes],
                step=stream.counter,
                num_candidates=wide,
                first_candidate=first,
                shift=shift,
            )
        stream.parent = place // self.width if states else place
        if stream.number == 0:
            if log_ratio is not None:
                self._log_ratio = log_ratio + (0.0 if self._log_ratio is None else self._log_ratio)
            self.spread = wide > 1 or (not states and self.spread)
            self.source = place if self.spread else self.at.state_first
        return moved if len(moved) == self.rows else moved[place // self.width]

    def _shift(self, gradient: Tensor, step: int, move: Kernel) -> Tensor | None:
        rows = self.at.named(self.index)
        rows.gradient = gradient
        self.policy.diffusion.shape = tuple(gradient.shape[1:])  # type: ignore[attr-defined]
        here = Step(step, 0.0, 0.0, clean=False, varies=True, params=tuple(move))
        return self.policy.shift(rows, here, self.memory)

    def _check_noise(self, scheduler: Any, varies: bool) -> None:
        policy = self.policy
        wants = self.width > 1 or policy.guides or (policy.couples and self.at.particles > 1)
        self._silent = math.inf if varies else self._silent - 1
        # those of second order add noise in every other call
        if self._silent > -getattr(scheduler, "order", 1) or not wants:
            return
        takes = levels.takes_eta(scheduler)
        raise ArgumentError(
            f"scheduler {type(scheduler).__name__} adds no noise, so that all candidates of a "
            f"state are the same; {'pass eta=1.0 to guide(), or ' if takes else ''}exchange "
            "it: pipe.scheduler = fastguide.integrations.diffusers.stochastic_scheduler(pipe)"
        )

    # -- the end -------------------------------------------------------------------------------

    def _finish(self, step: int, states: Tensor, time_now: float) -> Tensor:
        """Reward the clean latents and choose: the row [N] of each image's winner."""
        policy = self.policy
        count = self.width if self.spread else 1
        looked = self.at.looked_at(self.spread)
        latents = states[looked]
        move = Step(step, time_now, 0.0, clean=True, varies=count > 1, params=())
        record: dict[str, Any] = {"ess": torch.nan, "invalid": 0, "time": 0.0}
        rewards = None
        index = self.at.looked_at(False)
        if policy.reward is not None:
            self._scoring = True
            try:
                rewards = self.scores.rewards(self.decode, latents, self.at.named(looked), step)
            finally:
                self._scoring = False
            if policy.scores(move, count):
                index = self._select(move, rewards.view(-1, count), record)
        place = index if self.spread else index // self.width
        chosen = None if rewards is None else rewards[place]
        blank = torch.full((len(index), 1), torch.nan, dtype=torch.float64, device=index.device)
        values = blank if chosen is None else chosen[:, None]
        final = policy.finish(chosen, self._selection(move, values, None))
        winner = index[final.index]
        if chosen is not None:
            best = chosen[final.index]
            if not bool(best.isfinite().all()):
                chain = int(self.at.chain[winner[(~best.isfinite()).nonzero()[0, 0]]])
                raise NonFiniteError(
                    f"the reward of the final image of chain {chain} is not finite and there is "
                    "no valid one to return instead; fix the reward for such inputs"
                )
            self.rewards = best.float()
        self.candidates = Candidates(
            latents.unflatten(0, (self.at.images, -1)),
            None if rewards is None else rewards.float().view(self.at.images, -1),
            final.log_weights,
            final.log_z,
        )
        self._winner = final.index
        self._ledger.note(values[:, 0], **record)
        self.source, self.spread = self.at.image_first, False
        return winner

    def _hand_back(
        self,
        stream: Stream,
        states: Tensor,
        result: Any,
        dtype: torch.dtype,
        doubled: bool,
        last: bool,
    ) -> Any:
        stream.states = states
        assert stream.parent is not None
        back = stream.parent
        if doubled:
            states, back = torch.cat([states, states]), torch.cat([back, back])
        made = rebuilt(result, states, stream.history, back, dtype)
        if self.scores.differentiates and not last:
            (made[0] if isinstance(made, tuple) else made.prev_sample).requires_grad_()
        return made

    # -- bookkeeping ---------------------------------------------------------------------------

    def _selection(self, move: Step, values: Tensor, log_ratio: Tensor | None) -> Selection:
        states = self.at.looked_at(False)
        return Selection(
            move,
            self.settings.seed,
            self.at.chain[states],
            self.at.particle[states],
            values,
            self.memory,
            log_ratio,
        )

    def trajectory(self) -> Trajectory | None:
        """The winners' paths, if they were recorded to the end."""
        if self._recorder is None or self.candidates is None:
            return None
        settings = self.settings
        return self._recorder.trajectory(settings.seed, settings.first_chain, settings.eta)

    def trace(self) -> Trace:
        """What happened at each transition, for the winners."""
        return self._ledger.trace(self._winner)
