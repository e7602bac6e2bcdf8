"""IterativeRefinement: mask a part of each design again and redesign it, round after round."""

from __future__ import annotations

from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion import MaskedDiffusion
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
    """Improve finished designs: mask a random share of their sites, fill them by a sampler, repeat.

    Args:
        sampler: of a masked diffusion, with a reward; it redesigns the masked sites, for instance
            `SVDD` or `NestedSMC`.
        fraction: share of the sites masked in a round, at least one site.
        num_rounds: rounds after the first designs.
        accept: "always" takes every redesign; "better" only those whose reward is not lower.

    Raises:
        ArgumentError: a share outside (0, 1], num_rounds < 1, or an unknown accept.
        DtypeError: a sampler without a reward, or not of a masked diffusion.

    A search: it targets no law, and its naturalness is what the sampler keeps of it. The draw of
    masks and of every round is keyed by (seed, round, chain). Source: Uehara et al. 2025 (RERD,
    arXiv 2502.14944), with one design per chain.
    """

    def __init__(
        self,
        sampler: Sampler,
        fraction: float = 0.1,
        num_rounds: int = 20,
        accept: str = "better",
    ) -> None:
        if not isinstance(getattr(sampler, "diffusion", None), MaskedDiffusion):
            raise DtypeError(
                "sampler must be one of a MaskedDiffusion, such as fg.SVDD(diffusion, reward)"
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
            initial: [num_samples, L] designs to start from; None: a run of the sampler.
            prompt: [L] or [num_samples, L]; sites that are not the mask are never touched.
            The others: as `Sampler.sample`.

        In each result `samples` and `rewards` are those held after the round, trace and cost those
        of the round alone.
        """
        check_seed(seed)
        diffusion = self.sampler.diffusion
        assert isinstance(diffusion, MaskedDiffusion)
        how = {**how, "num_steps": num_steps, "first_chain": first_chain, "progress": progress}
        chains = torch.arange(num_samples) + first_chain
        free = torch.ones((num_samples, diffusion.length), dtype=torch.bool)
        if prompt is not None:
            free &= diffusion.start(chains, prompt, seed).x.cpu() == diffusion.mask_token
        if initial is None:
            initial = self.sampler.sample(num_samples, seed=seed, prompt=prompt, **how).samples
        else:
            initial = diffusion.check_tokens(initial, "initial", clean=True)
        # a run without a mask scores what it is given
        held = self.sampler.sample(num_samples, seed=seed, prompt=initial, **how)
        results = [held]
        for number in range(1, self.num_rounds + 1):
            key = round_seed(seed, number)
            masked = self._masks(key, chains, free).to(held.samples.device)
            redesigned = self.sampler.sample(
                num_samples,
                seed=key,
                prompt=held.samples.masked_fill(masked, diffusion.mask_token),
                **how,
            )
            if redesigned.stopped:
                break
            held = self._choose(held, redesigned)
            results.append(held)
        return results

    def _masks(self, seed: int, chains: Tensor, free: Tensor) -> Tensor:
        """[N, L] bool: `fraction` of the free sites of each chain, at least one."""
        length = free.shape[1]
        draw = ops.philox_uniform(seed, chains, 0, Purpose.MASK, num_elements=length)[:, 0]
        rank = draw.masked_fill(~free, 2.0).argsort(dim=1).argsort(dim=1)
        count = (free.sum(dim=1) * self.fraction).round().clamp_min(1)
        return (rank < count[:, None]) & free

    def _choose(self, held: Result, redesigned: Result) -> Result:
        if self.accept == "always":
            return redesigned
        assert held.rewards is not None
        assert redesigned.rewards is not None
        better = redesigned.rewards >= held.rewards
        redesigned.samples = redesigned.samples.where(better[:, None], held.samples)
        redesigned.rewards = redesigned.rewards.where(better, held.rewards)
        if redesigned.components is not None and held.components is not None:
            redesigned.components = {
                name: part.where(better, held.components[name])
                for name, part in redesigned.components.items()
            }
        return redesigned
