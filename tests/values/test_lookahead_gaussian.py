"""Lookahead along the noise levels of Gaussian chains: no noise, and the steps written out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from evaluating import values_of

import fastguide as fg
from fastguide.errors import ArgumentError


def shrink(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Some x0_hat."""
    return x / (1 + t.view(-1, 1).to(x.dtype))


ABAR = [0.99, 0.9, 0.7, 0.4, 0.1]
CHAINS: dict[str, Any] = {
    "ddpm": fg.GaussianDiffusion(shrink, (2,), alphas_cumprod=ABAR, prediction_type="sample"),
    "karras": fg.KarrasDiffusion(shrink, (2,), sigmas=[3.0, 1.0, 0.5, 0.2, 0.1]),
    "flow": fg.FlowMatching(lambda x, t: (x - shrink(x, t)) / t[:, None], (2,)),
}
# the level a state stands at, and (time, alpha, sigma) of the levels that two steps visit from it
LEVELS = {
    "ddpm": [(t, ABAR[t] ** 0.5, (1 - ABAR[t]) ** 0.5) for t in (4, 2, 1)],
    "karras": [(3.0, 1.0, 3.0), (0.5, 1.0, 0.5), (0.2, 1.0, 0.2)],
    "flow": [(0.75, 0.25, 0.75), (0.5, 0.5, 0.5), (0.25, 0.75, 0.25)],
}


def total(x: torch.Tensor) -> torch.Tensor:
    return x.sum(1)


@pytest.mark.parametrize("name", CHAINS)
def test_gaussian_steps_add_no_noise(name: str) -> None:
    x = torch.tensor([[1.0, -0.5], [0.3, 2.0]])
    (time, *_), *_ = levels = LEVELS[name]
    found = values_of(fg.values.Lookahead(total, 2), x, time=time, diffusion=CHAINS[name])
    y = x.double()
    for (t, a, s), (_, a2, s2) in pairwise(levels):
        x0 = shrink(y, torch.tensor([t, t]))
        y = a2 * x0 + s2 * (y - a * x0) / s
    t, _, _ = levels[-1]
    due = shrink(y, torch.tensor([t, t])).sum(1)
    torch.testing.assert_close(found, due, rtol=1e-5, atol=1e-5)


def test_gaussian_runs() -> None:
    for name, chain in CHAINS.items():
        value = fg.values.Lookahead(total, 2)
        sampler = fg.SVDD(chain, total, value, num_candidates=3, alpha=0.5)
        result = sampler.sample(4, num_steps=4, progress=False)
        # candidates of the first three steps: their own output, and as many more as levels are left
        ahead = {"ddpm": (2, 1, 0), "karras": (2, 1, 0), "flow": (2, 2, 2)}[name]
        assert result.cost.denoiser_rows == 4 * (1 + 3 * sum(1 + more for more in ahead))
        assert result.cost.denoiser_rows <= sampler.plan(4, num_steps=4).denoiser_rows
        with pytest.raises(ArgumentError, match=r"must be 1 for .*add no noise, got 2"):
            values_of(
                fg.values.Lookahead(total, 1, 2, tau=1), torch.zeros(1, 2), 1.0, diffusion=chain
            )
        with pytest.raises(ArgumentError, match="x0='sample' needs a law to draw from, but "):
            values_of(
                fg.values.Lookahead(total, 1, x0="sample"), torch.zeros(1, 2), 1.0, diffusion=chain
            )
