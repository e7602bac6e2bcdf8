"""Gradients through a pipeline's own call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from guiding import Spy, as_is, brightness, build, images_of
from pipelines_tiny import CASES, WARNINGS

from fastguide.errors import (
    GradientError,
)
from fastguide.integrations.diffusers import guide, guided
from fastguide.samplers import DPS

pytestmark = WARNINGS
Tensor = torch.Tensor


def run(name: str, call: dict[str, Any] | None = None, pipe: Any = None, **settings: Any) -> Any:
    """A guided call of a case, and what is known of it."""
    case = CASES[name]
    pipe = case.build() if pipe is None else pipe
    settings = dict(reward=brightness, num_candidates=3, alpha=0.01) | settings
    with guide(pipe, **settings) as g:
        out = pipe(**case.call | (call or {}))
    return images_of(case, out), g.result


def test_gradients_reach_the_latents() -> None:
    along: dict[str, Any] = dict(method="dps", num_candidates=None)
    for name in ("sd-euler-a", "flux-euler-sde", "dit-ddpm", "ddpm-free"):
        case = CASES[name]
        pipe = case.build()
        network = getattr(pipe, case.denoiser)
        _, plain = run(name, pipe=pipe, alpha=1e9, **along)
        found, result = run(name, pipe=pipe, alpha=1e-4, **along)
        assert (result.rewards > plain.rewards).all(), name
        assert all(p.requires_grad and p.grad is None for p in network.parameters())
        assert not found.requires_grad
    with pytest.raises(GradientError, match="no gradient in the latents"):
        run("sd-euler-a", reward=lambda x: brightness(x.detach()), alpha=1.0, **along)


@pytest.mark.parametrize(
    "name", ["sd-euler-a", "dit-ddpm", "flux-euler-sde", "qwen-euler-sde", "wan-dpm-sde"]
)
def test_gradients_are_differences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through classifier-free guidance in any form, and both halves of a batch."""
    pipe = build(name)
    spy = Spy(monkeypatch, pipe.scheduler)
    gradients: list[Tensor] = []
    values: list[Tensor] = []
    shift, prior = DPS.shift, guided.keyed_prior
    direction = torch.Generator().manual_seed(1)

    def shifting(policy: Any, rows: Any, *others: Any) -> Any:
        gradients.append(rows.gradient.clone())
        return shift(policy, rows, *others)

    def reward(latents: Tensor) -> Tensor:
        scores = latents.double().square().flatten(1).mean(1)
        values.append(scores.detach())
        return scores

    monkeypatch.setattr(DPS, "shift", shifting)
    first = []
    for size in (0.0, 0.02, -0.02):
        direction.manual_seed(1)

        def moved(*args: Any, size: float = size) -> Tensor:
            states = prior(*args)
            return states + size * torch.randn(states.shape, generator=direction)

        monkeypatch.setattr(guided, "keyed_prior", moved)
        before = len(values), len(spy.steps), len(gradients)
        seen = sum(len(steps) for steps in spy.steps)
        settings = dict(method="dps", num_candidates=None, alpha=1.0, decode=as_is)
        run(name, pipe=pipe, reward=reward, **settings)
        asked = [each for steps in spy.steps for each in steps][seen]
        first.append((values[before[0]], asked.arguments["sample"], gradients[before[2]]))
    (_, _, gradient), (up, x_up, _), (down, x_down, _) = first
    due = (up - down).tolist()
    found = (gradient * (x_up - x_down)).flatten(1).sum(1).tolist()
    assert found == pytest.approx(due, rel=0.05, abs=0.02 * max(map(abs, due)))
