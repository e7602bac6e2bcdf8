"""What all samplers share: argument checks, the run loop with progress and stops, row bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from fastguide.checkpoint import Checkpoint, digest
from fastguide.diffusion import Batch, Diffusion, Step
from fastguide.engine import Plan, Run, State
from fastguide.errors import ArgumentError, DtypeError, ShapeError
from fastguide.evaluation import Limits, Rows, resolve_savings
from fastguide.modes import evaluation_mode
from fastguide.policy import Choice, Final, Selection
from fastguide.result import Result
from fastguide.rng import chain_ids, check_seed, check_step
from fastguide.values import PosteriorMean

Tensor = torch.Tensor

CACHE_BYTES = 256 * 2**20
SAVE_EVERY_SECONDS = 20.0


@dataclass(frozen=True)
class RowBound:
    """Upper bounds on the rows of a run."""

    denoiser_rows: int
    reward_rows: int


class Sampler:
    """Base of all samplers; subclasses set the sizes and say how candidates are chosen.

    Args:
        diffusion: what is sampled.
        reward: callable(samples [B, ...]) -> [B], or None for unguided sampling.
        value: "posterior_mean", a `fastguide.values` object, a callable(x [B, ...], t [B]) -> [B]
            given candidates and the time they stand at, or None.
        num_particles: P chains per output.   num_candidates: K successors per chain and step.
        on_invalid: "raise" stops at a NaN or infinite output, value or reward; "reject" gives
            such a candidate zero weight.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any] | None,
        *,
        value: Any = None,
        num_particles: int = 1,
        num_candidates: int = 1,
        on_invalid: str = "raise",
    ) -> None:
        if not hasattr(diffusion, "propose"):
            raise DtypeError(
                "diffusion must be a fastguide diffusion such as fg.MaskedDiffusion(denoiser, "
                f"length, vocab_size), got {type(diffusion).__name__}"
            )
        if reward is not None and not callable(reward):
            raise DtypeError(
                "reward must be a callable from samples [B, ...] to [B], got "
                f"{type(reward).__name__}"
            )
        for name, size in (("num_particles", num_particles), ("num_candidates", num_candidates)):
            if isinstance(size, bool) or not isinstance(size, int):
                raise DtypeError(f"{name} must be an int, got {type(size).__name__}")
            if size < 1:
                raise ArgumentError(f"{name} must be at least 1, got {size}")
        if on_invalid not in ("raise", "reject"):
            raise ArgumentError(f"on_invalid must be 'raise' or 'reject', got {on_invalid!r}")
        self.diffusion = diffusion
        self.reward = reward
        self.value = _resolve_value(value, reward)
        self.num_particles = num_particles
        self.num_candidates = num_candidates
        self.on_invalid = on_invalid

    # -- the policy, as the engine asks for it ------------------------------------------------

    couples = False
    select_initial = False
    guides = False
    num_steps: int | None = None  # of samplers that are made for runs of one length

    def width(self, step: Step) -> int:
        """Candidates per row at this step."""
        return self.num_candidates

    def memory(self, num_chains: int) -> dict[str, Tensor]:
        """What `select` is given at the first step."""
        return {}

    def shift(self, rows: Rows, step: Step, memory: dict[str, Tensor]) -> Tensor | None:
        """How to change the proposal: not at all."""
        return None

    def revise(self, batch: Batch, changed: Tensor, rows: Rows, step: Step) -> tuple[Batch, Tensor]:
        """What was proposed."""
        return batch, changed

    def scores(self, step: Step, num_candidates: int) -> bool:
        """Whether the candidates of this step are scored and chosen from."""
        return False

    def select(self, selection: Selection) -> Choice:
        """Choose among scored candidates; only called if `scores` says so."""
        raise AssertionError(f"{type(self).__name__} selects nothing")

    def finish(self, rewards: Tensor | None, selection: Selection) -> Final:
        """What each chain returns: its only particle, if nothing else is said."""
        return Final(torch.arange(len(selection.chains), device=selection.chains.device))

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments, as kept with results."""
        value = self.value
        return {
            "method": type(self).__name__,
            "num_particles": self.num_particles,
            "num_candidates": self.num_candidates,
            "on_invalid": self.on_invalid,
            "value": None if value is None else getattr(value, "__name__", type(value).__name__),
        }

    # -- running -------------------------------------------------------------------------------

    def sample(
        self,
        num_samples: int,
        *,
        num_steps: int,
        seed: int = 0,
        first_chain: int = 0,
        prompt: Tensor | None = None,
        start_from: tuple[Tensor, int] | None = None,
        cond: dict[str, Tensor] | None = None,
        max_rows: int | None = None,
        fixed_rows: int | None = None,
        savings: str | Collection[str] = "all",
        cache_bytes: int = CACHE_BYTES,
        max_reward_rows: int | None = None,
        max_seconds: float | None = None,
        checkpoint: str | Path | None = None,
        progress: bool = True,
        callback: Callable[[int, State], bool | None] | None = None,
    ) -> Result:
        """Draw `num_samples` independent outputs.

        Args:
            num_steps: T transitions of the diffusion.
            seed: in [0, 2**64).   first_chain: global id of the first output: a run of 64 equals
                runs of 32 with first_chain 0 and 32.
            prompt: [L] or [num_samples, L] tokens; positions that are not the mask stay as given.
            start_from: (states [num_samples, ...], first_step): go on from given states with that
                transition, in place of the prior.
            cond: tensors with leading dimension 1 or num_samples, passed to the denoiser by name.
            max_rows: most rows of one model call.
            fixed_rows: pad every model call to exactly this many rows, which makes runs of real
                networks bit-equal under any split, order and savings on one machine.
            savings: "all", "none" or a set of names; see `fastguide.evaluation.savings.ALL`.
            cache_bytes: memory for remembered outputs, and again for remembered rewards.
            max_reward_rows, max_seconds: stop after the step that reaches the limit.
            checkpoint: folder where the run is saved; called again it goes on from there.
            callback: called as callback(step, state) after each move; False stops.
        Returns:
            Result; if stopped early it holds the finished chains and says why in `.stopped`.
        Raises:
            FastguideError: bad arguments, before any model is called; wrong shapes, dtypes or
                non-finite numbers from denoiser or reward, with step and chain.
        """
        limited = any(limit is not None for limit in (max_reward_rows, max_seconds, callback))
        plan = self._plan(
            num_samples,
            num_steps=num_steps,
            seed=seed,
            first_chain=first_chain,
            prompt=prompt,
            start_from=start_from,
            cond=cond,
            max_rows=max_rows,
            fixed_rows=fixed_rows,
            savings=savings,
            cache_bytes=cache_bytes,
            small_shards=limited or checkpoint is not None,
        )
        for name, limit in (("max_reward_rows", max_reward_rows), ("max_seconds", max_seconds)):
            if limit is not None and not limit > 0:
                raise ArgumentError(f"{name} must be positive or None, got {limit}")
        store = None
        state = None
        if checkpoint is not None:
            store = Checkpoint(checkpoint, self._fingerprint(plan))
            state = store.load()
        run = Run(self, plan, state, self._record(plan))
        done = 0 if state is None else len(state.finished) * len(self.diffusion.steps(num_steps))
        bar = tqdm(
            total=run.num_moves,
            initial=done + (0 if state is None else state.step),
            disable=not progress,
            desc=type(self).__name__,
            unit="step",
        )
        saved = started = time.monotonic()
        models = (
            self.diffusion.denoiser,
            self.diffusion.head,
            self.reward,
            self.value,
            getattr(self.value, "reward", None),
        )
        with evaluation_mode(*models), bar:
            try:
                for current in run:
                    bar.update()
                    shown = progress and self.reward is not None and not run.resident
                    if shown and bar.n % 8 == 0:
                        bar.set_postfix_str(_headline(current), refresh=False)
                    if callback is not None and callback(current.step - 1, current) is False:
                        run.stopped = "callback"
                    elif max_seconds is not None and time.monotonic() - started > max_seconds:
                        run.stopped = f"max_seconds={max_seconds}"
                    elif max_reward_rows is not None and run.cost.reward_rows >= max_reward_rows:
                        run.stopped = f"max_reward_rows={max_reward_rows}"
                    if run.stopped:
                        break
                    if store is not None and time.monotonic() - saved > SAVE_EVERY_SECONDS:
                        store.save(run.snapshot())
                        saved = time.monotonic()
            finally:
                # also on Ctrl-C and errors: what is done is kept
                if store is not None:
                    store.save(run.snapshot())
            return run.result()  # which may still look at the reward's components

    def start(
        self,
        num_samples: int,
        *,
        num_steps: int,
        seed: int = 0,
        first_chain: int = 0,
        prompt: Tensor | None = None,
        start_from: tuple[Tensor, int] | None = None,
        cond: dict[str, Tensor] | None = None,
        max_rows: int | None = None,
        fixed_rows: int | None = None,
        savings: str | Collection[str] = "all",
        cache_bytes: int = CACHE_BYTES,
        state: State | None = None,
    ) -> Run:
        """The same loop, owned by the caller: `for state in run: ...; run.result()`.

        A `State` pickled from an earlier run with the same arguments continues it bit for bit. The
        caller is responsible for eval mode and no_grad.
        """
        plan = self._plan(
            num_samples,
            num_steps=num_steps,
            seed=seed,
            first_chain=first_chain,
            prompt=prompt,
            start_from=start_from,
            cond=cond,
            max_rows=max_rows,
            fixed_rows=fixed_rows,
            savings=savings,
            cache_bytes=cache_bytes,
            small_shards=False,
        )
        return Run(self, plan, state, self._record(plan))

    def plan(self, num_samples: int, *, num_steps: int) -> RowBound:
        """Upper bound on denoiser and reward rows of a run with savings="all", without running."""
        steps = self.diffusion.steps(num_steps)
        chains = num_samples * self.num_particles
        scored = [s for s in steps if not s.clean and self.scores(s, self._width(s))]
        # one output to propose from at the start; then the carried outputs of what was scored
        reads = bool(getattr(self.value, "needs_denoiser", False))
        fresh = sum(self._width(step) for step in scored) if reads else len(steps) - 1
        fresh *= getattr(self.value, "denoiser_rows", 1)
        rewards = sum(self._width(step) for step in scored) * getattr(self.value, "num_samples", 1)
        if self.reward is not None:
            rewards += self._width(steps[-1])
        return RowBound(
            denoiser_rows=chains * (1 + fresh) * self.diffusion.rows_per_state,
            reward_rows=chains * rewards + num_samples * hasattr(self.reward, "components"),
        )

    def _width(self, step: Step) -> int:
        return self.width(step) if step.varies else 1

    def _plan(
        self,
        num_samples: int,
        *,
        num_steps: int,
        seed: int,
        first_chain: int,
        prompt: Tensor | None,
        start_from: tuple[Tensor, int] | None,
        cond: dict[str, Tensor] | None,
        max_rows: int | None,
        fixed_rows: int | None,
        savings: str | Collection[str],
        cache_bytes: int,
        small_shards: bool,
    ) -> Plan:
        for name, size in (("num_samples", num_samples), ("num_steps", num_steps)):
            if isinstance(size, bool) or not isinstance(size, int):
                raise DtypeError(f"{name} must be an int, got {type(size).__name__}")
        if num_samples < 0:
            raise ArgumentError(f"num_samples must not be negative, got {num_samples}")
        if num_steps < 1:
            raise ArgumentError(f"num_steps must be at least 1, got {num_steps}")
        check_seed(seed)
        check_step(num_steps)
        chains = chain_ids(num_samples, first_chain)
        if prompt is not None:
            self.diffusion.start(chains, prompt, seed)  # reports a bad prompt before any work
        device = self.diffusion.device
        if self.num_steps not in (None, num_steps):
            raise ArgumentError(
                f"{type(self).__name__} was made for num_steps={self.num_steps}, got {num_steps}; "
                "make it again for the steps of this run"
            )
        if start_from is not None and prompt is not None:
            raise ArgumentError("start_from already holds the tokens: leave prompt away")
        states, first_step = self._check_start(start_from, num_samples, num_steps)
        return Plan(
            states=states,
            first_step=first_step,
            num_samples=num_samples,
            num_steps=num_steps,
            seed=seed,
            first_chain=first_chain,
            prompt=prompt,
            cond=_check_cond(cond or {}, num_samples, device),
            limits=Limits(max_rows, fixed_rows),
            savings=resolve_savings(savings, device),
            cache_bytes=cache_bytes,
            small_shards=small_shards,
        )

    def _check_start(
        self, start_from: tuple[Tensor, int] | None, num_samples: int, num_steps: int
    ) -> tuple[Tensor | None, int]:
        if start_from is None:
            return None, 0
        states, first_step = start_from
        most = len(self.diffusion.steps(num_steps)) - 1
        if not 0 <= first_step <= most:
            raise ArgumentError(f"start_from: first_step must lie in [0, {most}], got {first_step}")
        self.diffusion.batch(states)  # reports bad states before any work
        if len(states) != num_samples:
            raise ShapeError(
                f"start_from: states must have {num_samples} rows, one per sample, got "
                f"{len(states)}"
            )
        if self.guides:
            raise ArgumentError(
                f"start_from: {type(self).__name__} needs the gradient in the first state, which "
                "given states do not have; use a sampler without gradients"
            )
        return states, first_step

    def _record(self, plan: Plan) -> dict[str, Any]:
        return {
            **self.settings(),
            "num_samples": plan.num_samples,
            "num_steps": plan.num_steps,
            "seed": plan.seed,
            "first_chain": plan.first_chain,
            "savings": sorted(plan.savings),
            "max_rows": plan.limits.max_rows,
            "fixed_rows": plan.limits.fixed_rows,
        }

    def _fingerprint(self, plan: Plan) -> dict[str, Any]:
        """Everything that determines the samples; how rows are batched or saved does not."""
        kept = {
            name: value
            for name, value in self._record(plan).items()
            if name not in ("savings", "max_rows")
        }
        return {
            **kept,
            "prompt": digest(plan.prompt),
            "start_from": [digest(plan.states), plan.first_step],
            "cond": digest(plan.cond),
            "denoiser": digest(self.diffusion.denoiser),
            "reward": digest(self.reward),
            "diffusion": self.diffusion.settings(),
        }


def best_of_each(rewards: Tensor, num_particles: int) -> Tensor:
    """[N] int64: of rewards [N*P] the place of the best of each P, first on ties."""
    best = rewards.view(-1, num_particles).argmax(dim=1)
    return best + torch.arange(len(best), device=best.device) * num_particles


def _resolve_value(value: Any, reward: Callable[..., Any] | None) -> Any:
    if isinstance(value, str):
        if value != "posterior_mean":
            raise ArgumentError(
                f"value must be 'posterior_mean', a fastguide.values object or a callable(x, t), "
                f"got {value!r}"
            )
        if reward is None:
            raise ArgumentError("value='posterior_mean' needs a reward")
        return PosteriorMean(reward)
    if value is not None and not callable(value) and not hasattr(value, "evaluate"):
        raise DtypeError(
            "value must be 'posterior_mean', a fastguide.values object or a callable(x, t) -> [B], "
            f"got {type(value).__name__}"
        )
    return value


def _check_cond(
    cond: dict[str, Tensor], num_samples: int, device: torch.device
) -> dict[str, Tensor]:
    for name, value in cond.items():
        if not isinstance(value, torch.Tensor):
            raise DtypeError(f"cond[{name!r}] must be a tensor, got {type(value).__name__}")
        if value.dim() < 1 or value.shape[0] not in (1, num_samples):
            raise ShapeError(
                f"cond[{name!r}] must have leading dimension 1 or num_samples={num_samples}, got "
                f"shape {list(value.shape)}"
            )
    return {name: value.to(device) for name, value in cond.items()}


def _headline(state: State) -> str:
    assert state.rows is not None
    value = state.rows["value"]
    seen = value[value.isfinite()]
    return f"value {float(seen.mean()):.3g}" if len(seen) else ""
