"""IterativeRefinement: mask or noise each design in part and redesign it, round after round."""

from __future__ import annotations

from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion import MaskedDiffusion
from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.errors import ArgumentError, DtypeError
from fastguide.reference.philox import philox
from fastguide.result import Result
from fastguide.rng import Purpose, check_seed
from fastguide.samplers.base import Sampler

Tensor = torch.Tensor

ROUND = 255
"""Lower byte of the counter that a round's seed is drawn at."""


def round_seed(seed: int, number: int) -> int:
    """Seed of round `number`: two words of Philox at counter (number, 0, 0, 255) under `seed`."""
    counter, zero = torch.tensor(number), torch.tensor(0)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    words = philox(counter, zero, zero, torch.tensor(ROUND), key)
    return int(words[0]) | int(words[1]) << 32


class IterativeRefinement:
    """Improve finished designs: mask or noise them in part, redesign by a sampler, repeat.

    On tokens a round masks a random share of the sites and fills them. On Gaussian, flow and Karras
    chains it noises the whole sample to the level from which that share of the steps remains.

    Args:
        sampler: with a reward; it redesigns what a round took back, for instance `SVDD` or
            `NestedSMC`. Not one with gradients on Gaussian chains.
        fraction: share of the sites, or of the steps, that a round takes back; at least one.
        num_rounds: rounds after the first designs.
        accept: "always" takes every redesign; "better" only those whose reward is not lower.

    Raises:
        ArgumentError: a share outside (0, 1], num_rounds < 1, or an unknown accept.
        DtypeError: a sampler without a reward.

    A search: it targets no law, and its naturalness is what the sampler keeps of it; the form that
    keeps the target is `ParticleGibbs`. Masks and rounds are keyed by (seed, round, chain). Source:
    Uehara et al. 2025 (RERD, arXiv 2502.14944), with one design per chain.
    """

    def __init__(
        self,
        sampler: Sampler,
        fraction: float = 0.1,
        num_rounds: int = 20,
        accept: str = "better",
    ) -> None:
        if not isinstance(sampler, Sampler):
            raise DtypeError(
                "sampler must be one such as fg.SVDD(diffusion, reward), got "
                f"{type(sampler).__name__}"
            )
        if sampler.reward is None:
            raise DtypeError("sampler must have a reward; Unguided(diffusion, reward) would do")
        if not 0 < fraction <= 1:
            raise ArgumentError(f"fraction must be a share of the sites in (0, 1], got {fraction}")
        if num_rounds < 1:
            raise ArgumentError(f"num_rounds must be at least 1, got {num_rounds}")
        if accept not in ("always", "better"):
            raise ArgumentError(f"accept must be 'always' or 'better', got {accept!r}")
        self.sampler = sampler
        self.fraction = fraction
        self.num_rounds = num_rounds
        self.accept = accept

    def sample(
        self,
        num_samples: int,
        *,
        num_steps: int,
        initial: Tensor | None = None,
        seed: int = 0,
        first_chain: int = 0,
        prompt: Tensor | None = None,
        progress: bool = True,
        **how: Any,
    ) -> list[Result]:
        """The result of every round, the first designs first; the last holds the final designs.

        Args:
            num_steps: T transitions of the first designs and of each round.
            initial: [num_samples, ...] designs to start from; None: a run of the sampler.
            prompt: [L] or [num_samples, L]; sites that are not the mask are never touched.
            The others: as `Sampler.sample`.

        In each result `samples` and `rewards` are those held after the round, trace and cost those
        of the round alone. Given Gaussian designs are not scored: the first round is accepted.
        """
        check_seed(seed)
        diffusion = self.sampler.diffusion
        how = {**how, "num_steps": num_steps, "first_chain": first_chain, "progress": progress}
        chains = torch.arange(num_samples) + first_chain
        results = []
        if initial is None:
            results.append(self.sampler.sample(num_samples, seed=seed, prompt=prompt, **how))
            x = results[0].samples
        elif isinstance(diffusion, MaskedDiffusion):
            x = diffusion.check_tokens(initial, "initial", clean=True)
            # a run without a mask scores what it is given
            results.append(self.sampler.sample(num_samples, seed=seed, prompt=x, **how))
        else:
            x = diffusion.batch(initial).x
        free = torch.ones(x.shape, dtype=torch.bool)
        if prompt is not None and isinstance(diffusion, MaskedDiffusion):
            free &= diffusion.start(chains, prompt, seed).x.cpu() == diffusion.mask_token
        for number in range(1, self.num_rounds + 1):
            key = round_seed(seed, number)
            back = self._take_back(x, key, chains, free, num_steps)
            redesigned = self.sampler.sample(num_samples, seed=key, **back, **how)
            if redesigned.stopped:
                break
            results.append(self._choose(results[-1] if results else None, redesigned))
            x = results[-1].samples
        return results

    def _take_back(
        self, x: Tensor, seed: int, chains: Tensor, free: Tensor, num_steps: int
    ) -> dict[str, Any]:
        """What a run of the sampler starts from in a round."""
        diffusion = self.sampler.diffusion
        if isinstance(diffusion, MaskedDiffusion):
            masked = self._masks(seed, chains, free).to(x.device)
            return {"prompt": x.masked_fill(masked, diffusion.mask_token)}
        assert isinstance(diffusion, GaussianChain)
        first = num_steps - max(1, round(self.fraction * num_steps))
        level = diffusion.levels(num_steps)[first]
        # its own key: the run draws from the seed of the round
        states = diffusion.renoise(x, level, round_seed(seed, 0), chains)
        return {"start_from": (states, first)}

    def _masks(self, seed: int, chains: Tensor, free: Tensor) -> Tensor:
        """[N, L] bool: `fraction` of the free sites of each chain, at least one."""
        length = free.shape[1]
        draw = ops.philox_uniform(seed, chains, 0, Purpose.MASK, num_elements=length)[:, 0]
        rank = draw.masked_fill(~free, 2.0).argsort(dim=1).argsort(dim=1)
        count = (free.sum(dim=1) * self.fraction).round().clamp_min(1)
        return (rank < count[:, None]) & free

    def _choose(self, held: Result | None, redesigned: Result) -> Result:
        if self.accept == "always" or held is None:
            return redesigned
        assert held.rewards is not None
        assert redesigned.rewards is not None
        better = redesigned.rewards >= held.rewards
        column = better.view(-1, *[1] * (redesigned.samples.dim() - 1))
        redesigned.samples = redesigned.samples.where(column, held.samples)
        redesigned.rewards = redesigned.rewards.where(better, held.rewards)
        if redesigned.components is not None and held.components is not None:
            redesigned.components = {
                name: part.where(better, held.components[name])
                for name, part in redesigned.components.items()
            }
        return redesigned
