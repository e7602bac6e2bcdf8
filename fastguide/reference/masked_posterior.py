"""Clean predictions of masked states: the mode, or samples keyed by the state."""

from __future__ import annotations

import torch

from fastguide.reference.categorical import chain_rows, pick, site_logits, token_weights
from fastguide.reference.faults import FaultCode, require
from fastguide.reference.philox import LOW, philox, seed_key, uniform53


def masked_posterior(
    logits: torch.Tensor,
    x: torch.Tensor,
    *,
    mask_token: int,
    index: torch.Tensor | None = None,
    num_samples: int = 0,
    keys: torch.Tensor | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    purpose: int = 5,
) -> torch.Tensor:
    """Fill the masked sites of each row; other sites are carried over.

    Args:
        logits: [U, L, V] float32|float64.   x: [R, L] int64.   index: [R] int64, row of logits;
            with logits [S, V]: [R, L], the row of each site.
        num_samples: 0 for the mode (first maximum), S > 0 for S independent draws.
        keys: [R, 2] int64, the state keys; they replace chain and step in the counter.

    Returns:
        [R, L] int64 for the mode, [R, S, L] int64 for samples.

    Raises:
        Fault: INDEX, TOKEN, LOGIT, NO_TOKEN.

    Noise: 53 bits of block (site, sample, low 32 bits of the key, next 24 bits << 8 | purpose).
    """
    num_rows = x.shape[0]
    device = x.device
    index = chain_rows(logits, index, num_rows, device)
    masked = x == mask_token
    require(masked | ((x >= 0) & (x < logits.shape[-1])), FaultCode.TOKEN, x)
    r, site = masked.nonzero(as_tuple=True)
    raw = site_logits(logits, index, r, site)
    weights = token_weights(raw, temperature, r, site)
    if num_samples == 0:
        mode = x.clone()
        # argmax of a boolean: the first maximum, whatever ties the backend prefers.
        mode[r, site] = (raw == raw.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1)
        return mode
    assert keys is not None
    samples = x[:, None, :].repeat(1, num_samples, 1)
    state = keys[r, 0]
    c2, c3 = state & LOW, (((state >> 32) & 0xFFFFFF) << 8) | purpose
    for s in range(num_samples):
        w0, w1, _, _ = philox(site, torch.tensor(s, device=device), c2, c3, seed_key(seed))
        samples[r, s, site] = pick(weights, uniform53(w0, w1))
    return samples
