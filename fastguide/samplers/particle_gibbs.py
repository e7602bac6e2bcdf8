"""ParticleGibbs: sweeps of SMC that keep the path of the last sample among their particles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion import Batch, Diffusion, Step
from fastguide.errors import ArgumentError
from fastguide.evaluation import Rows
from fastguide.policy import Choice, Final, Selection
from fastguide.result import Result
from fastguide.samplers.refinement import round_seed
from fastguide.samplers.smc import SMC

Tensor = torch.Tensor


class _Sweep(SMC):
    """SMC that remembers paths, and whose particle 0 follows a given one.

    reference: [N, T + 1, ...] states after each step, by chain from `first_chain` on; or None.
    """

    reference: Tensor | None = None
    first_chain = 0
    num_moves = 0
    chosen: list[Tensor]

    def memory(self, num_chains: int) -> dict[str, Tensor]:
        """Weights and twists; path [N, P, T + 1, ...] of each particle."""
        kept = super().memory(num_chains)
        shape = (num_chains, self.num_particles, self.num_moves)
        empty = self.diffusion.start(torch.zeros(1, dtype=torch.int64), None, 0).x
        path = empty.new_zeros((*shape, *empty.shape[1:]))
        return {**kept, "path": path}

    def revise(self, batch: Batch, changed: Tensor, rows: Rows, step: Step) -> tuple[Batch, Tensor]:
        """Put the reference in the place of each group's first particle."""
        self._moved = batch.x
        if self.reference is None:
            return batch, changed
        first = slice(None, None, self.num_particles)
        x = batch.x.clone()
        x[first] = self.reference[rows.chain[first] - self.first_chain, step.index]
        keys = None
        if batch.keys is not None:
            keys = batch.keys.clone()
            keys[first] = ops.masked_keys(x[first])
            changed = changed.clone()
            differs = (x[first] != rows.batch.x[first]).sum(dim=-1, dtype=changed.dtype)
            changed[first] = differs[:, None]
        self._moved = x
        return Batch(x, keys), changed

    def select(self, selection: Selection) -> Choice:
        """Weigh the particles and resample all but the first."""
        old = selection.memory
        num, size = old["log_weight"].shape
        path = old["path"].clone()
        path[:, :, selection.step.index] = self._moved.unflatten(0, (num, size))
        twist = selection.values.view(num, size) / self.alpha
        index = torch.arange(num * size, device=twist.device)
        kept = {"log_twist": twist, "path": path}
        if self.reference is None or selection.step.clean:
            return self.reweigh(selection, index, twist - old["log_twist"], kept)
        weight = old["log_weight"] + twist - old["log_twist"]
        again = ops.resample(
            weight,
            seed=selection.seed,
            step=selection.step.counter,
            chains=selection.chains.view(num, size)[:, 0],
            scheme="multinomial",
            ess_threshold=None if self.ess_threshold == 1 else self.ess_threshold,
        )
        ancestors = again.ancestors.clone()
        ancestors[:, 0] = 0
        rows = torch.arange(num, device=ancestors.device)[:, None]
        return Choice(
            index.view(num, size).gather(1, ancestors).flatten(),
            again.ess,
            torch.ones_like(again.resampled),
            {
                "log_twist": twist.gather(1, ancestors),
                "path": path[rows, ancestors],
                "log_weight": torch.where(again.resampled[:, None], 0.0, weight),
                "log_z": old["log_z"] + again.log_z,
            },
        )

    def finish(self, rewards: Tensor | None, selection: Selection) -> Final:
        """As `SMC`; keeps the paths of the samples."""
        final = super().finish(rewards, selection)
        self.chosen.append(selection.memory["path"].flatten(0, 1)[final.index])
        return final


class ParticleGibbs:
    """A Markov chain over whole paths whose every sweep is one run of SMC.

    A sweep runs P particles of which the first follows the path of the last sample, resamples the
    others around it, and draws a new path by the final weights. It leaves the target
    p_pre(x) exp(r(x)/alpha) as it is for any P >= 2 and any value function, so that samples become
    exact with the sweeps rather than with the particles.

    Args:
        diffusion, reward, value, num_particles, alpha, ess_threshold: see `SMC`; resampling is
            multinomial.
        num_sweeps: after the first, which is plain SMC.
    Raises:
        ArgumentError: num_particles < 2, num_sweeps < 1, and as `SMC`.

    Paths are kept for every particle: num_samples * P * (num_steps + 1) states.
    Source: Andrieu, Doucet, Holenstein 2010, section 4.5; for diffusions Dang et al. 2025 (PG-DLM,
    arXiv 2507.08390).
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        value: Any = "posterior_mean",
        num_particles: int = 16,
        alpha: float = 0.1,
        ess_threshold: float = 0.5,
        *,
        num_sweeps: int = 4,
    ) -> None:
        if num_particles < 2:
            raise ArgumentError(
                f"num_particles must be at least 2 (one follows the old path), got {num_particles}"
            )
        if num_sweeps < 1:
            raise ArgumentError(f"num_sweeps must be at least 1, got {num_sweeps}")
        self.num_sweeps = num_sweeps
        self._sweep = _Sweep(
            diffusion, reward, value, num_particles, alpha, "multinomial", ess_threshold
        )

    def sample(
        self,
        num_samples: int,
        *,
        num_steps: int,
        seed: int = 0,
        first_chain: int = 0,
        reference: Tensor | None = None,
        **how: Any,
    ) -> list[Result]:
        """The result of every sweep, the first one (plain SMC) first; the last has the samples.

        Args:
            reference: [num_samples, T', ...] states after each of the T' transitions of a path to
                start from, in place of the first sweep.
            The others: as `Sampler.sample`.
        """
        sweep = self._sweep
        sweep.first_chain = first_chain
        sweep.num_moves = len(sweep.diffusion.steps(num_steps))
        results = []
        for number in range(self.num_sweeps + 1):
            if number == 0 and reference is not None:
                continue
            sweep.reference = reference
            sweep.chosen = []
            result = sweep.sample(
                num_samples,
                num_steps=num_steps,
                seed=seed if number == 0 else round_seed(seed, number),
                first_chain=first_chain,
                **how,
            )
            results.append(result)
            if result.stopped:
                break
            reference = torch.cat(sweep.chosen)
        return results
