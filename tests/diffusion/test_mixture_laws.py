"""TC-C: SVDD on a mixture with its exact kernel, against laws by quadrature."""

from __future__ import annotations

from functools import cache

import exact_mixture as exact
import numpy as np
import pytest
import torch

import fastguide as fg

P_MIN = 1e-6
PUBLISHED = {  # mean, variance, P(x < 0) at M = 4, 10 and 100
    ("linear", "exact"): [
        (0.9295, 0.5090, 0.0782),
        (1.0418, 0.3949, 0.0473),
        (1.0993, 0.3454, 0.0345),
    ],
    ("linear", "pm"): [
        (0.9909, 0.4557, 0.0619),
        (1.1038, 0.3469, 0.0345),
        (1.1602, 0.3033, 0.0240),
    ],
    ("quadratic", "exact"): [
        (0.4587, 0.3894, 0.1520),
        (0.4924, 0.2749, 0.1145),
        (0.5058, 0.2212, 0.0957),
    ],
    ("quadratic", "mean"): [
        (0.5541, 0.2613, 0.0906),
        (0.5658, 0.1749, 0.0626),
        (0.5635, 0.1434, 0.0523),
    ],
    ("quadratic", "pm"): [
        (0.4867, 0.2743, 0.1150),
        (0.4997, 0.1832, 0.0849),
        (0.4955, 0.1537, 0.0759),
    ],
}
law_of = cache(exact.output_law)


@cache
def draw(reward: str, kind: str, num: int, draws: int) -> torch.Tensor:
    sampler = fg.SVDD(
        exact.MixtureDiffusion(),
        exact.reward(reward),
        exact.value(reward, kind),
        num_candidates=num,
        alpha=exact.ALPHAS[reward],
        select_initial=True,
    )
    return sampler.sample(draws, num_steps=exact.STEPS, progress=False).samples


def test_point_check(monkeypatch):
    x = np.array([0.3])
    weights, means, variances = exact.components(x, 0.4)
    np.testing.assert_allclose(weights[:, 0], [0.195726, 0.804274], atol=1e-6)
    np.testing.assert_allclose(means[:, 0], [-1.105226, 0.849371], atol=1e-6)
    np.testing.assert_allclose(variances[:, 0], [0.084906, 0.178414], atol=1e-6)
    monkeypatch.setattr(exact, "ABAR", np.array([1.0, 0.4]))
    for reward, kind, due in (
        ("linear", "exact", 0.653800),
        ("linear", "pm", 0.373445),
        ("linear", "mean", 0.373445),
        ("quadratic", "exact", -0.472249),
    ):
        assert exact.value_of(reward, kind, x, 1)[0] == pytest.approx(due, abs=1e-6)


def test_targets():
    weights, means, variances, log_z = exact.target("linear")
    np.testing.assert_allclose([*weights, *means], [0.028775, 0.971225, -1.08, 1.17], atol=1e-6)
    assert (log_z, weights @ means) == pytest.approx((0.978415, 1.105255), abs=1e-6)
    weights, means, variances, log_z = exact.target("quadratic")
    due = [0.056411, 0.943589, -0.829412, 0.586740, 0.066176, 0.111878]
    np.testing.assert_allclose([*weights, *means, *variances], due, atol=1e-6)
    assert (log_z, weights @ means) == pytest.approx((-1.210819, 0.506854), abs=1e-6)


@pytest.mark.parametrize(("reward", "kind"), PUBLISHED)
def test_quadrature_agrees_with_published_figures(reward, kind):
    for num, due in zip((4, 10, 100), PUBLISHED[reward, kind], strict=True):
        np.testing.assert_allclose(exact.summary(law_of(reward, kind, num)), due, atol=1.1e-4)


def test_plain_chain_returns_the_data():
    sampler = fg.Unguided(exact.MixtureDiffusion())
    draws = sampler.sample(20_000, num_steps=exact.STEPS, progress=False).samples
    law = law_of("linear", "exact", 1)
    np.testing.assert_allclose(exact.summary(law), [0.165, 1.1664, 0.3648], atol=1e-4)
    assert exact.ks_p(draws, law) > P_MIN


@pytest.mark.parametrize("draws", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("num", [4, 10])
@pytest.mark.parametrize(("reward", "kind"), PUBLISHED)
def test_svdd_law(reward, kind, num, draws):
    found = draw(reward, kind, num, draws)
    law = law_of(reward, kind, num)
    assert exact.ks_p(found, law) > P_MIN
    mean, var, below = exact.summary(law)
    x = found[:, 0].double()
    for values, due in ((x, mean), ((x - mean).square(), var), ((x < 0).double(), below)):
        assert abs(float((values.mean() - due) / values.std()) * draws**0.5) < 5


@pytest.mark.parametrize(
    ("reward", "kind", "num", "other", "other_num"),
    [
        ("linear", "exact", 10, "pm", 10),
        ("linear", "pm", 4, "pm", 10),
        ("quadratic", "exact", 10, "mean", 10),
        ("quadratic", "pm", 10, "mean", 10),
        ("quadratic", "exact", 4, "exact", 10),
        ("quadratic", "exact", 10, "exact", 100),
    ],
)
def test_another_law_is_rejected(reward, kind, num, other, other_num):
    found = draw(reward, kind, num, 20_000)
    assert exact.ks_p(found, law_of(reward, other, other_num)) < P_MIN
