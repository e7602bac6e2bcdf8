"""The likelihood of final tokens from one call of the network, as diffu-GRPO (d1) takes it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastguide.finetune.laws import MaskedLaw, MaskedLaws

Tensor = torch.Tensor


class TokenTerms(NamedTuple):
    """Terms of every token of P paths, [P, L] float64.

    Attributes:
        surrogate: -min(ratio A, clamp(ratio) A).
        kl: exp(g) - g - 1 with g = log reference - log policy of the token: the k3 estimate.
        ratio: policy over the policy that drew.   clipped: bool, where the clamp holds.
    """

    surrogate: Tensor
    kl: Tensor
    ratio: Tensor
    clipped: Tensor


def token_log_probs(
    laws: MaskedLaws, start: Tensor, clean: Tensor, cond: dict[str, Tensor]
) -> Tensor:
    """log p(clean | start) of each token by itself, [P, L] float64; 0 at sites that were given.

    Args:
        start: [P, L] initial states, all masks but for what a prompt gives.   clean: [P, L].
        cond: rows [P, ...] of conditioning.
    """
    law: MaskedLaw = laws.at(start, torch.zeros_like(start[:, 0]), cond)
    tokens = clean.where(law.masked, 0)[..., None]
    return law.log_probs.gather(-1, tokens)[..., 0].double().masked_fill(~law.masked, 0)


def token_terms(
    log_prob: Tensor, old: Tensor, natural: Tensor, advantage: Tensor, clip: tuple[float, float]
) -> TokenTerms:
    """Terms of log-probabilities [P, L] under the policy, the one that drew, and the reference.

    Args:
        advantage: [P, 1].   clip: least and greatest ratio.
    """
    low, high = clip
    ratio = (log_prob - old).exp()
    surrogate = -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    gap = natural - log_prob
    return TokenTerms(surrogate, gap.exp() - gap - 1, ratio, clipped)
