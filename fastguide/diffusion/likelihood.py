"""Likelihoods and the training loss of masked diffusion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastguide import ops
from fastguide.diffusion.schedules import T_MIN, hazard, invert
from fastguide.errors import ArgumentError
from fastguide.modes import evaluation_mode
from fastguide.rng import Purpose, chain_ids, check_seed

if TYPE_CHECKING:
    from fastguide.diffusion.masked import MaskedDiffusion

Tensor = torch.Tensor


def token_log_probs(diffusion: MaskedDiffusion, logits: Tensor, tokens: Tensor) -> Tensor:
    """log p_l(token) per site under the diffusion's temperature: [B, L, V], [B, L] -> [B, L]."""
    log_probs = (logits / diffusion.temperature).log_softmax(dim=-1)
    return log_probs.gather(-1, tokens.clamp_max(diffusion.vocab_size - 1)[..., None])[..., 0]


def mask_levels(length: int, num_masks: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Stratified, antithetic mask sets for the bound.

    The number n of masked sites is stratified over 1..L. Levels come in pairs that share one
    vector of uniform site keys u: the first masks the n smallest of u, the second those of 1 - u.

    Returns:
        masked [num_masks, L] bool; count n [num_masks] int64; chance [num_masks] float64, the n-th
        smallest key: given n it is the move chance of the noise level at which n sites are masked.
    """
    pairs = (num_masks + 1) // 2
    keys = ops.philox_uniform(seed, chain_ids(pairs), 0, Purpose.MASK, num_elements=length + 1)
    keys = keys[:, 0, :]
    # one offset for all levels: a stratified sample of (0, 1)
    levels = (torch.arange(num_masks, dtype=torch.float64) + keys[0, length]) / num_masks
    count = (levels * length).floor().long().clamp(0, length - 1) + 1
    # level j is paired with the level of opposite depth, so a pair covers most sites
    order = torch.arange(num_masks)
    pair = torch.minimum(order, num_masks - 1 - order)
    sites = keys[pair, :length]
    sites = torch.where((order * 2 >= num_masks)[:, None], 1 - sites, sites)
    chance = sites.sort(dim=-1).values.gather(1, (count - 1)[:, None])
    return sites <= chance, count, chance[:, 0]


def elbo(
    diffusion: MaskedDiffusion,
    x: Tensor,
    *,
    num_masks: int = 64,
    seed: int = 0,
    max_rows: int = 1024,
) -> Tensor:
    """Monte Carlo estimate of a lower bound of log p(x), [B, L] int64 -> [B] float64, nats.

    The continuous-time bound in its order-agnostic form: -log p(x) <= E_n[(L/n) sum over the n
    masked sites of -log p_l(x_l | rest)], n uniform on 1..L. It does not depend on the schedule;
    a time-conditioned denoiser is given the time at which n of L sites are masked. Every row sees
    the same masks, so differences between rows are less noisy than the rows themselves.

    Args:
        x: [B, L] clean tokens.   num_masks: masks averaged over, stratified and antithetic.
        seed: of the masks.   max_rows: most rows of one denoiser call.
    Raises:
        ArgumentError: num_masks < 1, or x holds a mask.
    Source: Sahoo et al. 2024 (arXiv 2406.07524) eq. 10; Hoogeboom et al. 2022 (arXiv 2110.02037)
        eq. 5 for the order-agnostic form.
    """
    if num_masks < 1:
        raise ArgumentError(f"num_masks must be at least 1, got {num_masks}")
    check_seed(seed)
    x = diffusion.check_tokens(x, "x", clean=True)
    length = diffusion.length
    masked, count, chance = mask_levels(length, num_masks, seed)
    masked, weight = masked.to(x.device), (length / count.double()).to(x.device)
    ceiling = diffusion.schedule(torch.ones(1, dtype=torch.float64))
    times = invert(diffusion.schedule, chance * ceiling).to(x.device)
    row = torch.arange(x.shape[0] * num_masks, device=x.device)
    terms = []
    with evaluation_mode(diffusion.denoiser, diffusion.head):
        for part in row.split(max_rows):
            clean, level = x[part // num_masks], part % num_masks
            hidden = masked[level]
            noisy = clean.masked_fill(hidden, diffusion.mask_token)
            logits = diffusion.logits(noisy, times[level])
            log_p = token_log_probs(diffusion, logits, clean).double()
            terms.append(log_p.masked_fill(~hidden, 0).sum(dim=-1) * weight[level])
    if not terms:
        return torch.zeros(0, dtype=torch.float64, device=x.device)
    return torch.cat(terms).view(-1, num_masks).mean(dim=-1)


def subs_loss(
    diffusion: MaskedDiffusion, x: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """SUBS training loss per row, [B, L] -> [B] nats; differentiable in the denoiser's parameters.

    (a'(t)/a(t)) times the cross-entropy at masked sites, with t stratified over the batch and each
    site masked with probability a(t). Its mean over t is the negative bound of `elbo`.
    Source: Sahoo et al. 2024 (arXiv 2406.07524), eq. 10.
    """
    x = diffusion.check_tokens(x, "x", clean=True)
    rows = x.shape[0]
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    strata = torch.randperm(rows, generator=generator).double()
    t = (T_MIN + (1 - T_MIN) * ((strata + offset) / max(rows, 1))).to(x.device)
    site = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    hidden = site < diffusion.schedule(t)[:, None]
    logits = diffusion.logits(x.masked_fill(hidden, diffusion.mask_token), t)
    log_p = token_log_probs(diffusion, logits, x).masked_fill(~hidden, 0)
    return -log_p.sum(dim=-1) * hazard(diffusion.schedule, t).to(log_p.dtype)


def transition_log_prob(
    diffusion: MaskedDiffusion, x_t: Tensor, x_s: Tensor, step: int, num_steps: int
) -> Tensor:
    """log p(x_s | x_t) of transition `step` of `num_steps`, [B, L] x 2 -> [B] float64, nats.

    step == num_steps is the fill. Impossible transitions get -inf. Differentiable in the
    denoiser's parameters. Source: Sahoo et al. 2024 (arXiv 2406.07524), eq. 4-6.
    """
    if not 0 <= step <= num_steps:
        raise ArgumentError(
            f"step must lie in [0, num_steps] (num_steps is the fill), got {step} of {num_steps}"
        )
    x_t = diffusion.check_tokens(x_t, "x_t", clean=False)
    x_s = diffusion.check_tokens(x_s, "x_s", clean=False)
    move = diffusion.steps(num_steps)[step]
    (rho,) = move.params
    t = torch.full((x_t.shape[0],), move.time, device=x_t.device)
    logits = diffusion.logits(x_t, t)
    was_masked, is_masked = x_t == diffusion.mask_token, x_s == diffusion.mask_token
    if move.clean and not move.varies:
        mode = logits.argmax(dim=-1)
        log_token = torch.zeros_like(mode, dtype=torch.float64)
        log_token = log_token.masked_fill(mode != x_s, float("-inf"))
    else:
        log_token = token_log_probs(diffusion, logits, x_s).double()
    log_rho = torch.tensor(rho, dtype=torch.float64, device=x_t.device).log()
    log_stay = torch.tensor(-rho, dtype=torch.float64, device=x_t.device).log1p()
    site = torch.where(is_masked, log_stay, log_rho + log_token)
    site = torch.where(
        was_masked, site, torch.zeros_like(site).masked_fill(x_s != x_t, float("-inf"))
    )
    return site.sum(dim=-1)
