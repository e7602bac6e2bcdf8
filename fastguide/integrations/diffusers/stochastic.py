"""A scheduler with noise in place of one without."""

from __future__ import annotations

import importlib
from typing import Any

from fastguide.errors import MissingExtraError


def stochastic_scheduler(pipe: Any) -> Any:
    """A scheduler that adds noise, made from the pipeline's own and to be put in its place.

    `pipe.scheduler = stochastic_scheduler(pipe)`. Flow-matching pipelines get the flow's Euler
    scheduler with fresh noise at every step, those whose flow is run by a DPM-Solver its
    stochastic form, others Euler's ancestral scheduler. The same as eta=1.0 in `guide` for
    schedulers of first order, and a way out for those of second order and PNDM.

    Raises:
        MissingExtraError: diffusers is not installed.
    """
    try:
        diffusers: Any = importlib.import_module("diffusers")
    except ImportError as error:
        raise MissingExtraError(
            'stochastic_scheduler needs diffusers: pip install "fastguide[diffusers]"'
        ) from error
    config = pipe.scheduler.config
    if getattr(config, "use_flow_sigmas", False):
        return diffusers.DPMSolverMultistepScheduler.from_config(
            config, algorithm_type="sde-dpmsolver++"
        )
    if getattr(config, "beta_schedule", None) is None:
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config(
            config, stochastic_sampling=True
        )
    return diffusers.EulerAncestralDiscreteScheduler.from_config(config)
