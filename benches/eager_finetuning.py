"""Fine-tuning loops as published code spells them: a Python loop of steps, formulas term by term.

Written from the descriptions: DDPO with the KL in the return, DRAKES, reward-weighted denoising.
They do the work that the method asks for: one row of the policy and one of the reference for every
step of a rollout, the reference's outputs kept, and one row with its gradient for every
(path, step) of an update. Released DRAKES calls the policy a second time, with a gradient, on every
state for its KL; `second_pass` does too. Noise comes from torch's own generator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor


def trained_copy(network: nn.Module, learning_rate: float) -> tuple[nn.Module, Any]:
    """A copy to train, and its optimiser."""
    policy = copy.deepcopy(network).requires_grad_(True)
    return policy, torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)


def step_of(policy: nn.Module, optimizer: Any) -> None:
    nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def returns_to_go(reward: Tensor, kl: Tensor, alpha: float) -> Tensor:
    """[N, T]: centred return of each step, with the KL of the later ones."""
    later = kl.flip(1).cumsum(1).flip(1) - kl
    returns = reward[:, None].double() - alpha * later
    return returns - returns.mean(dim=0)


def gaussian_ppo(
    network: nn.Module,
    reward: Callable[[Tensor], Tensor],
    *,
    steps: list[tuple[float, float, float, float, float, float, bool]],
    shape: tuple[int, ...],
    num_samples: int,
    iterations: int,
    minibatches: int,
    alpha: float,
    clip: float,
    learning_rate: float,
) -> dict[str, float]:
    """PPO on x' ~ N(a x + b x0, s^2) with x0 = p x + q network(x, t).

    steps: (t, a, b, s, p, q, whether it draws noise).
    """
    policy, optimizer = trained_copy(network, learning_rate)
    dims = tuple(range(1, len(shape) + 1))

    def mean(model: nn.Module, x: Tensor, step: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        t, a, b, _, p, q, _ = step
        output = model(x, torch.full((len(x),), t))
        return a * x + b * (p * x + q * output), output

    def log_density(x: Tensor, mu: Tensor, s: float) -> Tensor:
        return (-((x - mu) ** 2) / (2 * s**2) - torch.log(torch.tensor(s))).sum(dim=dims)

    row: dict[str, float] = {}
    for _ in range(iterations):
        x = torch.randn(num_samples, *shape)
        states, old, natural, kls = [x], [], [], []
        with torch.no_grad():
            for step in steps:
                mu, _ = mean(policy, x, step)
                mu_ref, _ = mean(network, x, step)
                s = step[3]
                kls.append(((mu - mu_ref) ** 2 / (2 * s**2)).sum(dim=dims))
                x = mu + s * torch.randn_like(mu) if step[6] else mu
                old.append(log_density(x, mu, s))
                natural.append(mu_ref)
                states.append(x)
            rewards = reward(x)
        kl = torch.stack(kls, dim=1)
        advantage = returns_to_go(rewards, kl, alpha) * torch.tensor([step[6] for step in steps])
        total = 0.0
        for some in torch.randperm(num_samples).chunk(minibatches):
            for j in torch.randperm(len(steps)).tolist():
                mu, _ = mean(policy, states[j][some], steps[j])
                s, gain = steps[j][3], advantage[some, j]
                ratio = torch.exp(log_density(states[j + 1][some], mu, s) - old[j][some])
                bounded = torch.clamp(ratio, 1 - clip, 1 + clip)
                surrogate = torch.maximum(-gain * ratio, -gain * bounded)
                local = ((mu - natural[j][some]) ** 2 / (2 * s**2)).sum(dim=dims)
                loss = (surrogate + alpha * local).mean()
                loss.backward()
                total += float(loss.detach()) / minibatches
            step_of(policy, optimizer)
        row = {"reward": float(rewards.mean()), "kl": float(kl.sum(dim=1).mean()), "loss": total}
    return row


def reveal(x: Tensor, probs: Tensor, rho: float, mask: int) -> Tensor:
    """A masked step by Gumbel-argmax over the tokens and the mask."""
    weights = torch.cat([rho * probs, torch.full((*x.shape, 1), 1 - rho)], dim=-1)
    gumbel = -torch.log(-torch.log(torch.rand_like(weights).clamp(1e-10, 1 - 1e-7)))
    drawn = (torch.log(weights + 1e-30) + gumbel).argmax(dim=-1)
    return torch.where(x == mask, drawn, x)


def token_log_prob(log_p: Tensor, x: Tensor, following: Tensor, mask: int) -> Tensor:
    """[N]: of the tokens revealed between x and following."""
    revealed = (x == mask) & (following != mask)
    token = log_p.gather(-1, following.masked_fill(~revealed, 0)[..., None])[..., 0]
    return (token * revealed).sum(dim=1)


def masked_kl(log_p: Tensor, log_q: Tensor, x: Tensor, rho: float, mask: int) -> Tensor:
    """[N]: of one step."""
    return rho * ((log_p.exp() * (log_p - log_q)).sum(dim=-1) * (x == mask)).sum(dim=1)


def relaxed_kl(log_p: Tensor, log_q: Tensor, x: Tensor) -> Tensor:
    """[N]: of the masked shares of relaxed states."""
    return (x[..., -1] * (log_p.exp() * (log_p - log_q)).sum(dim=-1)).sum(dim=1)


def masked_ppo(
    network: nn.Module,
    reward: Callable[[Tensor], Tensor],
    *,
    rates: list[float],
    length: int,
    mask: int,
    num_samples: int,
    iterations: int,
    minibatches: int,
    alpha: float,
    clip: float,
    learning_rate: float,
) -> dict[str, float]:
    """PPO on a chain that reveals masked sites at `rates`."""
    policy, optimizer = trained_copy(network, learning_rate)

    def log_probs(model: nn.Module, x: Tensor) -> Tensor:
        log_p: Tensor = model(x, torch.zeros(len(x)))[..., :mask].log_softmax(dim=-1)
        return log_p

    row: dict[str, float] = {}
    for _ in range(iterations):
        x = torch.full((num_samples, length), mask)
        states, old, natural, kls = [x], [], [], []
        with torch.no_grad():
            for rho in rates:
                log_p, log_q = log_probs(policy, x), log_probs(network, x)
                kls.append(masked_kl(log_p, log_q, x, rho, mask))
                following = reveal(x, log_p.exp(), rho, mask)
                old.append(token_log_prob(log_p, x, following, mask))
                natural.append(log_q)
                states.append(following)
                x = following
            rewards = reward(x)
        kl = torch.stack(kls, dim=1)
        advantage = returns_to_go(rewards, kl, alpha)
        total = 0.0
        for some in torch.randperm(num_samples).chunk(minibatches):
            for j in torch.randperm(len(rates)).tolist():
                before, after = states[j][some], states[j + 1][some]
                log_p, gain = log_probs(policy, before), advantage[some, j]
                ratio = torch.exp(token_log_prob(log_p, before, after, mask) - old[j][some])
                bounded = torch.clamp(ratio, 1 - clip, 1 + clip)
                surrogate = torch.maximum(-gain * ratio, -gain * bounded)
                local = masked_kl(log_p, natural[j][some], before, rates[j], mask)
                loss = (surrogate + alpha * local).mean()
                loss.backward()
                total += float(loss.detach()) / minibatches
            step_of(policy, optimizer)
        row = {"reward": float(rewards.mean()), "kl": float(kl.sum(dim=1).mean()), "loss": total}
    return row


def drakes(
    network: Any,
    reward: Any,
    *,
    rates: list[float],
    relaxed_steps: int,
    length: int,
    mask: int,
    num_samples: int,
    iterations: int,
    alpha: float,
    tau: float,
    learning_rate: float,
    second_pass: bool = False,
) -> dict[str, float]:
    """Hard steps, then relaxed ones, with the KL of masked sites; straight through at the end."""
    trained, optimizer = trained_copy(network, learning_rate)
    policy: Any = trained
    zeros, row = torch.zeros(num_samples), {}
    first = len(rates) - relaxed_steps
    for _ in range(iterations):
        hard = torch.full((num_samples, length), mask)
        total_kl, states = torch.zeros(num_samples), []
        with torch.no_grad():
            for rho in rates[:first]:
                log_p = policy(hard, zeros)[..., :mask].log_softmax(dim=-1)
                if second_pass:
                    states.append(nn.functional.one_hot(hard, mask + 1).float())
                else:
                    log_q = network(hard, zeros)[..., :mask].log_softmax(dim=-1)
                    total_kl += masked_kl(log_p, log_q, hard, rho, mask)
                hard = reveal(hard, log_p.exp(), rho, mask)
        x = nn.functional.one_hot(hard, mask + 1).float()
        for rho in rates[first:]:
            log_p = policy.soft(x, zeros)[..., :mask].log_softmax(dim=-1)
            p, share = log_p.exp(), x[..., -1:]
            if second_pass:
                states.append(x)
            else:
                log_q = network.soft(x, zeros)[..., :mask].log_softmax(dim=-1)
                total_kl = total_kl + rho * relaxed_kl(log_p, log_q, x)
            weights = torch.cat([rho * p, torch.full_like(share, 1 - rho)], dim=-1)
            gumbel = -torch.log(-torch.log(torch.rand_like(weights).clamp(1e-10, 1 - 1e-7)))
            y = ((torch.log(weights + 1e-10) + gumbel) / tau).softmax(dim=-1)
            x = (1 - share) * x + share * y
        for state, rho in zip(states, rates, strict=False):
            log_p = policy.soft(state, zeros)[..., :mask].log_softmax(dim=-1)
            log_q = network.soft(state, zeros)[..., :mask].log_softmax(dim=-1)
            total_kl = total_kl + rho * relaxed_kl(log_p, log_q, state)
        soft = x[..., :mask]
        onehot = nn.functional.one_hot(soft.argmax(dim=-1), mask).float()
        rewards = reward.soft(onehot + soft - soft.detach())
        loss = (alpha * total_kl - rewards).mean()
        loss.backward()
        step_of(policy, optimizer)
        row = {
            "reward": float(rewards.detach().mean()),
            "kl": float(total_kl.detach().mean()),
            "loss": float(loss.detach()),
        }
    return row


def weighted_denoising(
    network: nn.Module,
    reward: Callable[[Tensor], Tensor],
    *,
    rates: list[float],
    length: int,
    mask: int,
    num_samples: int,
    iterations: int,
    alpha: float,
    learning_rate: float,
) -> dict[str, float]:
    """SUBS cross-entropy of reference samples, noised at every step, with weights e^(r/alpha)."""
    policy, optimizer = trained_copy(network, learning_rate)
    zeros, row = torch.zeros(num_samples), {}
    for _ in range(iterations):
        x = torch.full((num_samples, length), mask)
        with torch.no_grad():
            for rho in rates:
                x = reveal(x, network(x, zeros)[..., :mask].softmax(dim=-1), rho, mask)
            rewards = reward(x)
        weight = (rewards.double() / alpha).softmax(dim=0)
        total, chance = 0.0, 1.0
        for rho in rates:
            masked = torch.rand(x.shape) < chance
            noised = torch.where(masked, mask, x)
            log_p = policy(noised, zeros)[..., :mask].log_softmax(dim=-1)
            token = log_p.gather(-1, x[..., None])[..., 0]
            loss = -(weight * rho * (token * masked).sum(dim=1)).sum()
            loss.backward()
            total += float(loss.detach())
            chance *= 1 - rho
        step_of(policy, optimizer)
        row = {"reward": float(rewards.mean()), "loss": total}
    return row
