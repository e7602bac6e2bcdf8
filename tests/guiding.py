"""What the tests of guided pipelines share: rewards, a count of rows, denoisers that are known.

Import after `pytest.importorskip("diffusers")`, like `pipelines_tiny`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils.torch_utils import randn_tensor
from pipelines_tiny import CASES
from pipelines_tiny_parts import Case

Tensor = torch.Tensor


def brightness(images: Tensor) -> Tensor:
    """The mean of each image."""
    return images.flatten(1).mean(1)


def as_is(latents: Tensor) -> Tensor:
    """A decoder that leaves latents as they are."""
    return latents


def stacked(output: Any) -> Tensor:
    """Images or videos [N, ...] of any output type as one tensor."""
    if isinstance(output, torch.Tensor):
        return output
    return torch.as_tensor(np.stack([np.asarray(each) for each in output]))


def images_of(case: Case, output: Any) -> Tensor:
    """The images or videos of a case's output."""
    return stacked(getattr(output, case.output))


def noisy(case: Case) -> dict[str, Any]:
    """What `guide` needs so that the case's scheduler adds noise."""
    return {} if case.stochastic else {"eta": 1.0}


def build(name: str) -> Any:
    """The pipeline of a case."""
    return CASES[name].build()


@dataclass
class Calls:
    """Rows of each call of a method, in order."""

    rows: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.rows)


@contextmanager
def counted(module: Any, method: str = "forward") -> Iterator[Calls]:
    """Count what reaches the module's own method, behind every other wrapper."""
    calls, own, placed = Calls(), getattr(module, method), vars(module).get(method)

    def count(*args: Any, **kwargs: Any) -> Any:
        states = [
            kwargs[name] for name in ("sample", "hidden_states", "clip_input") if name in kwargs
        ]
        calls.rows.append(len([*states, *args][0]))
        return own(*args, **kwargs)

    object.__setattr__(module, method, count)
    try:
        yield calls
    finally:
        object.__delattr__(module, method)
        if placed is not None:
            object.__setattr__(module, method, placed)


class Known(ModelMixin, ConfigMixin):
    """A "UNet" that is any function of states and times: predict(x [B, ...], t [B] int64)."""

    @register_to_config
    def __init__(self, sample_size: int = 1, in_channels: int = 1) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # a pipeline asks for dtype and device
        self.predict: Callable[[Tensor, Tensor], Tensor] = lambda x, t: x

    def forward(self, sample: Tensor, timestep: Any) -> UNet2DOutput:
        t = torch.as_tensor(timestep).reshape(-1).long().expand(len(sample))
        return UNet2DOutput(sample=self.predict(sample, t).to(sample.dtype))


def known_pipeline(
    predict: Callable[[Tensor, Tensor], Tensor],
    betas: np.ndarray,
    prediction_type: str = "sample",
    size: int = 1,
) -> DDPMPipeline:
    """A DDPM pipeline of one channel, without clipping, around a known denoiser."""
    unet = Known(sample_size=size)
    unet.predict = predict
    scheduler = DDPMScheduler(
        len(betas), trained_betas=betas, clip_sample=False, prediction_type=prediction_type
    )
    pipe = DDPMPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Forced(DDPMPipeline):
    """A DDPM pipeline whose states are given: row for row those of another run.

    Attributes:
        moved: what the scheduler returned at each step.
    """

    def __call__(  # type: ignore[override]
        self, batch_size: int = 1, num_inference_steps: int = 6, states: Any = ()
    ) -> Any:
        side = self.unet.config.sample_size
        shape = (batch_size, self.unet.config.in_channels, side, side)
        image = randn_tensor(shape, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        self.moved = []
        for given, t in zip(states, self.scheduler.timesteps, strict=True):
            image = given.clone()
            if torch.is_grad_enabled():
                image.requires_grad_()
            output = self.unet(image, t).sample
            image = self.scheduler.step(output, t, image).prev_sample
            self.moved.append(image.detach())
        return ImagePipelineOutput(images=image)


@dataclass
class Asked:
    """One step of a scheduler as it was asked for, without noise.

    Attributes:
        arguments: of the call.   before, after: what the scheduler remembered of rows, in order.
        result: what it returned.
    """

    arguments: dict[str, Any]
    before: list[Tensor]
    after: list[Tensor]
    result: Any


def remembered(scheduler: Any) -> list[Tensor]:
    """The outputs that a multistep scheduler keeps, oldest first."""
    kept = getattr(scheduler, "model_outputs", [])
    return [each.clone() for each in kept if each is not None]


class Spy:
    """What the schedulers of one class are asked inside a guided call.

    Attributes:
        steps: of each scheduler, in the order of their first steps.
    """

    def __init__(self, monkeypatch: Any, scheduler: Any) -> None:
        kind = type(scheduler)
        own, signature = kind.step, inspect.signature(kind.step)
        self._streams: dict[int, list[Asked]] = {}
        self._alive: list[Any] = []

        @functools.wraps(own)
        def step(asked: Any, *args: Any, **kwargs: Any) -> Any:
            arguments = dict(signature.bind(asked, *args, **kwargs).arguments)
            before = remembered(asked)
            result = own(asked, *args, **kwargs)
            if id(asked) not in self._streams:
                self._alive.append(asked)
            seen = self._streams.setdefault(id(asked), [])
            # asked again at the same time: how large its noise is
            if not seen or seen[-1].arguments["timestep"] != arguments["timestep"]:
                seen.append(Asked(arguments, before, remembered(asked), result))
            return result

        monkeypatch.setattr(kind, "step", step)

    @property
    def steps(self) -> list[list[Asked]]:
        return list(self._streams.values())


class Choices:
    """Rows that a method chose, step by step: (step of the candidates, index [R])."""

    def __init__(self, monkeypatch: Any, kind: type) -> None:
        self.made: dict[int, Tensor] = {}
        own = kind.select

        def select(policy: Any, selection: Any) -> Any:
            choice = own(policy, selection)
            self.made[selection.step.index] = choice.index
            return choice

        monkeypatch.setattr(kind, "select", select)
