"""`guide`: reward-guided sampling from any diffusers pipeline, by a context manager."""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastguide.errors import ArgumentError, DtypeError
from fastguide.evaluation import Limits
from fastguide.integrations.diffusers.call import expand_call, winners
from fastguide.integrations.diffusers.decode import make_decoder
from fastguide.integrations.diffusers.guided import GuidedCall
from fastguide.integrations.diffusers.methods import METHODS, PipelineChain, make_policy
from fastguide.integrations.diffusers.noise import drawn_from
from fastguide.integrations.diffusers.records import GuidedResult, Settings
from fastguide.integrations.diffusers.session import (
    attached,
    check_caches,
    check_pipeline,
    frozen,
)
from fastguide.rng import check_seed
from fastguide.samplers.base import Sampler

Tensor = torch.Tensor

UNFINISHED = "the pipeline ended before its last scheduler step; these images were not chosen"


class Guide:
    """A pipeline being guided; what `guide` gives to `with`.

    Attributes:
        result: of the last call, or None before the first.
    """

    def __init__(
        self,
        pipe: Any,
        make: Callable[[PipelineChain], Any],
        settings: Settings,
        decode: Any,
    ) -> None:
        self._pipe, self._make, self._settings, self._decode = pipe, make, settings, decode
        self._call: GuidedCall | None = None
        self.result: GuidedResult | None = None

    @property
    def running(self) -> bool:
        """A call is in progress."""
        return self._call is not None

    def call(self, run: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Run the pipeline on all candidates and return the winners."""
        pipe = self._pipe
        check_caches(pipe)
        started = time.perf_counter()
        device = torch.device(getattr(pipe, "_execution_device", None) or pipe.device)
        policy = self._make(PipelineChain(device))
        width = policy.num_particles * policy.num_candidates
        parameters = inspect.signature(run).parameters
        wide, images = expand_call(type(pipe).__name__, arguments, parameters, width)
        known = {name: parameter.default for name, parameter in parameters.items()} | wide
        decode = make_decoder(pipe, self._decode, known)
        call = GuidedCall(policy, self._settings, images, decode, device)
        connected = call.scores.differentiates
        self._call = call
        try:
            with (
                drawn_from(call),
                torch.set_grad_enabled(connected),
                frozen(pipe, () if connected else None),
            ):
                output = run(**wide)
        finally:
            self._call = None
        call.cost.finish(time.perf_counter() - started)
        self.result = GuidedResult(
            chains=call.at.chain[::width].cpu(),
            rewards=call.rewards,
            candidates=call.candidates,
            trace=call.trace(),
            cost=call.cost,
            stopped=None if call.candidates is not None else UNFINISHED,
            trajectory=call.trajectory(),
        )
        chosen = winners(output, call.rows, call.at.place[::width])
        if not isinstance(chosen, tuple):
            for name in ("candidates", "trace", "rewards", "cost", "trajectory"):
                setattr(chosen, name, getattr(self.result, name))
        return chosen

    def step(self, scheduler: Any, run: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """See `Hooks`."""
        assert self._call is not None
        return self._call.step(scheduler, run, arguments)

    def model(
        self, name: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """See `Hooks`."""
        assert self._call is not None
        return self._call.model(name, run, args, kwargs)


@contextmanager
def guide(
    pipe: Any,
    reward: Callable[..., Any] | None,
    *,
    method: str = "svdd",
    num_candidates: int | None = None,
    num_particles: int | None = None,
    alpha: float | None = None,
    value: Any = None,
    eta: float | None = None,
    window: tuple[float, float] = (0.0, 1.0),
    interval: int = 1,
    seed: int = 0,
    first_chain: int = 0,
    max_rows: int | None = None,
    decode: str | Callable[[Tensor], Tensor] = "vae",
    on_invalid: str = "raise",
    record: bool = False,
    **settings: Any,
) -> Iterator[Guide]:
    """Guide a diffusers pipeline toward a reward while the context lasts.

    Inside it `pipe(...)` takes its own arguments and returns one winner per image, in its own
    output type, with `.rewards` [N], `.candidates`, `.trace` and `.cost` beside its fields (a tuple
    has none: see `result` of what `with` gives). On exit, or on any exception, the pipeline is as
    it was.

    Args:
        pipe: a diffusers pipeline; nothing of it is copied.
        reward: callable(images) -> [B]: images as `decode` makes them. None for "unguided".
        method: "svdd", "smc", "fk", "beam", "best_of_n", "nested_smc", "svddr", "unguided"; with
            gradients through decoder and denoiser "dps", "tds", "das"; "classifier_guidance".
        num_candidates: rows that compete for each image: candidates of SVDD, particles of SMC.
        num_particles: particles, for methods that have both sizes.
        alpha: temperature in reward units per nat.   value: "posterior_mean" (the reward of the
            predicted clean image), or callable(latents [B, ...], t [B]) -> [B].
        eta: noise of each step in [0, 1] on the scheduler's own grid, in place of its own
            transition: 0 is the ODE, 1 ancestral sampling. None: the scheduler's own noise.
        window: (start, stop), shares of the run in which candidates are drawn and chosen. Outside
            it each image is one row.
        interval: choose every so many steps; candidates go on side by side in between.
        seed: of all noise, in [0, 2**64).   first_chain: global id of the first image: image k of
            a call is the same whether it is drawn alone or with others.
        max_rows: most rows of one call of denoiser, decoder or reward.
        decode: "vae": images [B, C, H, W] (videos [B, C, F, H, W]) float32 in [0, 1] by the
            pipeline's autoencoder; or a callable from its latents, such as a small decoder.
        on_invalid: "raise" or "reject", for rewards that are NaN or infinite.
        record: keep the winners' paths in `.trajectory`, with log-probabilities; see `replay`.
        settings: the method's own: resampler, ess_threshold, potential, guidance_scale, ...

    Raises:
        FastguideError: bad arguments, at once; a scheduler without noise, an order of rows that
            is not known, or non-finite numbers, when they are met.

    The models see at most N + (T - 1) R rows for N images, R rows and T steps.
    Source: SVDD, Li et al. 2024 (arXiv 2408.08252), and the papers of the samplers; candidates
    are scored by the call that moves them.
    """
    check_pipeline(pipe)
    check_seed(seed)
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise DtypeError(f"window must be two numbers (start, stop), got {window!r}")
    for name, number in (("window", window[0]), ("window", window[1]), ("eta", eta or 0.0)):
        if not isinstance(number, int | float):
            raise DtypeError(f"{name}: expected a number, got {number!r}")
    if max_rows is not None and not isinstance(max_rows, int):
        raise DtypeError(f"max_rows must be an int or None, got {max_rows!r}")
    start, stop = window
    if not 0 <= start < stop <= 1:
        raise ArgumentError(f"window must be (start, stop) with 0 <= start < stop <= 1: {window}")
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise ArgumentError(f"interval must be an int of at least 1, got {interval!r}")
    if eta is not None and not (0 <= eta <= 1 and math.isfinite(eta)):
        raise ArgumentError(f"eta must lie in [0, 1] or be None, got {eta}")
    if first_chain < 0:
        raise ArgumentError(f"first_chain must not be negative, got {first_chain}")
    if reward is None and method not in ("unguided", "classifier_guidance"):
        raise DtypeError(f"method {method!r} needs a reward: callable(images) -> [B]")
    Limits(max_rows)
    given = dict(
        num_candidates=num_candidates, num_particles=num_particles, alpha=alpha, value=value
    )
    if method != "unguided":
        given["on_invalid"] = on_invalid
    if "interval" in inspect.signature(METHODS.get(method, Sampler)).parameters:
        given["interval"], interval = interval, 1  # its weights need to know
    make = functools.partial(make_policy, method, reward=reward, settings={**given, **settings})
    make(PipelineChain(torch.device("cpu")))  # reports bad settings before any work
    chosen = Settings(
        eta, (float(start), float(stop)), interval, seed, first_chain, max_rows, record
    )
    guided = Guide(pipe, make, chosen, decode)
    with attached(pipe, guided):
        yield guided
