"""ELEGANT: the whole target, initial law and all, one control problem after another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastguide.checkpoint import digest
from fastguide.errors import ArgumentError, DtypeError
from fastguide.finetune import export, parallel
from fastguide.finetune.checkpoint import TrainingCheckpoint
from fastguide.finetune.history import Callback, History
from fastguide.finetune.initial_value import QuadraticValue, fit_value
from fastguide.finetune.laws import check_diffusion, laws_of
from fastguide.finetune.method import Method
from fastguide.finetune.prior_steps import PriorSteps, prefixed
from fastguide.finetune.reward_backprop import RewardBackprop
from fastguide.finetune.rollout import condition_rows, roll, scores
from fastguide.rng import chain_ids, check_seed
from fastguide.samplers.refinement import round_seed

Tensor = torch.Tensor

PAIRS = 2**31
"""Round of the stream for the pairs, and the next for the last stage; no training is that long."""

OF_BOTH = ("learning_rate", "weight_decay", "max_grad_norm", "ema")
"""Options of the control that its initial law is trained with too."""


class ELEGANT:
    """Fine-tune a Gaussian chain and its initial law, so that samples follow the target itself.

    Three stages: `method` fine-tunes the chain with its initial law as it is, which is optimal for
    any; the soft value of initial states is fitted to pairs of a state and its outcome; and steps
    from a point to the prior are fine-tuned on that value. All at once, with the same optimum, is
    RewardBackprop(prior_steps=J), which needs gradients through J + T steps; here no backward pass
    is longer than the chain's own, and `method` may be one that needs none.

    Args:
        diffusion, reward, alpha: see `Method`.
        prior_steps, prior_network: see `Method`. The more steps, the less variance is left over.
        method: that trains the chain.
        estimate: outcomes of the pairs. "controlled": the tuned chain's reward less alpha times its
            KL, whose mean is the value. "reference": the rewards of the reference chain, whose
            log-mean-exponential is; noisier, and right also where the control is not optimal.
        value: an nn.Module x [B, *shape] -> [B], reward units; None: a quadratic in each element.
        value_learning_rate: of such a network.   num_pairs: to fit the value to.
        options: of `method`; rates and averages hold for the initial law too.

    Attributes:
        value: the fitted value of initial states, up to a constant.

    Raises:
        ArgumentError: an argument out of range, by name; a masked chain, which starts at a point.

    Source: Uehara et al. 2024 (ELEGANT, arXiv 2402.15194), sections 5 and 6.
    """

    def __init__(
        self,
        diffusion: Any,
        reward: Callable[..., Any],
        *,
        alpha: float,
        prior_steps: int = 10,
        prior_network: nn.Module | None = None,
        method: type[Method] = RewardBackprop,
        estimate: str = "controlled",
        value: nn.Module | None = None,
        value_learning_rate: float = 1e-3,
        num_pairs: int = 20_000,
        **options: Any,
    ) -> None:
        if estimate not in ("controlled", "reference"):
            raise ArgumentError(f"estimate must be 'controlled' or 'reference', got {estimate!r}")
        if value is not None and not isinstance(value, nn.Module):
            raise DtypeError(f"value must be an nn.Module or None, got {type(value).__name__}")
        if num_pairs < 1:
            raise ArgumentError(f"num_pairs must be at least 1, got {num_pairs}")
        check_diffusion(diffusion, False)
        self._prior: PriorSteps = prefixed(diffusion, prior_steps, prior_network).prior
        self._control = method(diffusion, reward, alpha=alpha, **options)
        self._options = {name: options[name] for name in OF_BOTH if name in options}
        self._start: RewardBackprop | None = None
        self._untrained = value if value is not None else QuadraticValue(diffusion.shape)
        self.value = copy.deepcopy(self._untrained)
        self.alpha = float(alpha)
        self.estimate = estimate
        self.num_pairs = num_pairs
        self._value_learning_rate = value_learning_rate

    @property
    def diffusion(self) -> Any:
        """The fine-tuned diffusion, for every sampler, with initial states by the learned law.

        Before the last stage they are the reference's.
        """
        tuned = self._control.diffusion
        if self._start is not None:
            steps: PriorSteps = self._start.diffusion
            tuned.learned_start = steps.learned(None)
        return tuned

    def save(self, path: str | Path) -> None:
        """Write the denoiser's weights, as `Method.save` does, but not the initial law."""
        self._control.save(path)

    def save_learned(self, path: str | Path) -> None:
        """Write the initial law, as `Method.save_learned` does."""
        export.save_learned(path, self.diffusion)

    def train(
        self,
        num_iterations: int,
        batch_size: int,
        *,
        num_steps: int,
        seed: int = 0,
        cond: dict[str, Tensor] | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = True,
        callback: Callback | None = None,
        progress: bool = True,
    ) -> History:
        """Train the control, fit the value, train the initial law: num_iterations for each of two.

        Args: as `Method.train` takes them.

        Returns:
            The rows of both trainings, with "stage" 0 and 1; "reward" is the value in stage 1, and
            its first row has "value_variance", that of the value as a share of the outcomes'.
            Stopped early, the first stage is the last.
        """
        folder = None if checkpoint is None else Path(checkpoint)
        common: dict[str, Any] = dict(resume=resume, progress=progress)
        self._start = None
        history = self._control.train(
            num_iterations,
            batch_size,
            num_steps=num_steps,
            seed=seed,
            cond=cond,
            checkpoint=None if folder is None else folder / "control",
            callback=_staged(0, callback),
            **common,
        )
        rows = [{**row, "stage": 0.0} for row in history.rows]
        if history.stopped is not None:
            return History(rows, history.stopped)
        store = None
        if folder is not None:
            store = TrainingCheckpoint(folder / "value", self._fingerprint(batch_size, seed))
        explained = self._fit(store if resume else None, batch_size, num_steps, seed, cond)
        if store is not None:
            store.save({"value": self.value.state_dict(), "explained": explained})
        start = RewardBackprop(
            self._prior, self.value, alpha=self.alpha, adapter="full", **self._options
        )
        later = start.train(
            num_iterations,
            batch_size,
            num_steps=self._prior.num_steps,
            seed=round_seed(check_seed(seed), PAIRS + 1),
            checkpoint=None if folder is None else folder / "start",
            callback=_staged(1, callback),
            **common,
        )
        self._start = start
        second = [{**row, "stage": 1.0} for row in later.rows]
        second[0]["value_variance"] = explained
        return History([*rows, *second], later.stopped)

    def _fingerprint(self, batch_size: int, seed: int) -> dict[str, Any]:
        tuned = self._control.diffusion
        return {
            "denoiser": digest(tuned.denoiser),
            "diffusion": tuned.settings(),
            "value": digest(self._untrained),
            "value_learning_rate": self._value_learning_rate,
            "estimate": self.estimate,
            "num_pairs": self.num_pairs,
            "batch_size": batch_size * parallel.world()[1],
            "seed": seed,
        }

    def _fit(
        self,
        store: TrainingCheckpoint | None,
        batch_size: int,
        num_steps: int,
        seed: int,
        cond: dict[str, Tensor] | None,
    ) -> float:
        """Set `value`, fitted or as it was saved; the share of variance that it explains."""
        self.value = copy.deepcopy(self._untrained).to(self._control.diffusion.device)
        saved = None if store is None else store.load()
        if saved is not None:
            self.value.load_state_dict(saved["value"])
            explained = saved["explained"]
        else:
            initial, outcome = self._pairs(batch_size, num_steps, seed, cond)
            rate = self._value_learning_rate
            explained = fit_value(self.value, initial, outcome, self.alpha, self.estimate, rate)
        self.value.requires_grad_(False)
        return float(explained)

    @torch.no_grad()
    def _pairs(
        self, batch_size: int, num_steps: int, seed: int, cond: dict[str, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """num_pairs initial states, or a few more, and their outcomes [P] float64."""
        rank, processes = parallel.world()
        tuned = self._control.diffusion
        reference = self._control.reference
        policy = None if self.estimate == "reference" else laws_of(tuned, num_steps)
        rows = condition_rows(cond or {}, batch_size)
        initial, outcome = [], []
        for number in range(-(-self.num_pairs // (batch_size * processes))):
            chains = chain_ids(batch_size, rank * batch_size, tuned.device)
            key = round_seed(round_seed(seed, PAIRS), number)
            buffer = roll(policy, reference, key, chains, cond=rows)
            found = scores(
                self._control.reward,
                "reward",
                (buffer.samples,),
                buffer.cond,
                self._control.on_invalid,
            )
            if buffer.kl is not None:
                found = found - self.alpha * buffer.kl.sum(dim=1)
            initial.append(parallel.gathered(buffer.states[:, 0]))
            outcome.append(parallel.gathered(found))
        return torch.cat(initial), torch.cat(outcome)


def _staged(stage: int, callback: Callback | None) -> Callback | None:
    """The callback, given rows that say which stage they are of."""
    if callback is None:
        return None
    return lambda row: callback({**row, "stage": float(stage)})
