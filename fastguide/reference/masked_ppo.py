"""PPO terms of one masked step: token log-probabilities, clipped surrogate, KL to a reference."""

from __future__ import annotations

import torch

from fastguide.reference.faults import FaultCode, require
from fastguide.reference.ppo_terms import Terms, per_row, ppo_terms


def masked_ppo(
    logits: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    *,
    mask_token: int,
    rho: float | torch.Tensor,
    clip: tuple[float, float],
    logits_ref: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> Terms:
    """Terms of the step x -> x_next, where every masked site is revealed with probability rho.

    Args:
        logits, logits_ref: [N, L, V] floating point; p = softmax(logits / temperature), and q of
            logits_ref likewise; None: kl is 0.
        x, x_next: [N, L] int64.   old_log_prob, advantage: [N].   rho: number or [N].
        clip: least and greatest ratio.

    Returns:
        surrogate, kl, log_prob, ratio [N] float64, clipped [N] bool. log_prob is the sum of
        log p(x_next) over the sites revealed in this step; the probability of revealing them does
        not depend on the logits and is left out. kl = rho times the sum over the masked sites of
        KL(p || q), in nats: exact for a reveal that does not depend on the logits.

    Raises:
        Fault: TOKEN, an entry that is neither the mask nor in [0, V).
    """
    n, site, token, revealed = masked_sites(x, x_next, mask_token, logits.shape[-1])
    log_p = (logits[n, site].double() / temperature).log_softmax(-1)
    zeros = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    chosen = log_p.gather(1, token[:, None])[:, 0]
    log_prob = zeros.index_add(0, n, torch.where(revealed, chosen, 0.0))
    if logits_ref is None:
        kl = zeros
    else:
        log_q = (logits_ref[n, site].double() / temperature).log_softmax(-1)
        rates = per_row(rho, x, 1)
        kl = rates * zeros.index_add(0, n, categorical_kl(log_p, log_q))
    return ppo_terms(log_prob, kl, old_log_prob.double(), advantage.double(), clip)


def masked_sites(
    x: torch.Tensor, x_next: torch.Tensor, mask_token: int, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(row, site, token it takes, whether it takes one) of every masked site, each [R].

    Raises:
        Fault: TOKEN, an entry of x, or of x_next where x is masked, that is neither the mask nor in
            [0, vocab_size).
    """
    masked = x == mask_token
    require(masked | ((x >= 0) & (x < vocab_size)), FaultCode.TOKEN, x)
    revealed = masked & (x_next != mask_token)
    require(~revealed | ((x_next >= 0) & (x_next < vocab_size)), FaultCode.TOKEN, x_next)
    n, site = masked.nonzero(as_tuple=True)
    revealed = revealed[n, site]
    return n, site, torch.where(revealed, x_next[n, site], 0), revealed


def categorical_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) over the last dimension; a token of p = 0 adds nothing."""
    gap = torch.where(log_p == -torch.inf, 0.0, log_p - log_q)
    return (log_p.exp() * gap).sum(-1)


def site_terms(
    logits: torch.Tensor,
    x: torch.Tensor,
    mask_token: int,
    logits_ref: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """[N, L, 3] float64: log normaliser, that of the reference, and KL; 0 off the mask."""
    masked = x == mask_token
    found = torch.zeros(*x.shape, 3, dtype=torch.float64, device=x.device)
    z = logits[masked].double() / temperature
    found[..., 0][masked] = z.logsumexp(-1)
    if logits_ref is not None:
        z_ref = logits_ref[masked].double() / temperature
        found[..., 1][masked] = z_ref.logsumexp(-1)
        found[..., 2][masked] = categorical_kl(z.log_softmax(-1), z_ref.log_softmax(-1))
    return found


def masked_ppo_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    mask_token: int,
    rho: torch.Tensor,
    logits_ref: torch.Tensor | None,
    temperature: float,
    d_log_prob: torch.Tensor,
    d_kl: torch.Tensor,
) -> torch.Tensor:
    """Gradient in logits, of their dtype, from those in log_prob and kl [N]; 0 off the mask."""
    n, site, token, revealed = masked_sites(x, x_next, mask_token, logits.shape[-1])
    log_p = (logits[n, site].double() / temperature).log_softmax(-1)
    p = log_p.exp()
    weight = torch.where(revealed, d_log_prob[n], 0.0)[:, None]
    gradient = (-weight * p).scatter_add(1, token[:, None], weight)
    if logits_ref is not None:
        log_q = (logits_ref[n, site].double() / temperature).log_softmax(-1)
        gap = torch.where(p > 0, log_p - log_q, 0.0)
        kl = (p * gap).sum(-1, keepdim=True)
        gradient = gradient + (d_kl * rho)[n][:, None] * p * (gap - kl)
    result = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
    result[n, site] = (gradient / temperature).to(logits.dtype)
    return result
