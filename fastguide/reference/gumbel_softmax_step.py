"""One relaxed masked step: reveal and token together, drawn by Gumbel-softmax."""

from __future__ import annotations

import torch

from fastguide.reference.masked_ppo import categorical_kl
from fastguide.reference.philox import check_chains, counter_word3, philox, seed_key
from fastguide.reference.ppo_terms import per_row

RELAX = 11


def gumbel_softmax_step(
    logits: torch.Tensor,
    x: torch.Tensor,
    *,
    rho: float | torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    logits_ref: torch.Tensor | None = None,
    temperature: float = 1.0,
    straight_through: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x' = (1 - m) x + m y, with m = x[..., V] the mask's share and y = softmax((log q + g) / tau).

    q is rho softmax(logits / temperature) for the V tokens and 1 - rho for the mask.

    Args:
        logits, logits_ref: [N, L, V] floating point.   x: [N, L, V + 1], rows of the simplex; the
            last column is the mask.   rho: number or [N].   tau: > 0.   chains: [N] int64.
        straight_through: the value is the one-hot of the largest entry of x', the first on ties;
            the gradient is that of x'.

    Returns:
        x' [N, L, V + 1] of the dtype of logits; kl [N] float64: rho times the sum over sites of
        m KL(softmax(logits / temperature) || softmax(logits_ref / temperature)), in nats, 0 without
        logits_ref.

    Raises:
        Fault: CHAIN.

    Noise: g = -log(-log u), u = (w + 1/2) 2^-32, w word e % 4 of block e // 4, where e = column +
        (V + 1) site; purpose RELAX.   Source: Jang et al. 2017 (arXiv 1611.01144); Wang et al. 2024
        (arXiv 2410.13643) for the step.
    """
    log_p, noisy = _noisy_logits(logits, rho, tau, seed, chains, step, temperature)
    y = noisy.softmax(-1)
    share = x[..., -1:].double()
    soft = (1 - share) * x.double() + share * y
    if straight_through:
        hard = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).double()
        soft = hard + (soft - soft.detach())
    if logits_ref is None:
        kl = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    else:
        log_q = (logits_ref.double() / temperature).log_softmax(-1)
        kl = per_row(rho, x, 1) * (share[..., 0] * categorical_kl(log_p, log_q)).sum(1)
    return soft.to(logits.dtype), kl


def _noisy_logits(
    logits: torch.Tensor,
    rho: float | torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p [N, L, V], (log q + g) / tau [N, L, V + 1])."""
    num_rows, length, vocab_size = logits.shape
    log_p = (logits.double() / temperature).log_softmax(-1)
    rates = per_row(rho, logits, 3)
    stay = torch.log1p(-rates).expand(num_rows, length, 1)
    log_q = torch.cat([torch.log(rates) + log_p, stay], -1)
    check_chains(chains)
    num_elements = length * (vocab_size + 1)
    blocks = torch.arange((num_elements + 3) // 4, device=logits.device)
    c3 = counter_word3(step, RELAX, logits.device)
    words = philox(blocks[None], torch.zeros_like(c3), chains[:, None], c3, seed_key(seed))
    word = torch.stack(words, -1).flatten(1)[:, :num_elements].view(log_q.shape)
    waiting = -torch.log((word.double() + 0.5) * 2.0**-32)
    return log_p, (log_q - torch.log(waiting)) / tau


def gumbel_softmax_step_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    rho: torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    logits_ref: torch.Tensor | None,
    temperature: float,
    d_next: torch.Tensor,
    d_kl: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients in logits, x and logits_ref from those in x' and kl."""
    log_p, noisy = _noisy_logits(logits, rho, tau, seed, chains, step, temperature)
    y, p = noisy.softmax(-1), log_p.exp()
    share, pull = x[..., -1:].double(), d_next.double()
    along = (pull * y).sum(-1, keepdim=True)
    d_log_q = (share / tau * y * (pull - along))[..., :-1]
    d_logits = d_log_q - p * d_log_q.sum(-1, keepdim=True)
    d_x = (1 - share) * pull
    d_share = along - (pull * x.double()).sum(-1, keepdim=True)
    d_ref = None
    if logits_ref is not None:
        log_q = (logits_ref.double() / temperature).log_softmax(-1)
        gap = torch.where(p > 0, log_p - log_q, 0.0)
        kl = (p * gap).sum(-1, keepdim=True)
        rate = (d_kl * rho)[:, None, None]
        d_logits = d_logits + rate * share * p * (gap - kl)
        d_share = d_share + rate * kl
        d_ref = (rate * share * (log_q.exp() - p) / temperature).to(logits_ref.dtype)
    d_x = torch.cat([d_x[..., :-1], d_x[..., -1:] + d_share], -1)
    return (d_logits / temperature).to(logits.dtype), d_x.to(x.dtype), d_ref
