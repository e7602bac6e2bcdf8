"""Sampling methods by name, as policies over a chain that the pipeline runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.errors import ArgumentError
from fastguide.samplers import (
    DAS,
    DPS,
    SMC,
    SVDD,
    SVDDR,
    TDS,
    BeamSearch,
    BestOfN,
    ClassifierGuidance,
    FKSteering,
    NestedSMC,
    Unguided,
)
from fastguide.samplers.base import Sampler

METHODS: dict[str, type[Sampler]] = {
    "unguided": Unguided,
    "best_of_n": BestOfN,
    "svdd": SVDD,
    "smc": SMC,
    "fk": FKSteering,
    "beam": BeamSearch,
    "nested_smc": NestedSMC,
    "svddr": SVDDR,
    "dps": DPS,
    "tds": TDS,
    "das": DAS,
    "classifier_guidance": ClassifierGuidance,
}


class PipelineChain(GaussianChain):
    """What a policy asks of a diffusion, where a pipeline runs the denoiser.

    `shape` is that of one latent, known when the pipeline has drawn them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.shape = ()


def make_policy(
    method: str,
    chain: PipelineChain,
    reward: Callable[..., Any] | None,
    settings: dict[str, Any],
) -> Sampler:
    """The policy `method` with the settings that were given.

    Raises:
        ArgumentError: an unknown method, or a setting that it does not have.
    """
    if method not in METHODS:
        raise ArgumentError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    kind = METHODS[method]
    parameters = inspect.signature(kind).parameters
    known = list(parameters)[1:]
    given = {name: value for name, value in settings.items() if value is not None}
    # particles are what is run side by side where a method has no other candidates
    if "num_candidates" in given and "num_candidates" not in known and "num_particles" in known:
        if "num_particles" in given:
            raise ArgumentError(
                f"method {method!r} has one size: give num_particles or num_candidates, not both"
            )
        given["num_particles"] = given.pop("num_candidates")
    if "reward" in known:
        given |= {"reward": reward}
    for name in given:
        if name not in known:
            listed = ", ".join(each for each in known if each != "reward")
            raise ArgumentError(f"{name}: method {method!r} has no such setting; it has {listed}")
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in given:
            raise ArgumentError(f"{name}: method {method!r} needs it; pass {name}= to guide()")
    return kind(chain, **given)
