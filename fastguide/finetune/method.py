"""What all methods share: rollout, buffer, objective, update; stops, checkpoints and reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from tqdm.auto import tqdm

from fastguide import ops
from fastguide.checkpoint import digest
from fastguide.errors import ArgumentError, DtypeError
from fastguide.finetune import adapters, parallel
from fastguide.finetune.checkpoint import TrainingCheckpoint
from fastguide.finetune.history import History
from fastguide.finetune.laws import Laws, check_diffusion, laws_of
from fastguide.finetune.parts import Part, minibatch_numbers, parts
from fastguide.finetune.rollout import Buffer, condition_rows, roll, scores
from fastguide.finetune.update import Rate, Update
from fastguide.finetune.watch import Watch
from fastguide.rng import Purpose, chain_ids, check_seed
from fastguide.samplers.refinement import round_seed

Tensor = torch.Tensor

SAVE_EVERY_SECONDS = 20.0


class Method:
    """Base of all fine-tuning methods; a subclass says what is drawn and what is minimised.

    The target is p_pre(x0) exp(r(x0) / alpha), reached by maximising E[r] - alpha KL over the whole
    path, with the KL in nats, summed over elements and steps.

    Args:
        diffusion: Gaussian or masked, with a denoiser that is an nn.Module. It is the reference and
            is never changed.
        reward: callable(samples [B, ...]) -> [B].
        alpha: temperature, reward units per nat; positive.
        adapter: "lora" trains terms of `rank` added to linear and convolutional layers, "full" a
            copy of the network.
        learning_rate: a number, or a function of the share of training done (`linear`, `cosine`).
        weight_decay: of AdamW.   max_grad_norm: gradients are clipped to it; None: they are not.
        ema: decay of the average of the parameters that `.diffusion` then has; None: the last ones.
        epochs: passes over each batch of rollouts.   minibatches: updates of each pass.
        max_rows: most (path, step) rows of one backward pass; gradients are accumulated.
        autocast: dtype of the networks' products, such as torch.bfloat16, or None. Schedules,
            log-probabilities and divergences stay in theirs.
        learn_scale: also learn a factor on the deviation of every step of a Gaussian chain.
        on_invalid: "raise" stops at a reward that is not finite; "reject" counts it as the worst.
        kl_budget: training stops when the KL to the reference, nats per path, is beyond it. Not for
            methods that draw from a frozen policy, which do not know it.
        held_out: a reward that is watched and not trained on; training stops when its best mean is
            `patience` iterations old.

    Raises:
        ArgumentError: an argument out of range, by name.
        DtypeError: the diffusion or its denoiser is not of a kind that can be trained.
    """

    whole_paths = False  # the objective is one of paths, not of single steps
    all_steps = False  # it also trains steps that draw nothing
    reference_share = 0.0
    knows_kl = True  # its history has the divergence of the policy

    def __init__(
        self,
        diffusion: Any,
        reward: Callable[..., Any],
        *,
        alpha: float,
        adapter: str = "lora",
        rank: int = 8,
        learning_rate: Rate = 1e-3,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
        ema: float | None = None,
        epochs: int = 1,
        minibatches: int = 1,
        max_rows: int | None = None,
        autocast: torch.dtype | None = None,
        learn_scale: bool = False,
        on_invalid: str = "raise",
        kl_budget: float | None = None,
        held_out: Callable[..., Any] | None = None,
        patience: int = 20,
    ) -> None:
        check_diffusion(diffusion, learn_scale)
        if not callable(reward):
            raise DtypeError(
                f"reward must be a callable from samples [B, ...] to [B], got {type(reward)}"
            )
        if not 0 < alpha < float("inf"):
            raise ArgumentError(f"alpha must be positive, in reward units per nat, got {alpha}")
        for name, count in (
            ("epochs", epochs),
            ("minibatches", minibatches),
            ("max_rows", max_rows),
            ("patience", patience),
        ):
            if count is not None and count < 1:
                raise ArgumentError(f"{name} must be at least 1, got {count}")
        if ema is not None and not 0 < ema < 1:
            raise ArgumentError(f"ema must be a decay in (0, 1), or None, got {ema}")
        if on_invalid not in ("raise", "reject"):
            raise ArgumentError(f"on_invalid must be 'raise' or 'reject', got {on_invalid!r}")
        if kl_budget is not None and not self.knows_kl:
            raise ArgumentError(
                f"kl_budget: {type(self).__name__} draws from a frozen policy and knows no KL "
                "while it trains; leave it away, and stop by num_iterations or held_out"
            )
        self.reward = reward
        self.alpha = float(alpha)
        self.epochs = epochs
        self.minibatches = minibatches
        self.max_rows = max_rows
        self.autocast = autocast
        self.on_invalid = on_invalid
        self._watch = Watch(
            kl_budget=kl_budget, held_out=held_out, patience=patience, on_invalid=on_invalid
        )
        self._learn_scale = learn_scale
        self._rate = learning_rate
        self._optimisation: dict[str, Any] = dict(
            weight_decay=weight_decay, max_grad_norm=max_grad_norm, ema=ema
        )
        self._adapter = {"adapter": adapter, "rank": rank}
        self._pretrained = diffusion
        self._network = adapters.trainable_network(diffusion.denoiser, adapter, rank)
        # its own view of the same weights: no mode, gradient or hook of the user's module changes
        natural = adapters.sharing_copy(diffusion.denoiser, list(diffusion.denoiser.parameters()))
        self._natural = adapters.with_network(diffusion, natural.eval())
        self._log_scale: nn.Parameter | None = None
        self._update: Update | None = None

    # -- what a subclass says ------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The method's name and arguments, as kept with checkpoints."""
        rate = "function" if callable(self._rate) else self._rate
        return {
            "method": type(self).__name__,
            "alpha": self.alpha,
            "learning_rate": rate,
            "epochs": self.epochs,
            "minibatches": self.minibatches,
            "autocast": str(self.autocast),
            "learn_scale": self._learn_scale,
            **self._adapter,
            **self._optimisation,
        }

    def scheduled(self) -> bool:
        """Whether an iteration depends on how many there are to be."""
        return callable(self._rate)

    def groups(self) -> list[tuple[dict[str, nn.Parameter], Rate]]:
        """Parameters to train, by name, and their learning rates."""
        named = {n: p for n, p in self._network.named_parameters() if p.requires_grad}
        if self._log_scale is not None:
            named["log_scale"] = self._log_scale
        return [(named, self._rate)]

    def collect(self, key: int, chains: Tensor, share: float, start: dict[str, Any]) -> Buffer:
        """The paths of one iteration, with rewards.

        Args:
            key: of the iteration.   chains: [N] int64.   share: of training that is done.
            start: `prompt` and `cond`.
        """
        mixed = None
        if self.reference_share:
            draw = ops.philox_uniform(key, chains, 0, Purpose.SELECT, num_elements=1)
            mixed = draw[:, 0, 0] < self.reference_share
        buffer = roll(
            self.policy,
            self.reference,
            key,
            chains,
            from_reference=mixed,
            max_rows=self.max_rows,
            **start,
        )
        buffer.reward = self.rewards(buffer)
        return buffer

    def rewards(self, buffer: Buffer) -> Tensor:
        """Checked rewards [N] float64 of the samples."""
        return scores(self.reward, "reward", (buffer.samples,), buffer.cond, self.on_invalid)

    def prepare(self, buffer: Buffer) -> dict[str, float]:
        """Derive what needs the whole batch; numbers to report."""
        return {}

    def loss(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the objective over the rows, and numbers per row to report."""
        raise NotImplementedError

    def begin(self) -> None:
        """Forget what was kept in an earlier training."""

    def memory(self) -> dict[str, Any]:
        """What the method keeps from iteration to iteration."""
        return {}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take up what `memory` gave."""

    # -- what it is asked for ------------------------------------------------------------------

    @property
    def diffusion(self) -> Any:
        """The fine-tuned diffusion, for every sampler; further training leaves it alone."""
        values = {} if self._update is None else self._update.values
        network = adapters.frozen_copy(self._network, values)
        factors = None
        if self._log_scale is not None:
            learned = values.get("log_scale", self._log_scale.detach())
            factors = learned.double().exp().tolist()
        return adapters.with_network(self._pretrained, network, factors)

    def save(self, path: str | Path) -> None:
        """Write the denoiser's weights, adapters merged, for `load_state_dict` of its own class."""
        state = adapters.merged_state(self.diffusion.denoiser, self._pretrained.denoiser)
        save_file(state, str(path), {"format": "pt", "method": type(self).__name__})

    def train(
        self,
        num_iterations: int,
        batch_size: int,
        *,
        num_steps: int,
        seed: int = 0,
        prompt: Tensor | None = None,
        cond: dict[str, Tensor] | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = True,
        max_seconds: float | None = None,
        callback: Callable[[dict[str, float]], bool | None] | None = None,
        progress: bool = True,
    ) -> History:
        """Fine-tune, from the parameters as they are, with a fresh optimiser.

        Args:
            num_iterations: batches of rollouts.   batch_size: paths of each, in every process.
            num_steps: T, as the samplers take it.   seed: of the stream.
            prompt: [L] or [batch_size, L] of a masked chain.
            cond: conditioning tensors with leading dimension 1 or batch_size.
            checkpoint: folder for the state, every 20 s and at the end, and history.jsonl.
            resume: go on from what the folder holds; equal, bit for bit on the CPU, to a run that
                was never interrupted.
            max_seconds: stop after the iteration in which they are over.
            callback: called with each row of the history; False stops.   progress: show a bar.

        Raises:
            CheckpointError: the folder holds another run.
            NonFiniteError: a reward, or several gradients in a row, were not finite.
        """
        for name, count in (("num_iterations", num_iterations), ("batch_size", batch_size)):
            if count < 1:
                raise ArgumentError(f"{name} must be at least 1, got {count}")
        rank, processes = parallel.world()
        self._start(num_steps)
        assert self._update is not None
        chains = chain_ids(batch_size, rank * batch_size, self._pretrained.device)
        start = {"prompt": prompt, "cond": condition_rows(cond or {}, batch_size)}
        history, elapsed = History(), 0.0
        store = None
        if checkpoint is not None:
            sizes = {
                "num_steps": num_steps,
                "batch_size": batch_size * processes,
                "seed": check_seed(seed),
                "num_iterations": num_iterations if self.scheduled() else None,
                "prompt": digest(prompt),
                "cond": digest(cond or {}),
            }
            store = TrainingCheckpoint(checkpoint, {**self._fingerprint(), **sizes})
            saved = store.load() if resume else None
            if saved is not None:
                self._update.load(saved["update"])
                self.recall(saved["memory"])
                history.rows, elapsed = saved["rows"], saved["seconds"]
                # a limit that was met stays met; a stop by time or by hand is gone on from
                history.stopped = self._watch.why_stop(history) if history.rows else None
        clock = saved_at = time.perf_counter()
        begin = clock - elapsed
        bar = tqdm(
            total=num_iterations,
            initial=len(history.rows),
            desc=type(self).__name__,
            disable=not progress or rank > 0,
        )
        with bar:
            while len(history.rows) < num_iterations and history.stopped is None:
                number = len(history.rows)
                row = self._iterate(number, number / num_iterations, seed, chains, start)
                row["seconds"] = time.perf_counter() - begin
                history.rows.append(row)
                bar.update()
                bar.set_postfix(_shown(row), refresh=False)
                now, stop = time.perf_counter(), self._watch.why_stop(history)
                if max_seconds is not None and now - clock > max_seconds:
                    stop = "max_seconds"
                if callback is not None and callback(row) is False:
                    stop = "callback"
                due = now - saved_at > SAVE_EVERY_SECONDS
                history.stopped, due = parallel.agreed((stop, due))
                # only here is the state one that a run can go on from
                if store is not None and due:
                    saved_at = now
                    self._save(store, history, rank)
        if store is not None:
            self._save(store, history, rank)
        return history

    # -- the loop ------------------------------------------------------------------------------

    def _start(self, num_steps: int) -> None:
        tuned = adapters.with_network(self._pretrained, self._network)
        self.num_steps = num_steps
        self.reference: Laws = laws_of(self._natural, num_steps, self.autocast)
        known = 0 if self._log_scale is None else len(self._log_scale)
        if self._learn_scale and known != len(self.reference):
            zeros = torch.zeros(len(self.reference), device=self._natural.device)
            self._log_scale = nn.Parameter(zeros)
        self.policy: Laws = laws_of(tuned, num_steps, self.autocast, self._log_scale)
        self._update = Update(self.groups(), **self._optimisation)
        self.begin()

    def _iterate(
        self, number: int, share: float, seed: int, chains: Tensor, start: dict[str, Any]
    ) -> dict[str, float]:
        """Rollout, buffer, objective, update."""
        key = round_seed(seed, number)
        buffer = self.collect(key, chains, share, start)
        row = {"iteration": float(number)}
        totals: dict[str, float] = {}
        for epoch in range(self.epochs):
            row |= self.prepare(buffer)
            numbers = minibatch_numbers(
                key, epoch, buffer.chains, len(self.policy), self.minibatches, self.whole_paths
            )
            for which in range(self.minibatches):
                for name, value in self._improve(buffer, numbers == which, share).items():
                    totals[name] = totals.get(name, 0.0) + value
        updates = self.epochs * self.minibatches
        skipped = totals.pop("skipped")
        means = {name: total / updates for name, total in totals.items()}
        return {**row, **self._watch.report(buffer), **means, "skipped": skipped}

    def _improve(self, buffer: Buffer, chosen: Tensor, share: float) -> dict[str, float]:
        """One update on the chosen rows [N, T]."""
        assert self._update is not None
        if not self.whole_paths and not self.all_steps:
            chosen = chosen & self.policy.random
        self._update.start()
        scale = self.minibatches / (len(buffer) * parallel.world()[1])
        sums: dict[str, Tensor] = {}
        rows = torch.zeros(1, dtype=torch.float64, device=chosen.device)
        for part in parts(buffer, chosen, whole_paths=self.whole_paths, max_rows=self.max_rows):
            loss, numbers = self.loss(part)
            (loss * scale).backward()
            numbers["loss"] = loss.detach().double()[None] * scale
            for name, value in numbers.items():
                total = value.detach().sum(dtype=torch.float64)[None]
                sums[name] = sums[name] + total if name in sums else total
            rows += len(part.paths)
        parallel.add_up([*sums.values(), rows])
        loss_sum = float(sums.pop("loss"))
        means = {name: float(total / rows) for name, total in sums.items()}
        return {"loss": loss_sum, **means, **self._update.finish(share)}

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "diffusion": self._pretrained.settings(),
            "denoiser": digest(self._pretrained.denoiser),
            **self.settings(),
        }

    def _save(self, store: TrainingCheckpoint, history: History, rank: int) -> None:
        assert self._update is not None
        state = {
            "update": self._update.state(),
            "memory": self.memory(),
            "rows": history.rows,
            "seconds": history.rows[-1]["seconds"] if history.rows else 0.0,
        }
        if rank == 0:
            store.save(state, history.rows)


def _shown(row: dict[str, float]) -> dict[str, str]:
    return {
        name: f"{row[name]:.3g}" for name in ("reward", "kl", "ess", "clip_fraction") if name in row
    }
