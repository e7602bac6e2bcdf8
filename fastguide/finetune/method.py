"""What all methods share: rollout, buffer, objective, update; stops, checkpoints and reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastguide import ops
from fastguide.checkpoint import digest
from fastguide.errors import ArgumentError
from fastguide.finetune import adapters, export, parallel
from fastguide.finetune.checkpoint import TrainingCheckpoint
from fastguide.finetune.checks import check_counts, check_target
from fastguide.finetune.history import Callback, History, Reports
from fastguide.finetune.injected import described
from fastguide.finetune.laws import Laws, check_diffusion, laws_of, noise_factors
from fastguide.finetune.parts import Part, minibatch_numbers, parts
from fastguide.finetune.prior_steps import finished, prefixed
from fastguide.finetune.rollout import Buffer, condition_rows, roll, scores
from fastguide.finetune.sharing import Recalling
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
            copy of the network, a config of peft such as `peft.LoraConfig(...)` what that says.
        learning_rate: a number, or a function of the share of training done (`linear`, `cosine`).
        weight_decay: of AdamW.   max_grad_norm: gradients are clipped to it; None: they are not.
        ema: decay of the average of the parameters that `.diffusion` then has; None: the last ones.
        epochs: passes over each batch of rollouts.   minibatches: updates of each pass.
        timestep_fraction: share of the steps of each path, drawn anew in every epoch, that updates
            read; the loss is scaled up by it. Not for methods that read whole paths.
        max_rows: most (path, step) rows of one backward pass; gradients are accumulated. None: all
            in one, or on a CPU what its caches are for.
        autocast: dtype of the networks' products, such as torch.bfloat16, or None. Schedules,
            log-probabilities and divergences stay in theirs.
        learn_scale: of a Gaussian chain, also learn a factor on the deviation of every step (True)
            or its covariance, a triangle of D^2 / 2 numbers for states of D elements ("full").
        prior_steps: also learn the initial law of a Gaussian chain, by this many controlled steps
            from 0 to it; with 0 it stays, which is a bias where samples depend on their start.
        prior_network: their control, an nn.Module (x [B, *shape], t [B] in [0, 1)) -> [B, *shape]
            in units of the noise that returns 0 at first; None: affine for each element and step.
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
    fits_steps = True  # of the reverse path, so that steps to the prior can be among them

    def __init__(
        self,
        diffusion: Any,
        reward: Callable[..., Any],
        *,
        alpha: float,
        adapter: Any = "lora",
        rank: int = 8,
        learning_rate: Rate = 1e-3,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
        ema: float | None = None,
        epochs: int = 1,
        minibatches: int = 1,
        timestep_fraction: float = 1.0,
        max_rows: int | None = None,
        autocast: torch.dtype | None = None,
        learn_scale: bool | str = False,
        prior_steps: int = 0,
        prior_network: nn.Module | None = None,
        on_invalid: str = "raise",
        kl_budget: float | None = None,
        held_out: Callable[..., Any] | None = None,
        patience: int = 20,
    ) -> None:
        check_diffusion(diffusion, learn_scale)
        check_target(reward, alpha, on_invalid)
        check_counts(epochs=epochs, minibatches=minibatches, max_rows=max_rows, patience=patience)
        if not 0 < timestep_fraction <= 1:
            raise ArgumentError(
                f"timestep_fraction must be a share in (0, 1], got {timestep_fraction}"
            )
        if ema is not None and not 0 < ema < 1:
            raise ArgumentError(f"ema must be a decay in (0, 1), or None, got {ema}")
        if kl_budget is not None and not self.knows_kl:
            raise ArgumentError(
                f"kl_budget: {type(self).__name__} draws from a frozen policy and knows no KL "
                "while it trains; leave it away, and stop by num_iterations or held_out"
            )
        self.reward = reward
        self.alpha = float(alpha)
        self.epochs = epochs
        self.minibatches = minibatches
        self.timestep_fraction = timestep_fraction
        self.max_rows = max_rows
        self.autocast = autocast
        self.on_invalid = on_invalid
        self._watch = Watch(
            kl_budget=kl_budget, held_out=held_out, patience=patience, on_invalid=on_invalid
        )
        self._learn_scale = learn_scale
        self._given = diffusion
        if prior_steps and not self.fits_steps:
            raise ArgumentError(
                f"prior_steps must be 0 for {type(self).__name__}, which does not fit the steps of "
                "paths, as PPO, RewardBackprop, PathConsistency and RewardWeightedMLE do"
            )
        if prior_steps:
            diffusion = prefixed(diffusion, prior_steps, prior_network)
        elif prior_network is not None:
            raise ArgumentError("prior_network is for prior_steps of at least 1, got 0")
        self._rate = learning_rate
        self._optimisation: dict[str, Any] = dict(
            weight_decay=weight_decay, max_grad_norm=max_grad_norm, ema=ema
        )
        self._pretrained = diffusion
        self._network = adapters.trainable_network(diffusion.denoiser, adapter, rank)
        self._adapter = {"adapter": described(adapter), "rank": rank}
        # its own view of the same weights: no mode, gradient or hook of the user's module changes
        natural = adapters.sharing_copy(diffusion.denoiser, list(diffusion.denoiser.parameters()))
        self._natural = adapters.with_network(diffusion, natural.eval())
        self._scale: nn.Parameter | None = None
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
            "timestep_fraction": self.timestep_fraction,
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
        if self._scale is not None:
            named["scale"] = self._scale
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
        policy: Any = Recalling(self.policy)
        reference: Any = Recalling(self.reference)
        buffer = roll(
            policy,
            reference,
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
        tuned = adapters.with_network(self._pretrained, network)
        if self._scale is None:
            return finished(tuned, None)
        return finished(tuned, noise_factors(values.get("scale", self._scale.detach())))

    def save(self, path: str | Path) -> None:
        """Write the denoiser's weights, adapters merged, for `load_state_dict` of its own class."""
        tuned, natural = self.diffusion.denoiser, self._given.denoiser
        export.save_merged(path, tuned, natural, type(self).__name__)

    def save_adapter(self, path: str | Path, *, prefix: str = "") -> None:
        """Write the low-rank terms alone, as PEFT and diffusers load them.

        Args:
            prefix: "" for `model.load_lora_adapter(path, prefix=None)`; the model's name in a
                pipeline, "unet" or "transformer", for `pipeline.load_lora_weights(path)`.

        Raises:
            ArgumentError: the adapter is not LoRA, or of layers that PEFT cannot adapt.
        """
        export.save_terms(path, self.diffusion.denoiser, self._given.denoiser, prefix)

    def save_learned(self, path: str | Path) -> None:
        """Write the initial law of `prior_steps` and the noise of `learn_scale`.

        `fastguide.finetune.load_learned` reads it.

        Raises:
            ArgumentError: neither was learned.
        """
        export.save_learned(path, self.diffusion)

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
        log: str | Path | None = None,
        callback: Callback | Sequence[Callback] | None = None,
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
            log: file for the history, as JSON lines that are written one by one.
            callback: one or several, called with each row of the history; False from any stops.
            progress: show a bar.

        Raises:
            CheckpointError: the folder holds another run.
            NonFiniteError: a reward, or several gradients in a row, were not finite.
        """
        check_counts(num_iterations=num_iterations, batch_size=batch_size)
        rank, processes = parallel.world()
        self._start(num_steps)
        assert self._update is not None
        chains = chain_ids(batch_size, rank * batch_size, self._pretrained.device)
        start = {"prompt": prompt, "cond": condition_rows(cond or {}, batch_size)}
        history, files = History(), [] if log is None else [Path(log)]
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
            files.append(store.history)
            saved = store.load() if resume else None
            if saved is not None:
                self._update.load(saved["update"])
                self.recall(saved["memory"])
                history.rows = saved["rows"]
                # a limit that was met stays met; a stop by time or by hand is gone on from
                history.stopped = self._watch.why_stop(history) if history.rows else None
        clock = saved_at = time.perf_counter()
        before = history.rows[-1] if history.rows else {"seconds": 0.0, "cpu_seconds": 0.0}
        begin, cpu_begin = clock - before["seconds"], time.process_time() - before["cpu_seconds"]
        title = type(self).__name__ if progress else None
        with Reports(history, files, callback, title, num_iterations) as report:
            while len(history.rows) < num_iterations and history.stopped is None:
                number = len(history.rows)
                row = self._iterate(number, number / num_iterations, seed, chains, start)
                row["seconds"] = time.perf_counter() - begin
                row["cpu_seconds"] = time.process_time() - cpu_begin
                wanted = report(row)
                now, stop = time.perf_counter(), self._watch.why_stop(history)
                if max_seconds is not None and now - clock > max_seconds:
                    stop = "max_seconds"
                if not wanted:
                    stop = "callback"
                due = now - saved_at > SAVE_EVERY_SECONDS
                due = due or len(history.rows) == num_iterations
                history.stopped, due = parallel.agreed((stop, due or stop is not None))
                # only here is the state one that a run can go on from
                if store is not None and due:
                    saved_at = now
                    state = {"update": self._update.state(), "memory": self.memory()}
                    store.save({**state, "rows": history.rows})
        return history

    # -- the loop ------------------------------------------------------------------------------

    def _start(self, num_steps: int) -> None:
        if self.whole_paths and self.timestep_fraction < 1:
            raise ArgumentError(
                f"timestep_fraction must be 1 for {type(self).__name__} as it is set here, which "
                "reads whole paths; max_rows bounds the memory of a backward pass"
            )
        tuned = adapters.with_network(self._pretrained, self._network)
        self.num_steps = num_steps
        self.reference: Laws = laws_of(self._natural, num_steps, self.autocast)
        known = 0 if self._scale is None else len(self._scale)
        if self._learn_scale and known != len(self.reference):
            size = math.prod(tuned.shape) if self._learn_scale == "full" else None
            shape = (len(self.reference),) if size is None else (len(self.reference), size, size)
            self._scale = nn.Parameter(torch.zeros(shape, device=self._natural.device))
        self.policy: Laws = laws_of(tuned, num_steps, self.autocast, self._scale)
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
                *(key, epoch, buffer.chains, len(self.policy), self.minibatches, self.whole_paths),
                kept=self._kept_steps,
            )
            for which in range(self.minibatches):
                for name, value in self._improve(buffer, numbers == which, share).items():
                    totals[name] = totals.get(name, 0.0) + value
        updates = self.epochs * self.minibatches
        skipped = totals.pop("skipped")
        means = {name: total / updates for name, total in totals.items()}
        return {**row, **self._watch.report(buffer), **means, "skipped": skipped}

    @property
    def _kept_steps(self) -> int:
        """Steps of a path that an epoch reads."""
        return max(1, round(self.timestep_fraction * len(self.policy)))

    def _improve(self, buffer: Buffer, chosen: Tensor, share: float) -> dict[str, float]:
        """One update on the chosen rows [N, T]."""
        assert self._update is not None
        if not self.whole_paths and not self.all_steps:
            chosen = chosen & self.policy.random
        self._update.start()
        scale = self.minibatches / (len(buffer) * parallel.world()[1])
        scale *= len(self.policy) / self._kept_steps
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
