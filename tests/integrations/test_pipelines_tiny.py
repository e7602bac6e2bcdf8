"""The tiny pipelines run, so that a failure of a guided one means the guidance."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers.utils.torch_utils import randn_tensor
from pipelines_tiny import CASES, WARNINGS
from pipelines_tiny_parts import Case

pytestmark = WARNINGS


def stacked(output: object) -> torch.Tensor:
    """The images or videos of a pipeline as one tensor, row by row."""
    return output if isinstance(output, torch.Tensor) else torch.as_tensor(np.stack(output))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_runs_unguided(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = case.build()
    draws = []

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        draws.append(args)
        return randn_tensor(*args, **kwargs)

    module = sys.modules[type(pipe.scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", counted)
    generator = torch.Generator().manual_seed(1)
    output = stacked(getattr(pipe(**case.arguments(2), generator=generator), case.output))
    assert len(output) == 2 * case.groups
    assert output.isfinite().all()
    assert not torch.equal(output[0], output[1]), "two rows of one prompt start from other noise"
    assert bool(draws) == case.stochastic


@pytest.mark.parametrize("name", ["ddpm-free", "sd-controlnet-ddim", "ltx2-euler-sde"])
def test_weights_are_the_same_every_time(name: str) -> None:
    state = torch.get_rng_state()
    first, again = (CASES[name].build() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state), "the caller's draws stay"
    modules = [
        part for part in first.components if isinstance(getattr(first, part), torch.nn.Module)
    ]
    assert modules
    for part in modules:
        module = getattr(first, part)
        assert not module.training
        for parameter, value in module.state_dict().items():
            assert value.dtype in (torch.float32, torch.int64)
            assert torch.equal(getattr(again, part).state_dict()[parameter], value), parameter
