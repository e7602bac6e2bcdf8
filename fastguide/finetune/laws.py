"""The reverse kernels as objectives read them: log-probabilities and divergences, differentiable.

KL divergences and log-probabilities are in nats, summed over the elements of a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from fastguide.diffusion import Batch, MaskedDiffusion, Outputs, Step
from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.diffusion.learned import multiplied
from fastguide.errors import ArgumentError, DtypeError

Tensor = torch.Tensor

MOST_CORRELATED = 256
"""Elements of a state beyond which covariances are not learned."""

LOWEST = -1e30
"""Logit of a forbidden token: its probability is 0 and its derivatives are finite."""


@dataclass(frozen=True)
class GaussianLaw:
    """R kernels of mean + deviation F z, with z standard normal and F learned or 1.

    Attributes:
        mean: [R, *shape].   deviation: [R], positive, the reference's.
        log_scale: [R] log of F as a number.   triangle: [R, D, D], F as a lower triangle.
    """

    mean: Tensor
    deviation: Tensor
    log_scale: Tensor | None = None
    triangle: Tensor | None = None

    def _half_norm(self, gap: Tensor) -> Tensor:
        """Half the squared norm of gap in units of the deviation and of F, [R] float64."""
        scaled = gap / self.deviation.view(-1, *[1] * (gap.dim() - 1))
        if self.triangle is not None:
            flat = scaled.flatten(1)[..., None]
            scaled = torch.linalg.solve_triangular(self.triangle, flat, upper=False)
        norm = 0.5 * scaled.square().flatten(1).sum(dim=1, dtype=torch.float64)
        return norm if self.log_scale is None else norm * (-2 * self.log_scale.double()).exp()

    def _log_volume(self) -> Tensor | float:
        """log det F, [R] float64."""
        if self.triangle is not None:
            return self.triangle.diagonal(dim1=1, dim2=2).double().log().sum(dim=1)
        size = math.prod(self.mean.shape[1:])
        return 0.0 if self.log_scale is None else size * self.log_scale.double()

    def scaled(self, noise: Tensor) -> Tensor:
        """Standard noise [R, *shape] as that of the kernels."""
        if self.triangle is not None:
            noise = multiplied(noise, self.triangle)
        deviation = self.deviation if self.log_scale is None else self.deviation * self._factor()
        return deviation.view(-1, *[1] * (noise.dim() - 1)) * noise

    def _factor(self) -> Tensor:
        assert self.log_scale is not None
        return self.log_scale.exp()

    def log_prob(self, following: Tensor) -> Tensor:
        """Log-density of `following` [R, *shape], [R] float64."""
        size = math.prod(following.shape[1:])
        constant = self.deviation.log() + 0.5 * math.log(2 * math.pi)
        return -self._half_norm(following - self.mean) - size * constant - self._log_volume()

    def kl(self, reference: GaussianLaw) -> Tensor:
        """KL(self || reference) [R] float64, of a reference without F."""
        divergence = reference._half_norm(self.mean - reference.mean)
        size = math.prod(self.mean.shape[1:])
        if self.triangle is not None:
            trace = self.triangle.double().square().sum(dim=(1, 2))
        elif self.log_scale is not None:
            trace = size * (2 * self.log_scale.double()).exp()
        else:
            return divergence
        return divergence + 0.5 * (trace - size) - self._log_volume()


@dataclass(frozen=True)
class MaskedLaw:
    """R kernels that reveal masked sites and draw their tokens.

    Attributes:
        log_probs: [R, L, V] of the tokens.   masked: [R, L] bool.   mask_token: id of the mask.
        rho: [R] chance that a masked site is revealed, the same under every policy.
    """

    log_probs: Tensor
    masked: Tensor
    mask_token: int
    rho: Tensor

    def log_prob(self, following: Tensor) -> Tensor:
        """Log-probability of the tokens revealed in `following` [R, L], [R] float64.

        The factor of which sites are revealed does not depend on the policy and is left out.
        """
        revealed = self.masked & (following != self.mask_token)
        tokens = following.where(revealed, 0)[..., None]
        site = self.log_probs.gather(-1, tokens)[..., 0].masked_fill(~revealed, 0)
        return site.sum(dim=-1, dtype=torch.float64)

    def kl(self, reference: MaskedLaw) -> Tensor:
        """KL(self || reference) [R] float64: rho times the sum over masked sites, exactly."""
        site = (self.log_probs.exp() * (self.log_probs - reference.log_probs)).sum(dim=-1)
        total = site.masked_fill(~self.masked, 0).sum(dim=-1, dtype=torch.float64)
        return self.rho * total


Law: TypeAlias = Any
"""A `GaussianLaw` or a `MaskedLaw`; both sides of a divergence are of one kind."""


class Laws:
    """The kernels of one diffusion with T steps, at any mixture of steps.

    A step that draws nothing, such as the last of DDPM or a fill by the mode, has the law it would
    have if it drew: tokens from its softmax, or noise of the deviation of the step before (as the
    clipped variance of Ho et al. 2020). So its divergence holds the policy near the reference.

    Args:
        diffusion: gives the outputs and draws the successors.   num_steps: as the samplers take it.
        autocast: dtype in which the network's products are taken, or None; the rest is float32.

    Attributes:
        steps: the T `Step` records, a masked chain's fill included.   random: [T] bool, steps whose
            successor is drawn.
    """

    _predict: Callable[..., Tensor]

    def __init__(self, diffusion: Any, num_steps: int, autocast: torch.dtype | None = None) -> None:
        self.diffusion = diffusion
        self.autocast = autocast
        self.steps: list[Step] = diffusion.steps(num_steps)
        self.device = diffusion.device
        self.time = self._table([step.time for step in self.steps])
        self.random = torch.tensor([step.varies for step in self.steps], device=self.device)

    def __len__(self) -> int:
        return len(self.steps)

    def _table(self, numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self.device)

    def output(self, x: Tensor, index: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Checked denoiser outputs [R, ...] of states x [R, ...] before steps `index` [R].

        Gaussian chains: x0_hat. Tokens: logits, forbidden ones -inf.
        """
        return self._cast(self._predict, x, self.time[index], cond)

    def relaxed_output(self, x: Tensor, index: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """`output` of relaxed states, differentiable in them."""
        return self._cast(
            lambda *of: self.diffusion.predict_relaxed(*of)[0], x, self.time[index], cond
        )

    def _cast(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """function(*inputs) under autocast, if there is one."""
        if self.autocast is None:
            return function(*inputs)
        with torch.autocast(self.device.type, self.autocast):
            return function(*inputs)

    def law(self, x: Tensor, output: Tensor, index: Tensor) -> Law:
        """The kernels of states and their outputs."""
        raise NotImplementedError

    def at(self, x: Tensor, index: Tensor, cond: dict[str, Tensor]) -> Law:
        """The kernels of states x [R, ...] before steps `index` [R]."""
        return self.law(x, self.output(x, index, cond), index)

    def step(self, number: int) -> Step:
        """Step `number` as its successors are drawn."""
        return self.steps[number]

    def propose(
        self,
        batch: Batch,
        output: Tensor,
        number: int,
        key: int,
        chains: Tensor,
        count: int = 1,
        first: int = 0,
    ) -> Batch:
        """Candidates first ... first + count - 1 of each state by step `number`."""
        rows = torch.arange(len(output), device=output.device)
        proposal, _ = self.diffusion.propose(
            batch,
            Outputs(output, rows),
            self.step(number),
            seed=key,
            chains=chains,
            num_candidates=count,
            first_candidate=torch.full_like(chains, first),
        )
        return proposal


class GaussianLaws(Laws):
    """Laws of x' = a x + b x0_hat + s F z.

    Args:
        scale: what is learned of F: its logarithms [T], or triangles [T, D, D] with logarithms on
            the diagonal; None: F is 1.
    """

    def __init__(
        self,
        diffusion: GaussianChain,
        num_steps: int,
        autocast: torch.dtype | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__(diffusion, num_steps, autocast)
        self._predict = diffusion.predict
        self.a, self.b, s = (
            self._table([step.params[i] for step in self.steps]).float() for i in range(3)
        )
        if not bool(self.random.any()):
            raise ArgumentError(
                f"num_steps={num_steps}: no step of this chain draws noise, so there is nothing to "
                "learn from; use eta > 0 and more than one step"
            )
        noisy = self.random.nonzero()[:, 0]
        order = torch.arange(len(self.steps), device=self.device)
        before = (noisy <= order[:, None]).sum(dim=1) - 1
        self.s = s[noisy[before.clamp_min(0)]]
        self.scale = scale

    def _mean(self, x: Tensor, x0: Tensor, index: Tensor) -> Tensor:
        column = (-1, *[1] * (x.dim() - 1))
        return self.a[index].view(column) * x + self.b[index].view(column) * x0

    def law(self, x: Tensor, output: Tensor, index: Tensor) -> GaussianLaw:
        """Kernels of states x and predictions [R, *shape] at steps `index` [R]."""
        mean, deviation = self._mean(x, output, index), self.s[index]
        if self.scale is None:
            return GaussianLaw(mean, deviation)
        own = self.scale[index]
        if own.dim() == 1:
            return GaussianLaw(mean, deviation, log_scale=own)
        return GaussianLaw(mean, deviation, triangle=triangles(own))

    def reconstruction(self, law: GaussianLaw, x: Tensor, clean: Tensor, index: Tensor) -> Tensor:
        """Expected log-likelihood [R] float64 of the steps to `clean`, up to a constant.

        The density at a x + b clean, -b^2 |clean - x0_hat|^2 / (2 s^2). Minus its sum over steps,
        with x [R, ...] drawn from the forward process, is the bound of the negative log-likelihood
        that denoisers are trained on.
        """
        return law.log_prob(self._mean(x, clean, index))

    def step(self, number: int) -> Step:
        """Step `number`, with the learned deviation."""
        step = self.steps[number]
        if self.scale is None or self.scale.dim() > 1:
            return step
        a, b, s = step.params
        return replace(step, params=(a, b, s * float(self.scale[number].detach().double().exp())))

    def propose(
        self,
        batch: Batch,
        output: Tensor,
        number: int,
        key: int,
        chains: Tensor,
        count: int = 1,
        first: int = 0,
    ) -> Batch:
        """Candidates by step `number`, with the learned covariance."""
        drawn = super().propose(batch, output, number, key, chains, count, first)
        if self.scale is None or self.scale.dim() == 1 or not self.steps[number].varies:
            return drawn
        index = torch.full((len(output),), number, device=output.device)
        mean = self._mean(batch.x, output, index).repeat_interleave(count, dim=0)
        lower = triangles(self.scale[number].detach())
        return Batch(mean + multiplied(drawn.x - mean, lower), None)


class MaskedLaws(Laws):
    """Laws of masked chains."""

    def __init__(
        self, diffusion: MaskedDiffusion, num_steps: int, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__(diffusion, num_steps, autocast)
        self._predict = diffusion.logits
        self.rho = self._table([step.params[0] for step in self.steps])

    def law(self, x: Tensor, output: Tensor, index: Tensor) -> MaskedLaw:
        """Kernels of tokens x [R, L] and logits [R, L, V] at steps `index` [R]."""
        mask = self.diffusion.mask_token
        log_probs = (output.clamp_min(LOWEST) / self.diffusion.temperature).log_softmax(dim=-1)
        return MaskedLaw(log_probs, x == mask, mask, self.rho[index])


def triangles(scale: Tensor) -> Tensor:
    """[..., D, D] lower triangles from parameters with the logarithms of their diagonals."""
    return scale.tril(-1) + torch.diag_embed(scale.diagonal(dim1=-2, dim2=-1).exp())


def noise_factors(scale: Tensor) -> Tensor:
    """The factors that learned `scale` [T] or [T, D, D] stands for."""
    return scale.double().exp() if scale.dim() == 1 else triangles(scale)


def check_diffusion(diffusion: Any, learn_scale: bool | str) -> None:
    """Raise unless the diffusion can be fine-tuned.

    Raises:
        DtypeError: it is of no known kind.   ArgumentError: it cannot be fine-tuned as it is, or a
            scale is to be learned where there is none.
    """
    if learn_scale not in (False, True, "full"):
        raise ArgumentError(f"learn_scale must be False, True or 'full', got {learn_scale!r}")
    if isinstance(diffusion, GaussianChain):
        size, known = math.prod(diffusion.shape), diffusion.learned_noise
        if learn_scale == "full" and size > MOST_CORRELATED:
            raise ArgumentError(
                f"learn_scale='full' learns D x D numbers for each step and is for states of D <= "
                f"{MOST_CORRELATED} elements, got {size}; use learn_scale=True"
            )
        if known is not None and known.factors.dim() > 1:
            raise ArgumentError(
                "diffusion has learned covariances (learn_scale='full'), which further training "
                "does not know; train the original, or learn with learn_scale=True"
            )
        return
    if not isinstance(diffusion, MaskedDiffusion):
        raise DtypeError(
            "diffusion must be a fastguide Gaussian or masked diffusion such as "
            f"fg.MaskedDiffusion(denoiser, length, vocab_size), got {type(diffusion).__name__}"
        )
    if diffusion.head is not None:
        raise ArgumentError(
            "fine-tuning needs logits from the denoiser itself; instead of head= give a "
            "denoiser that returns head(hidden)"
        )
    if learn_scale:
        raise ArgumentError("learn_scale is for Gaussian chains; a masked chain has no deviation")


def laws_of(
    diffusion: Any,
    num_steps: int,
    autocast: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> Laws:
    """The laws of a diffusion that `check_diffusion` lets pass."""
    if isinstance(diffusion, GaussianChain):
        return GaussianLaws(diffusion, num_steps, autocast, scale)
    return MaskedLaws(diffusion, num_steps, autocast)
