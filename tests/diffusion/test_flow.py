"""FlowMatching: its steps, and its law on Gaussian data, where every chain is affine."""

from __future__ import annotations

import math

import exact_gaussian as exact
import numpy as np
import pytest
import torch

import fastguide as fg

STEPS = 12
MEAN, VAR = exact.DATA_MEAN, exact.DATA_SD**2


def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[noise - x0 | x_t = x] for data N(MEAN, VAR)."""
    assert t.dtype == torch.float32
    t = t.double()[:, None]
    gain = (1 - t) * VAR / ((1 - t) ** 2 * VAR + t**2)
    clean = MEAN + gain * (x - (1 - t) * MEAN)
    return (x - clean) / t


def affine(eta: float) -> exact.Chain:
    """The chain by hand: Euler's step of the ODE at eta = 0, all noise anew at eta = 1."""
    A, b, var = np.zeros((3, STEPS + 1))
    for i in range(1, STEPS + 1):
        t, after = i / STEPS, (i - 1) / STEPS
        gain = (1 - t) * VAR / ((1 - t) ** 2 * VAR + t**2)
        rest = MEAN * (1 - gain * (1 - t))  # x0_hat = gain x + rest
        if eta == 0:
            A[i] = 1 - (t - after) * (1 - gain) / t
            b[i] = (t - after) * rest / t
        else:
            var[i] = (after * math.sin(eta * math.pi / 2)) ** 2
            kept = math.sqrt(after**2 - var[i]) / t
            A[i] = (1 - after) * gain + kept * (1 - (1 - t) * gain)
            b[i] = ((1 - after) - kept * (1 - t)) * rest
    return exact.Chain(A, b, var)


@pytest.mark.parametrize("eta", [0, 0.4, 1])
def test_law(eta):
    d = fg.FlowMatching(velocity, (100,), eta=eta)
    draws = fg.Unguided(d).sample(2000, num_steps=STEPS, progress=False).samples
    mean, var = affine(eta).law()
    assert exact.ks_p(draws, mean, var) > 1e-6
    assert max(map(abs, exact.z_scores(draws, mean, var))) < 5
    other = affine(1 if eta < 1 else 0.4)
    assert exact.ks_p(draws, *other.law()) < 1e-6


def test_fine_steps_return_the_data():
    for eta in (0, 0.1):
        d = fg.FlowMatching(velocity, (100,), eta=eta)
        draws = fg.Unguided(d).sample(50, num_steps=400, progress=False).samples
        assert float(draws.mean()) == pytest.approx(MEAN, abs=0.05)
        assert float(draws.var()) == pytest.approx(VAR, abs=0.05)


@pytest.mark.parametrize("eta", [0, 0.4, 1])
def test_steps(eta):
    steps = fg.FlowMatching(velocity, (2,), eta=eta).steps(4)
    assert [step.time for step in steps] == [1, 0.75, 0.5, 0.25]
    assert [step.next_time for step in steps] == [0.75, 0.5, 0.25, 0]
    assert [step.varies for step in steps] == [eta > 0] * 3 + [False]
    assert [step.clean for step in steps] == [False] * 3 + [True]
    for step in steps:
        assert step.params[2] == pytest.approx(step.next_time * math.sin(eta * math.pi / 2))
    assert steps[-1].params == (0.0, 1.0, 0.0)


def test_svdd_reaches_a_higher_reward_only_with_noise():
    def run(eta: float, num: int) -> torch.Tensor:
        d = fg.FlowMatching(velocity, (1,), eta=eta)
        sampler = fg.SVDD(d, exact.linear_reward, num_candidates=num, alpha=exact.ALPHA)
        return sampler.sample(500, num_steps=STEPS, progress=False).samples

    assert torch.equal(run(0, 1), run(0, 8))
    assert float(run(1, 8).mean()) > float(run(1, 1).mean()) + 0.5


def test_errors_name_the_fix():
    with pytest.raises(fg.FastguideError, match=r"eta must lie in \[0, 1\]"):
        fg.FlowMatching(velocity, (2,), eta=-0.1)
    with pytest.raises(fg.FastguideError, match="velocity must be callable"):
        fg.FlowMatching(None, (2,))
    narrow = fg.Unguided(fg.FlowMatching(lambda x, t: x[:, :1], (2,)))
    with pytest.raises(fg.FastguideError, match=r"velocity must return \[3, 2\], got \[3, 1\]"):
        narrow.sample(3, num_steps=2, progress=False)
    with pytest.raises(fg.FastguideError, match="num_steps must be at least 1"):
        fg.FlowMatching(velocity, (2,)).steps(0)
