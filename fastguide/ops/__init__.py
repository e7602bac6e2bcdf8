"""The one door to the kernels: check, allocate, choose a backend, launch.

Every op is a function here and a registered operator `torch.ops.fastguide.<op>`. With `out=` the
call goes straight to the kernel and allocates nothing. The native extension loads at the first
use of an op; without it an op raises `BackendError` (the reference backend serves only on request).
"""

from __future__ import annotations

from fastguide.ops._backend import backends, use_backend
from fastguide.ops._device import DeferredFaults, deferred_faults
from fastguide.ops._training import PPOTerms
from fastguide.ops.gaussian_ppo import gaussian_ppo
from fastguide.ops.gaussian_propose import GaussianProposal, gaussian_propose
from fastguide.ops.gumbel_softmax_step import RelaxedStep, gumbel_softmax_step
from fastguide.ops.masked_keys import masked_keys
from fastguide.ops.masked_posterior import masked_posterior
from fastguide.ops.masked_ppo import masked_ppo
from fastguide.ops.masked_propose import Proposal, masked_propose
from fastguide.ops.philox_normal import philox_normal
from fastguide.ops.philox_uniform import philox_uniform
from fastguide.ops.resample import Resampling, resample
from fastguide.ops.select import Selection, plan_select, select
from fastguide.ops.soft_value import soft_value
from fastguide.ops.subs_cross_entropy import subs_cross_entropy
from fastguide.ops.unique_rows import UniqueRows, unique_rows

__all__ = [
    "DeferredFaults",
    "GaussianProposal",
    "PPOTerms",
    "Proposal",
    "RelaxedStep",
    "Resampling",
    "Selection",
    "UniqueRows",
    "backends",
    "deferred_faults",
    "gaussian_ppo",
    "gaussian_propose",
    "gumbel_softmax_step",
    "masked_keys",
    "masked_posterior",
    "masked_ppo",
    "masked_propose",
    "philox_normal",
    "philox_uniform",
    "plan_select",
    "resample",
    "select",
    "soft_value",
    "subs_cross_entropy",
    "unique_rows",
    "use_backend",
]
