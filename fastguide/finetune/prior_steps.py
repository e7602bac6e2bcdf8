"""Initial states that are learned: steps from a point to the prior, before those of the chain.

A Gaussian chain's initial law is tilted by the optimum too, and no denoiser can do that. J steps
that reach the prior from 0, with a control of their own, put it among the kernels that are fitted.
Source: Uehara et al. 2024 (ELEGANT, arXiv 2402.15194), section 6.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastguide.diffusion import Batch, Step
from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.diffusion.learned import LearnedNoise, LearnedStart
from fastguide.errors import ArgumentError, DtypeError

Tensor = torch.Tensor


class AffineControl(nn.Module):
    """(x, t) -> a x + c with numbers of their own per element and step, zero at first.

    Args:
        shape: of x.   num_steps: J; t is i / J at step i.
    """

    def __init__(self, shape: tuple[int, ...], num_steps: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(num_steps, *shape))
        self.offset = nn.Parameter(torch.zeros(num_steps, *shape))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, *shape], in units of the noise."""
        at = (t * len(self.slope)).round().long()
        return self.slope[at] * x + self.offset[at]


class PriorSteps(GaussianChain):
    """The steps to the prior of a chain, alone: x' = x + d (control(x, t) + z), from 0.

    Their times are -J ... -1, so that none is one of the chain's; the control is given i / J.
    """

    def __init__(self, of: GaussianChain, control: nn.Module, num_steps: int) -> None:
        super().__init__(
            control,
            of.shape,
            prior_deviation=of.prior_deviation,
            null_cond=None,
            guidance_scale=1.0,
            device=of.device,
        )
        self.num_steps = num_steps

    def steps(self, num_steps: int) -> list[Step]:
        """The J transitions, whatever number is asked for."""
        d = self.prior_deviation / math.sqrt(self.num_steps)
        last = self.num_steps - 1
        times = [float(i - self.num_steps) for i in range(self.num_steps + 1)]
        return [
            Step(i, times[i], times[i + 1], i == last, True, (1.0, d, d)) for i in range(last + 1)
        ]

    def start(
        self, chains: Tensor, prompt: Tensor | None, seed: int, candidates: Tensor | None = None
    ) -> Batch:
        """Zeros."""
        return Batch(torch.zeros(len(chains), *self.shape, device=self.device), None)

    def predict(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        """The control [B, *shape] at times t [B] in -J ... -1; it is given no conditioning."""
        share = (t / self.num_steps + 1).to(self._time_dtype)
        return self._check_output(self.denoiser(x, share), len(x)).to(x.dtype)

    def learned(self, noise: LearnedNoise | None) -> LearnedStart:
        """What draws initial states by these steps."""
        control = self.denoiser
        assert isinstance(control, nn.Module)
        return LearnedStart(control, self.shape, self.num_steps, self.prior_deviation, noise)


class Networks(nn.Module):
    """The control of the prior steps and the denoiser of the chain."""

    def __init__(self, control: nn.Module, denoiser: Any) -> None:
        super().__init__()
        self.control = control
        self.denoiser = denoiser


class PrefixedChain(GaussianChain):
    """Prior steps and then the steps of a chain, J + T for num_steps = T.

    Its denoiser is a `Networks`; rows with negative times are those of the prior steps.
    """

    def __init__(self, prior: PriorSteps, chain: GaussianChain) -> None:
        self.prior, self.chain = prior, chain
        super().__init__(
            lambda *of: None,
            chain.shape,
            prior_deviation=chain.prior_deviation,
            null_cond=None,
            guidance_scale=1.0,
            device=chain.device,
        )
        self.denoiser = Networks(prior.denoiser, chain.denoiser)  # type: ignore[arg-type]

    def with_networks(self, networks: Networks) -> PrefixedChain:
        """The same steps with other networks."""
        made = copy.copy(self)
        made.prior, made.chain = copy.copy(self.prior), copy.copy(self.chain)
        made.denoiser = networks
        made.prior.denoiser, made.chain.denoiser = networks.control, networks.denoiser
        return made

    def steps(self, num_steps: int) -> list[Step]:
        """All transitions; only the last ends at clean samples."""
        early, late = self.prior.steps(0), self.chain.steps(num_steps)
        first = replace(early[-1], next_time=late[0].time, clean=False)
        moved = [replace(step, index=step.index + len(early)) for step in late]
        return [*early[:-1], first, *moved]

    def start(
        self, chains: Tensor, prompt: Tensor | None, seed: int, candidates: Tensor | None = None
    ) -> Batch:
        """The point that the prior steps start from."""
        return self.prior.start(chains, prompt, seed, candidates)

    def predict(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        """Controls of rows before the chain's first step, x0_hat of the others, [B, *shape]."""
        early = t < 0
        if not bool(early.any()):
            return self.chain.predict(x, t, cond)
        if bool(early.all()):
            return self.prior.predict(x, t)
        late = ~early
        rows = {name: value[late] for name, value in (cond or {}).items()}
        output = torch.zeros_like(x)
        output[early] = self.prior.predict(x[early], t[early])
        output[late] = self.chain.predict(x[late], t[late], rows)
        return output

    def settings(self) -> dict[str, Any]:
        """Those of the chain, and J."""
        return {**self.chain.settings(), "prior_steps": self.prior.num_steps}


def finished(tuned: Any, factors: Tensor | None) -> Any:
    """A trained diffusion as samplers take it: prior steps become its initial law.

    Args:
        factors: learned ones on the noise of all steps, or None.
    """
    noise = None if factors is None else LearnedNoise(factors)
    if isinstance(tuned, PrefixedChain):
        early = tuned.prior.num_steps
        start = tuned.prior.learned(None if noise is None else noise[:early])
        tuned, noise = tuned.chain, None if noise is None else noise[early:]
        tuned.learned_start = start
    if noise is not None:
        tuned.learned_noise = noise.after(tuned.learned_noise)
    return tuned


def prefixed(diffusion: Any, num_steps: int, control: nn.Module | None) -> PrefixedChain:
    """A Gaussian chain with prior steps before its own.

    Args:
        num_steps: J.   control: zero for every input at first; None: an `AffineControl`.

    Raises:
        ArgumentError: not a Gaussian chain, J < 1, or a control that is not zero.
        DtypeError: the control is not an nn.Module.
    """
    if not isinstance(diffusion, GaussianChain):
        raise ArgumentError(
            f"prior_steps must be 0 for {type(diffusion).__name__}: its initial state is one "
            "point, so there is nothing to learn of it"
        )
    if diffusion.learned_start is not None:
        raise ArgumentError(
            "diffusion has a learned initial law already; give prior_steps=0 to keep it, or train "
            "the original diffusion"
        )
    if num_steps < 1:
        raise ArgumentError(f"prior_steps must be at least 0, got {num_steps}")
    if control is None:
        control = AffineControl(diffusion.shape, num_steps).to(diffusion.device)
    if not isinstance(control, nn.Module):
        raise DtypeError(f"prior_network must be an nn.Module, got {type(control).__name__}")
    prior = PriorSteps(diffusion, copy.deepcopy(control), num_steps)
    x = torch.linspace(-2, 2, 3 * math.prod(diffusion.shape), device=diffusion.device)
    with torch.no_grad():
        found = prior.predict(x.view(3, *diffusion.shape), torch.full((3,), -1.0, device=x.device))
    if bool((found != 0).any()):
        raise ArgumentError(
            "prior_network must return 0 before it is trained, so that the reference keeps its "
            f"initial law; it returned up to {float(found.abs().max()):.3g}. Set the weight and "
            "bias of its last layer to 0"
        )
    return PrefixedChain(prior, diffusion)
