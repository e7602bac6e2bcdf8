"""The one loop: propose, evaluate, select, move. It knows no method; a policy chooses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from fastguide.diffusion import Batch, Step
from fastguide.errors import CheckpointError, NonFiniteError
from fastguide.evaluation import (
    Cost,
    Evaluator,
    Limits,
    ResidentEvaluator,
    Rows,
    runs_ahead,
    stays_resident,
    unique_conditions,
)
from fastguide.policy import Policy, Selection
from fastguide.result import Result, Trace

Tensor = torch.Tensor

SHARD_BYTES = 64 * 2**20
"""Chains run in shards whose candidates and their outputs take about this much memory."""

CHECKPOINT_CHAINS = 64
"""Most chains of a shard when a run may stop early, so that little unfinished work is lost."""

_MEMORY, _COMPONENT = "memory.", "component."

_ROWS = ("denoiser_rows", "denoiser_rows_requested", "reward_rows", "reward_rows_requested")


@dataclass(frozen=True)
class Plan:
    """What is to be run; two runs with equal plans draw the same samples."""

    num_samples: int
    num_steps: int
    seed: int
    first_chain: int
    prompt: Tensor | None
    cond: dict[str, Tensor]
    limits: Limits
    savings: frozenset[str]
    cache_bytes: int
    small_shards: bool
    states: Tensor | None = None
    first_step: int = 0


@dataclass
class State:
    """Where a run stands. Pickles on the CPU and continues bit for bit.

    Attributes:
        shard_start: first chain (counted from 0) of the current shard.   step: next step in it.
        rows: states of the shard's N*P particles, None between shards.
        finished: per finished shard: samples, rewards and the trace.
        partial: per-step records of the current shard.
        cost: so far.   memory: rewards already known.
    """

    shard_start: int = 0
    step: int = 0
    rows: dict[str, Tensor] | None = None
    finished: list[dict[str, Any]] = field(default_factory=list)
    partial: list[dict[str, Any]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    memory: list[dict[bytes, float]] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        fields = dict(vars(self))
        if self.rows is not None:
            fields["rows"] = {name: value.cpu() for name, value in self.rows.items()}
        fields["partial"] = [
            {
                name: value.cpu() if isinstance(value, torch.Tensor) else value
                for name, value in record.items()
            }
            for record in self.partial
        ]
        return fields

    @property
    def x(self) -> Tensor:
        """[N*P, ...] current states."""
        if self.rows is None:
            raise CheckpointError("the run is between shards: there is no current state")
        return self.rows["x"]


class Run:
    """A run in progress: iterate to advance one step at a time, then call `result()`.

    Each iteration yields the `State` after a move. The state is live: copy or pickle it to keep it.
    """

    def __init__(self, policy: Policy, plan: Plan, state: State | None, settings: dict[str, Any]):
        self._policy = policy
        self._plan = plan
        self._settings = settings
        self._steps = policy.diffusion.steps(plan.num_steps)
        self._state = State() if state is None else state
        cond, self._cond_row = unique_conditions(plan.cond, plan.num_samples)
        common: dict[str, Any] = {
            "savings": plan.savings,
            "cond": cond,
            "limits": plan.limits,
            "reject": policy.on_invalid == "reject",
            "seed": plan.seed,
        }
        self._evaluator: Evaluator | ResidentEvaluator
        diffusion = policy.diffusion
        if diffusion.distinct or stays_resident(plan.savings, diffusion.device):
            self._evaluator = ResidentEvaluator(diffusion, **common)
        else:
            self._evaluator = Evaluator(diffusion, cache_bytes=plan.cache_bytes, **common)
        self._evaluator.cost = self._state.cost
        self._evaluator.recall(self._state.memory)
        self._elapsed = self.cost.seconds["total"]
        self._rows: Rows | None = None
        self._memory: dict[str, Tensor] = {}
        self.stopped: str | None = None

    @property
    def cost(self) -> Cost:
        """Rows and seconds so far."""
        return self._state.cost

    @property
    def resident(self) -> bool:
        """Reading the state waits for a device that the run itself hardly ever waits for."""
        return self._evaluator.resident

    @property
    def num_moves(self) -> int:
        """Moves of the whole run, for progress bars."""
        shards = -(-self._plan.num_samples // self._shard_chains)
        return shards * (len(self._steps) - self._plan.first_step)

    @property
    def _shard_chains(self) -> int:
        diffusion, policy = self._policy.diffusion, self._policy
        rows = policy.num_particles * policy.num_candidates
        chains = max(1, SHARD_BYTES // (diffusion.row_bytes * rows))
        return min(chains, CHECKPOINT_CHAINS) if self._plan.small_shards else chains

    def __iter__(self) -> Iterator[State]:
        state = self._state
        clock = time.perf_counter()
        while state.shard_start < self._plan.num_samples:
            self._enter_shard()
            while state.step < len(self._steps):
                with self._evaluator.collect_faults():
                    self._advance(self._steps[state.step])
                if not runs_ahead(self._policy.diffusion.device):
                    self._evaluator.check()
                state.step += 1
                self._elapsed += time.perf_counter() - clock
                self._publish()
                yield state
                clock = time.perf_counter()
            self._leave_shard()
            self._elapsed += time.perf_counter() - clock
            clock = time.perf_counter()

    def _enter_shard(self) -> None:
        plan, state, policy = self._plan, self._state, self._policy
        device, particles = policy.diffusion.device, policy.num_particles
        stop = min(state.shard_start + self._shard_chains, plan.num_samples)
        local = torch.arange(state.shard_start, stop)
        spread = local.repeat_interleave(particles)
        self._memory = policy.memory(len(local))
        blank = torch.full((len(spread),), torch.nan, dtype=torch.float64, device=device)
        self._rows = Rows(
            Batch(blank, None),
            chain=(spread + plan.first_chain).to(device),
            candidate=torch.arange(len(spread), device=device) % particles,
            cond_row=self._cond_row[spread].to(device),
            slot=torch.full_like(blank, -1, dtype=torch.int64),
            value=blank,
        )
        self._first_candidate = self._rows.candidate * policy.num_candidates
        self._blank: tuple[Tensor, ...] = ()
        if state.rows is None and plan.states is not None:
            state.step = plan.first_step
            self._rows.batch = policy.diffusion.batch(plan.states[spread.to(plan.states.device)])
            return
        if state.rows is None:
            self._begin(self._rows, spread)
            return
        kept = {name: value.to(device) for name, value in state.rows.items()}
        self._rows.batch = Batch(kept["x"], kept.get("keys"))
        self._rows.value = kept["value"]
        self._rows.gradient = kept.get("gradient")
        self._memory = {name: kept[_MEMORY + name] for name in self._memory}

    def _begin(self, rows: Rows, spread: Tensor) -> None:
        """Draw the initial states; choose among several, or weigh them, if the policy wants to."""
        policy, plan, first = self._policy, self._plan, self._steps[0]
        chooses = policy.select_initial and policy.diffusion.prior_varies
        count = policy.num_candidates if chooses else 1
        place = torch.arange(len(rows) * count, device=rows.slot.device)
        prompt = plan.prompt
        if prompt is not None and prompt.dim() > 1:
            prompt = prompt[spread.to(prompt.device)]
        candidates = rows.take(place // count)
        candidates.candidate = candidates.candidate * policy.num_candidates + place % count
        candidates.batch = policy.diffusion.start(
            candidates.chain, prompt, plan.seed, candidates.candidate
        )
        step = Step(-1, first.time, first.time, clean=False, varies=count > 1, params=())
        self._evaluator.advance(candidates)
        if chooses or policy.guides:
            candidates.value = self._evaluator.values(policy.value, candidates, step)
        index = place[::count]
        if chooses and policy.scores(step, count):
            index = self._select(rows, candidates, step, {}, None)
        moved = candidates.take(index)
        moved.candidate = rows.candidate
        if "carry" not in plan.savings:
            moved.slot = rows.slot
        self._rows = moved

    def _advance(self, step: Step) -> None:
        rows, policy, evaluator = self._rows, self._policy, self._evaluator
        assert rows is not None
        savings = self._plan.savings
        before = {name: getattr(self.cost, name) for name in _ROWS}
        evaluator.advance(rows)
        settled = not evaluator.denoise(rows, step.time, step.index) and "skip" in savings
        evaluator.check_proposable(rows, step.index)
        count = policy.width(step) if step.varies and not settled else 1
        log_ratio = None
        if settled:  # nothing is masked: every candidate would be the state itself
            batch, changed = rows.batch, torch.zeros((len(rows), 1), device=rows.slot.device)
        else:
            batch, changed, log_ratio = self._propose(rows, step, count)
        batch, changed = policy.revise(batch, changed, rows, step)
        evaluator.cost.candidate_rows += len(batch)
        candidates = self._candidates(rows, batch, changed, step)
        inherited = candidates.slot
        scores = policy.scores(step, count)
        if step.clean and policy.reward is not None:
            candidates.value = evaluator.reward(
                policy.reward, candidates.batch.x, candidates, step.index
            )
        elif scores:
            candidates.value = evaluator.values(policy.value, candidates, step)
        if "carry" not in savings:
            candidates.slot = inherited
        record: dict[str, Any] = {"ess": None, "valid": None}  # None: nothing was chosen
        index = None
        if scores and (policy.couples or "skip" not in savings or bool(changed.any())):
            index = self._select(rows, candidates, step, record, log_ratio)
        elif count > 1:
            index = torch.arange(0, len(batch), count, device=rows.slot.device)
        moved = candidates
        if index is not None and (count > 1 or policy.couples):
            with evaluator.cost.timed("kernels"):
                moved = candidates.take(index)
        moved.candidate = rows.candidate
        self._rows = moved
        self._record(step, moved, record, before)

    def _propose(self, rows: Rows, step: Step, count: int) -> tuple[Batch, Tensor, Tensor | None]:
        policy, evaluator = self._policy, self._evaluator
        with evaluator.cost.timed("kernels"):
            return policy.diffusion.propose_shifted(
                rows.batch,
                evaluator.outputs_of(rows, step.index),
                step,
                shift=policy.shift(rows, step, self._memory) if step.varies else None,
                seed=self._plan.seed,
                chains=rows.chain,
                num_candidates=count,
                first_candidate=self._first_candidate,
                weigh=count > 1 or policy.couples,
            )

    def _candidates(self, rows: Rows, batch: Batch, changed: Tensor, step: Step) -> Rows:
        """The proposed rows, with what those equal to their parent may take over from it."""
        evaluator, count = self._evaluator, changed.shape[1]
        same = changed.flatten() == 0
        inherit = "parent" in self._plan.savings
        chain, number, cond_row, slot, value = self._nothing_known(rows, count)
        if inherit and not self._policy.diffusion.time_conditioned:
            slot = _repeat(rows.slot, count).where(same, -1)
        # a clean step is scored by the reward itself, which the parent's value need not be
        if inherit and not step.clean and evaluator.reuses(self._policy.value):
            value = _repeat(rows.value, count).where(same, torch.nan)
        return Rows(batch, chain, number, cond_row, slot, value)

    def _nothing_known(self, rows: Rows, count: int) -> tuple[Tensor, ...]:
        """Chain, number, conditioning row, no slot and no value of `count` candidates of each row.

        The same at every step, since no policy moves a particle to another chain.
        """
        if not self._blank or len(self._blank[0]) != len(rows) * count:
            place = torch.arange(count, device=rows.slot.device).repeat(len(rows))
            number = _repeat(self._first_candidate, count) + place
            value = torch.full_like(place, torch.nan, dtype=torch.float64)
            named = _repeat(rows.chain, count), number, _repeat(rows.cond_row, count)
            self._blank = (*named, torch.full_like(place, -1), value)
        return self._blank

    def _select(
        self, rows: Rows, candidates: Rows, step: Step, record: dict[str, Any], ratio: Tensor | None
    ) -> Tensor:
        values = candidates.value.view(len(rows), -1)
        selection = self._selection(rows, values, step, ratio)
        with self._evaluator.cost.timed("kernels"):
            choice = self._policy.select(selection)
        self._memory = choice.memory
        record["ess"], record["valid"] = choice.ess, choice.valid
        if self._evaluator.resident:
            return choice.index  # nothing is waited for; the last rewards are looked at in the end
        if step.clean and not bool(choice.valid.all()):
            bad = int((~choice.valid).nonzero()[0, 0])
            raise NonFiniteError(
                f"every candidate of chain {int(rows.chain[bad])} was invalid at the last "
                f"selection (step {step.index}): the reward returned NaN or infinity for all of "
                "them; fix it for such inputs, or raise num_candidates"
            )
        return choice.index

    def _selection(
        self, rows: Rows, values: Tensor, step: Step, log_ratio: Tensor | None = None
    ) -> Selection:
        seed, chains, particles = self._plan.seed, rows.chain, rows.candidate
        return Selection(step, seed, chains, particles, values, self._memory, log_ratio)

    def _record(
        self, step: Step, moved: Rows, record: dict[str, Any], before: dict[str, int]
    ) -> None:
        record["time"] = step.next_time
        record["values"] = moved.value
        for name in _ROWS:
            record[name] = getattr(self.cost, name) - before[name]
        self._state.partial.append(record)

    def _publish(self) -> None:
        """Bring the public state up to date with the loop's."""
        rows, state = self._rows, self._state
        assert rows is not None
        self.cost.finish(self._elapsed)
        state.rows = {"x": rows.batch.x, "value": rows.value}
        state.rows |= {_MEMORY + name: kept for name, kept in self._memory.items()}
        optional = {"keys": rows.batch.keys, "gradient": rows.gradient}
        state.rows |= {name: kept for name, kept in optional.items() if kept is not None}

    def snapshot(self) -> State:
        """The state with everything a resumed run should know, remembered rewards included."""
        self._state.memory = self._evaluator.memory
        return self._state

    def _leave_shard(self) -> None:
        state, policy, rows = self._state, self._policy, self._rows
        assert rows is not None
        self._evaluator.check()
        chains = len(rows) // policy.num_particles
        # the last step is clean, so its values are the rewards
        rewards = None if policy.reward is None else rows.value
        selection = self._selection(rows, rows.value[:, None], self._steps[-1])
        final = policy.finish(rewards, selection)
        index = final.index
        if rewards is not None and not bool(rewards[index].isfinite().all()):
            bad = index[(~rewards[index].isfinite()).nonzero()[0, 0]]
            raise NonFiniteError(
                f"the reward of the final sample of chain {int(rows.chain[bad])} is not finite and "
                "there is no valid one to return instead; fix the reward for such inputs"
            )
        made = {"samples": rows.batch.x[index]}
        if rewards is not None:
            made["rewards"] = rewards[index].float()
        if hasattr(policy.reward, "components"):
            parts = self._evaluator.components(policy.reward, rows.take(index))
            made |= {_COMPONENT + name: part.float() for name, part in parts.items()}
        if final.log_weights is not None:
            made["particles"] = rows.batch.x.unflatten(0, (chains, -1))
            made["log_weights"] = final.log_weights
        if final.log_z is not None:
            made["log_z"] = final.log_z
        state.finished.append({**made, "trace": vars(self._trace(state.partial, index))})
        state.shard_start += chains
        state.step, state.rows, state.partial = 0, None, []
        self._rows = None

    def _trace(self, records: list[dict[str, Any]], index: Tensor) -> Trace:
        def column(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([record[name] for record in records], dtype=dtype)

        chosen = [(record["ess"], record["valid"]) for record in records]
        ess = [torch.nan if ess is None else ess.mean() for ess, _ in chosen]
        invalid = [0 if valid is None else (~valid).sum() for _, valid in chosen]
        return Trace(
            time=column("time", torch.float64),
            values=torch.stack([record["values"][index] for record in records]).float().cpu()
            if records
            else torch.zeros(0, 0),
            ess=torch.tensor(ess, dtype=torch.float64),
            invalid_steps=torch.tensor(invalid, dtype=torch.int64),
            **{name: column(name, torch.int64) for name in _ROWS},
        )

    def result(self) -> Result:
        """The finished chains; `stopped` says why there are fewer than asked for."""
        state, plan = self._state, self._plan
        if self._rows is not None and state.step == len(self._steps):
            self._leave_shard()  # stopped right after a shard's last step
        self.cost.finish(self._elapsed)
        done = state.shard_start
        stopped = None if done == plan.num_samples else self.stopped or "unfinished"
        made: dict[str, Any] = (
            {
                name: torch.cat([part[name] for part in state.finished])
                for name in state.finished[0]
                if name != "trace"
            }
            if state.finished
            else self._nothing()
        )
        traces = [Trace(**part["trace"]) for part in state.finished]
        parts = [name for name in made if name.startswith(_COMPONENT)]
        return Result(
            components={name.removeprefix(_COMPONENT): made.pop(name) for name in parts} or None,
            **{"rewards": None, **made},
            chains=torch.arange(plan.first_chain, plan.first_chain + done),
            trace=Trace.concatenate(traces or [self._trace([], torch.arange(0))]),
            cost=self.cost,
            settings=self._settings,
            stopped=stopped,
        )

    def _nothing(self) -> dict[str, Tensor]:
        start = self._policy.diffusion.start(torch.arange(0), None, self._plan.seed)
        empty = {"samples": start.x}
        return empty if self._policy.reward is None else {**empty, "rewards": torch.zeros(0)}


def _repeat(each: Tensor, count: int) -> Tensor:
    """[R * count], `count` copies of each entry in a row."""
    return each if count == 1 else each.repeat_interleave(count)
