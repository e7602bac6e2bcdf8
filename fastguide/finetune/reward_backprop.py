"""Direct backpropagation of the reward through the sampling path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from fastguide import ops
from fastguide.diffusion import MaskedDiffusion
from fastguide.diffusion.relaxed import predicted
from fastguide.errors import ArgumentError
from fastguide.finetune.laws import GaussianLaw, MaskedLaw
from fastguide.finetune.method import Method
from fastguide.finetune.parts import Part
from fastguide.finetune.relaxation import drakes_kl, hard_states, largest, revealed_softly
from fastguide.finetune.rollout import Buffer
from fastguide.finetune.sharing import Recalling
from fastguide.rng import Purpose

Tensor = torch.Tensor


class RewardBackprop(Method):
    """Ascend E[r] - alpha KL by differentiating the path itself, its noise held fixed.

    Gaussian chains give the exact gradient. On tokens the path is the sampler's own, and a token's
    gradient is that of a Gumbel-softmax given the token that was drawn (straight through): biased
    towards more reward than alpha says. With `relaxed_steps` the states themselves are relaxed, as
    DRAKES does: less noise in the gradient, and another bias, for paths that are not the sampler's.
    The denoiser then needs soft(onehot, t), the reward soft(probs).

    Args:
        reward: differentiable; for tokens, with `soft`.
        truncation: None: the whole path; an int K: its last K steps only; "random_path": network
            outputs before a step drawn per path are taken as constants; "random_step": each
            output is one with a chance that falls along the path. All but None are biased.
        kl_gradient: "exact" also differentiates the reference in x; "stop" holds it fixed, which
            spares its backward pass and is biased.
        checkpointing: recompute each network call in the backward pass instead of keeping its
            activations.
        temperature: of the Gumbel-softmax.
        relaxed_steps: K: tokens take their first T + 1 - K steps (the fill is one) hard and without
            gradient, the last K as points of the simplex, by `ops.gumbel_softmax_step`; the reward
            sees their largest entries, straight through. None: no relaxed states.
        compat: "drakes" replaces the KL of relaxed steps by what released DRAKES code adds up, see
            `relaxation.drakes_kl`: nothing at hard states, so that alpha holds next to nothing
            back. For comparison with it; "kl" in the history is then this sum.
        options: see `Method`.

    Sources: Clark et al. 2024 (DRaFT, arXiv 2309.17400); Prabhudesai et al. 2023 (AlignProp, arXiv
    2310.03739); Wang et al. 2025 (DRAKES, arXiv 2410.13643), with the KL of masked sites.
    """

    whole_paths = True

    def __init__(
        self,
        diffusion: Any,
        reward: Callable[..., Any],
        *,
        alpha: float,
        truncation: int | str | None = None,
        kl_gradient: str = "exact",
        checkpointing: bool = False,
        temperature: float = 1.0,
        relaxed_steps: int | None = None,
        compat: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(diffusion, reward, alpha=alpha, **options)
        if getattr(reward, "needs_cond", False):
            raise ArgumentError(
                "reward must not need conditioning where its gradient is taken; "
                "PPO, PathConsistency and RewardWeightedMLE do"
            )
        if isinstance(truncation, str) and truncation not in ("random_path", "random_step"):
            raise ArgumentError(
                "truncation must be None, a number of steps, 'random_path' or 'random_step', got "
                f"{truncation!r}"
            )
        if isinstance(truncation, int) and truncation < 1:
            raise ArgumentError(f"truncation must be at least 1 step, got {truncation}")
        if kl_gradient not in ("exact", "stop"):
            raise ArgumentError(f"kl_gradient must be 'exact' or 'stop', got {kl_gradient!r}")
        if not temperature > 0:
            raise ArgumentError(f"temperature must be positive, got {temperature}")
        if relaxed_steps is not None:
            if not isinstance(diffusion, MaskedDiffusion):
                raise ArgumentError("relaxed_steps is for masked chains; others need no relaxation")
            if relaxed_steps < 1:
                raise ArgumentError(f"relaxed_steps must be at least 1, got {relaxed_steps}")
            if truncation is not None:
                raise ArgumentError("relaxed_steps truncates by itself; leave truncation away")
        if compat not in (None, "drakes"):
            raise ArgumentError(f"compat must be None or 'drakes', got {compat!r}")
        if compat is not None and relaxed_steps is None:
            raise ArgumentError(
                "compat='drakes' needs relaxed_steps; without relaxed states its KL is always 0"
            )
        self.truncation = truncation
        self.kl_gradient = kl_gradient
        self.checkpointing = checkpointing
        self.temperature = temperature
        self.relaxed_steps = relaxed_steps
        self.compat = compat
        self._score = diffusion.relaxed_reward(reward)

    def settings(self) -> dict[str, Any]:
        """The method's name and arguments."""
        own = ("truncation", "kl_gradient", "checkpointing", "temperature", "relaxed_steps")
        named = {name: getattr(self, name) for name in (*own, "compat")}
        return {**super().settings(), **named}

    def collect(self, key: int, chains: Tensor, share: float, start: dict[str, Any]) -> Buffer:
        """Initial states; `loss` draws the paths and fills in what is reported of them."""
        x = self._pretrained.start(chains, start["prompt"], key).x
        buffer = Buffer(
            key=key,
            chains=chains,
            states=x[:, None].clone(),
            log_prob=None,
            log_reference=None,
            kl=torch.zeros((len(x), len(self.policy)), dtype=torch.float64, device=x.device),
            on_policy=torch.ones_like(chains, dtype=torch.bool),
            cond=start["cond"],
            reward=torch.zeros(len(x), dtype=torch.float64, device=x.device),
        )
        buffer.extra["start"] = x
        return buffer

    def loss(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """alpha KL - r of the paths, which are drawn here."""
        buffer, length = part.buffer, len(self.policy)
        paths = part.paths[::length]
        chains = buffer.chains[paths]
        cond = {name: rows[paths] for name, rows in buffer.cond.items()}
        draw = self._draw
        if isinstance(self._pretrained, MaskedDiffusion):
            draw = self._draw_tokens if self.relaxed_steps is None else self._draw_relaxed
        samples, final, kl = draw(buffer.key, chains, buffer.extra["start"][paths], cond)
        reward = self._score(final).double()
        assert buffer.kl is not None
        buffer.states[paths, 0], buffer.kl[paths] = samples.detach(), kl.detach()
        buffer.reward[paths] = reward.detach()
        return (self.alpha * kl.sum(dim=1) - reward).sum(), {}

    def _draw(
        self, key: int, chains: Tensor, x: Tensor, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A Gaussian path: its sample, twice, and the KL of each step [N, T]."""
        kept, divergence = self._kept(key, chains), []
        shape, first = x.shape, self._first_step()
        for number in range(len(self.policy)):
            with torch.set_grad_enabled(number >= first):
                index = torch.full_like(chains, number)
                output = self._output(self.policy.output, kept, number, x, index, cond)
                law: GaussianLaw = self.policy.law(x, output, index)
                with torch.set_grad_enabled(self.kl_gradient == "exact" and number >= first):
                    natural = self.reference.law(
                        x, self._call(self.reference.output, x, index, cond), index
                    )
                divergence.append(law.kl(natural))
                x = law.mean
                if self.policy.steps[number].varies:
                    noise = ops.philox_normal(
                        key, chains, number, Purpose.NOISE, num_elements=x[0].numel()
                    )
                    x = x + law.scaled(noise.view(shape))
        return x, x, torch.stack(divergence, dim=1)

    def _draw_tokens(
        self, key: int, chains: Tensor, x: Tensor, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A masked path: its tokens, the same as points with gradients, the KL of each step."""
        policy, diffusion = self.policy, self.policy.diffusion
        kept, divergence = self._kept(key, chains), []
        first = self._first_step()
        batch, relaxed = diffusion.batch(x), diffusion.relax(x)
        for number in range(len(policy)):
            with torch.set_grad_enabled(number >= first):
                index = torch.full_like(chains, number)
                logits = self._output(policy.relaxed_output, kept, number, relaxed, index, cond)
                law = policy.law(batch.x, logits, index)
                with torch.set_grad_enabled(self.kl_gradient == "exact" and number >= first):
                    natural = self.reference.law(
                        batch.x,
                        self._call(self.reference.relaxed_output, relaxed, index, cond),
                        index,
                    )
                divergence.append(law.kl(natural))
                following = policy.propose(batch, logits.detach(), number, key, chains)
                relaxed = revealed_softly(
                    relaxed,
                    law,
                    following.x,
                    key=key,
                    chains=chains,
                    step=number,
                    temperature=self.temperature,
                    drawn=policy.steps[number].varies,
                )
                batch = following
        return batch.x, relaxed[..., :-1], torch.stack(divergence, dim=1)

    def _draw_relaxed(
        self, key: int, chains: Tensor, x: Tensor, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A path that is relaxed at its end: tokens, points with gradients, KL of each step."""
        assert self.relaxed_steps is not None
        policy, length = self.policy, len(self.policy)
        first = max(0, length - self.relaxed_steps)
        batch, divergence = policy.diffusion.batch(x), []
        taken, natural = Recalling(policy), Recalling(self.reference)
        with torch.no_grad():
            for number in range(first):
                index = torch.full_like(chains, number)
                logits = taken.output(batch.x, index, cond)
                if self.compat is None:
                    law: MaskedLaw = policy.law(batch.x, logits, index)
                    divergence.append(law.kl(natural.at(batch.x, index, cond)))
                else:
                    divergence.append(torch.zeros_like(chains, dtype=torch.float64))
                batch = policy.propose(batch, logits, number, key, chains)
        relaxed = policy.diffusion.relax(batch.x)
        for number in range(first, length):
            relaxed, kl = self._call(self._relaxed_step, relaxed, number, key, chains, cond)
            divergence.append(kl)
        tokens, point = largest(relaxed)
        return tokens, point, torch.stack(divergence, dim=1)

    def _relaxed_step(
        self, relaxed: Tensor, number: int, key: int, chains: Tensor, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The relaxed states [N, L, V + 1] after step `number`, and its KL [N]."""
        diffusion, step = self.policy.diffusion, self.policy.steps[number]
        index = torch.full_like(chains, number)
        logits = self.policy.relaxed_output(relaxed, index, cond)
        with torch.set_grad_enabled(self.kl_gradient == "exact" and torch.is_grad_enabled()):
            natural = self.reference.relaxed_output(relaxed, index, cond)
        moved, kl = ops.gumbel_softmax_step(
            logits,
            relaxed.to(logits.dtype),
            rho=step.params[0],
            tau=self.temperature,
            seed=key,
            chains=chains,
            step=number,
            logits_ref=natural,
            temperature=diffusion.temperature,
        )
        if self.compat is not None:
            hard = hard_states(relaxed, diffusion.mask_token)
            law, other = (self.policy.law(hard, each, index) for each in (logits, natural))
            earlier = (1 - before.params[0] for before in self.policy.steps[:number])
            # released code has no fill, and so no KL of it
            kl = drakes_kl(law, other, relaxed, math.inf if step.clean else math.prod(earlier))
        if step.clean and not step.varies:
            probs = predicted(relaxed, logits, diffusion.temperature * self.temperature)
            moved = torch.cat([probs, torch.zeros_like(probs[..., :1])], dim=-1)
        return moved.to(relaxed.dtype), kl

    def _first_step(self) -> int:
        """The first step that anything is learned of."""
        if isinstance(self.truncation, int):
            return max(0, len(self.policy) - self.truncation)
        return 0

    def _kept(self, key: int, chains: Tensor) -> Tensor | None:
        """[N, T] bool: network outputs that are differentiated; None: all from the first step."""
        if not isinstance(self.truncation, str):
            return None
        length = len(self.policy)
        draw = ops.philox_uniform(key, chains, 0, Purpose.SELECT, num_elements=length)[:, 0]
        order = torch.arange(length, device=draw.device)
        if self.truncation == "random_path":
            return order >= (draw[:, :1] * length).floor()
        return draw < (order + 1) / length

    def _output(
        self, function: Callable[..., Tensor], kept: Tensor | None, number: int, *inputs: Any
    ) -> Tensor:
        """The policy's output before step `number`, a constant in the rows that are not kept."""
        output: Tensor = self._call(function, *inputs)
        if kept is None:
            return output
        rows = kept[:, number].view(-1, *[1] * (output.dim() - 1))
        return output.where(rows, output.detach())

    def _call(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """function(*inputs), recomputed in the backward pass if that was asked for."""
        if not self.checkpointing or not torch.is_grad_enabled():
            return function(*inputs)
        return checkpoint(function, *inputs, use_reentrant=False)
