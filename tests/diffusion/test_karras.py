"""KarrasDiffusion: its steps, and its law on Gaussian data, where every chain is affine."""

from __future__ import annotations

import math

import exact_gaussian as exact
import numpy as np
import pytest
import torch

import fastguide as fg
from fastguide.diffusion import karras_sigmas

MEAN, VAR = exact.DATA_MEAN, exact.DATA_SD**2
SIGMAS = karras_sigmas(12, sigma_min=0.05, sigma_max=20)


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """D(x, sigma) for data N(MEAN, VAR)."""
    assert sigma.dtype == torch.float32
    noise = sigma.double().square()[:, None]
    return MEAN + VAR / (VAR + noise) * (x - MEAN)


def affine(eta: float) -> exact.Chain:
    """x + (x - D)(sigma_down - sigma) / sigma + sigma_up noise, by hand."""
    levels = [0.0, *SIGMAS[::-1]]
    A, b, var = np.zeros((3, len(levels)))
    for i in range(1, len(levels)):
        sigma, after = levels[i], levels[i - 1]
        var[i] = eta**2 * after**2 * (1 - after**2 / sigma**2)
        slope = (math.sqrt(after**2 - var[i]) - sigma) / sigma
        gain = VAR / (VAR + sigma**2)
        A[i] = 1 + (1 - gain) * slope
        b[i] = -(1 - gain) * MEAN * slope
    return exact.Chain(A, b, var, prior_var=SIGMAS[0] ** 2)


@pytest.mark.parametrize("eta", [0, 0.5, 1])
def test_law(eta):
    d = fg.KarrasDiffusion(denoiser, (100,), sigmas=SIGMAS, eta=eta)
    draws = fg.Unguided(d).sample(2000, num_steps=len(SIGMAS), progress=False).samples
    mean, var = affine(eta).law()
    assert exact.ks_p(draws, mean, var) > 1e-6
    assert max(map(abs, exact.z_scores(draws, mean, var))) < 5
    other = affine(1 if eta < 1 else 0.5)
    assert exact.ks_p(draws, *other.law()) < 1e-6


def test_steps():
    steps = fg.KarrasDiffusion(denoiser, (2,), sigmas=[8.0, 2.0, 0.5]).steps(3)
    assert [(step.time, step.next_time) for step in steps] == [(8, 2), (2, 0.5), (0.5, 0)]
    assert [step.varies for step in steps] == [True, True, False]
    assert steps[0].params == pytest.approx((1 / 16, 15 / 16, 2 * math.sqrt(15 / 16)))
    assert steps[-1].params == (0.0, 1.0, 0.0)
    fewer = fg.KarrasDiffusion(denoiser, (2,), sigmas=[8.0, 4.0, 2.0, 1.0, 0.5, 0.25]).steps(3)
    assert [step.time for step in fewer] == [8, 2, 0.5]


def test_karras_sigmas():
    sigmas = karras_sigmas(18)
    assert sigmas[0] == pytest.approx(80)
    assert sigmas[-1] == pytest.approx(0.002)
    roots = np.array(sigmas) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0])
    assert karras_sigmas(1, sigma_max=5.0) == pytest.approx([5])


def test_prior_has_the_first_level():
    d = fg.KarrasDiffusion(denoiser, (1000,), sigmas=[30.0, 1.0])
    assert float(d.start(torch.arange(20), None, 0).x.std()) == pytest.approx(30, rel=0.03)


def test_errors_name_the_fix():
    for sigmas, text in (
        ([1.0, 0.0], "sigmas must be positive, got 0; the clean level"),
        ([1.0, 2.0], "sigmas must decrease strictly, but entry 1 is 2 after 1"),
        ([], "sigmas must hold at least one level"),
    ):
        with pytest.raises(fg.FastguideError, match=text):
            fg.KarrasDiffusion(denoiser, (2,), sigmas=sigmas)
    with pytest.raises(fg.FastguideError, match=r"num_steps must lie in \[1, 2\]"):
        fg.KarrasDiffusion(denoiser, (2,), sigmas=[2.0, 1.0]).steps(3)
    with pytest.raises(fg.FastguideError, match="0 < sigma_min < sigma_max"):
        karras_sigmas(4, sigma_min=0.0)
