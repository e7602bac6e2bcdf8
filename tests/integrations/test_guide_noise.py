"""With one candidate a guided pipeline is the pipeline itself, fed with the keyed noise."""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers.models.autoencoders import vae
from guiding import brightness, build, images_of
from pipelines_tiny import CASES, WARNINGS
from pipelines_tiny_parts import Case

from fastguide import ops
from fastguide.integrations.diffusers import guide
from fastguide.integrations.diffusers.streams import STREAM
from fastguide.rng import Purpose

pytestmark = WARNINGS
Tensor = torch.Tensor
SEED = 6


class Fed:
    """Keyed normals in place of those that a pipeline and its schedulers draw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pipe: Any, images: int) -> None:
        self.images, self.priors = images, 0
        self.schedulers: list[Any] = []
        self.steps: list[int] = []
        for part, draw in ((pipe, self.prior), (pipe.scheduler, self.noise)):
            for kind in type(part).__mro__:
                module = sys.modules[kind.__module__]
                if hasattr(module, "randn_tensor"):
                    monkeypatch.setattr(module, "randn_tensor", draw)
        monkeypatch.setattr(vae, "randn_tensor", self.encoded)
        own = type(pipe.scheduler).step

        @functools.wraps(own)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            if not any(each is scheduler for each in self.schedulers):
                self.schedulers.append(scheduler)
                self.steps.append(0)
            (self.number,) = (i for i, s in enumerate(self.schedulers) if s is scheduler)
            result = own(scheduler, *args, **kwargs)
            self.steps[self.number] += 1
            return result

        monkeypatch.setattr(type(pipe.scheduler), "step", step)

    def prior(self, shape: tuple[int, ...], generator: Any = None, **kwargs: Any) -> Tensor:
        self.priors += 1
        return self.normals(shape, self.priors - 1, Purpose.PRIOR, **kwargs)

    def noise(self, shape: tuple[int, ...], generator: Any = None, **kwargs: Any) -> Tensor:
        step = self.number * STREAM + self.steps[self.number]
        return self.normals(shape, step, Purpose.NOISE, **kwargs)

    def encoded(self, shape: tuple[int, ...], generator: Any = None, **kwargs: Any) -> Tensor:
        """The encoder of an image draws by the seed."""
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(SEED))

    def normals(self, shape: tuple[int, ...], step: int, purpose: int, **kwargs: Any) -> Tensor:
        chains = torch.arange(shape[0]) % self.images  # a doubled batch has the same noise twice
        size = torch.Size(shape[1:]).numel()
        drawn = ops.philox_normal(SEED, chains, step, purpose, num_elements=size)
        return drawn.view(tuple(shape)).to(kwargs.get("dtype") or torch.float32)


RUN = {name: case for name, case in CASES.items() if name != "sd-pndm"}


@pytest.mark.parametrize("case", RUN.values(), ids=RUN.keys())
def test_unguided_is_the_pipeline_itself(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = case.build()
    with guide(pipe, None, method="unguided", seed=SEED) as g:
        found = images_of(case, pipe(**case.call))
    assert g.result.rewards is None
    assert g.result.cost.denoiser_rows == g.result.cost.denoiser_rows_requested
    images = len(found)
    Fed(monkeypatch, pipe, images)
    due = images_of(case, pipe(**case.call))
    torch.testing.assert_close(found, due, atol=2e-4, rtol=0)
    with guide(pipe, None, method="unguided", seed=SEED + 1):
        other = images_of(case, pipe(**case.call))
    assert (other - due).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["ddpm-free", "sd-dpm-sde", "flux-euler-sde"])
def test_one_candidate_is_unguided(name: str) -> None:
    case, pipe = CASES[name], build(name)
    with guide(pipe, None, method="unguided", seed=SEED):
        due = images_of(case, pipe(**case.call))
    for settings in (
        dict(num_candidates=1),
        dict(method="smc", num_candidates=1),
        dict(method="best_of_n", num_candidates=1),
        dict(window=(0.0, 0.1), num_candidates=1),
    ):
        with guide(pipe, brightness, seed=SEED, **settings) as g:
            found = images_of(case, pipe(**case.call))
        assert torch.equal(found, due)
        torch.testing.assert_close(g.result.rewards, brightness(due), atol=1e-5, rtol=0)
