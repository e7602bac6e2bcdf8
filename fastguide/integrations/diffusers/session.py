"""A pipeline under control for a while: what is replaced on it, and how it gets everything back.

Nothing of the pipeline is copied. Its class and its schedulers' classes are exchanged for
subclasses of the same name with one method more, the outermost calls of its networks are wrapped,
and when the context ends, for whatever reason, all of it is undone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch

from fastguide.errors import ArgumentError, DtypeError
from fastguide.integrations.diffusers.noise import interceptable

DENOISERS = ("unet", "transformer", "transformer_2", "prior")
SIDE_NETWORKS = ("controlnet", "safety_checker")


class Hooks(Protocol):
    """Who runs the calls of a pipeline under control."""

    @property
    def running(self) -> bool:
        """A call is in progress; otherwise everything does as it always does."""

    def call(self, run: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """The pipeline was called; run(**arguments) is its own call."""

    def step(self, scheduler: Any, run: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """A scheduler was asked for a step; run(**arguments) is its own."""

    def model(
        self, name: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A network was called; run(*args, **kwargs) is its own call."""


def check_pipeline(pipe: Any) -> None:
    """Raise unless `pipe` looks like a pipeline that can be guided."""
    scheduler = getattr(pipe, "scheduler", None)
    if not callable(pipe) or not hasattr(scheduler, "step"):
        raise DtypeError(
            "pipe must be a diffusers pipeline with a scheduler that steps, got "
            f"{type(pipe).__name__}; of a combined pipeline guide the inner one"
        )


def check_caches(pipe: Any) -> None:
    """Raise if a network keeps features of earlier steps, which rows that move would mix up."""
    for name in DENOISERS:
        if getattr(getattr(pipe, name, None), "is_cache_enabled", False):
            raise ArgumentError(
                f"pipe.{name} keeps features from step to step (enable_cache), which belong to "
                f"rows that are replaced here; call pipe.{name}.disable_cache() first"
            )


@contextmanager
def attached(pipe: Any, hooks: Hooks) -> Iterator[None]:
    """Route the pipeline's calls, steps and networks through `hooks`."""
    check_pipeline(pipe)
    schedulers = list({id(s): s for s in vars(pipe).values() if _is_scheduler(s)}.values())
    with ExitStack() as stack:
        vae = getattr(pipe, "vae", None)
        drawing = [pipe, *schedulers] if vae is None else [pipe, *schedulers, vae]
        stack.enter_context(interceptable(drawing))
        stack.enter_context(_subclassed(pipe, "__call__", _guided_call(type(pipe), hooks)))
        for scheduler in schedulers:
            step = _guided_step(type(scheduler), hooks)
            stack.enter_context(_subclassed(scheduler, "step", step))
        for name in (*DENOISERS, *SIDE_NETWORKS):
            network = getattr(pipe, name, None)
            if isinstance(network, torch.nn.Module):
                stack.enter_context(_wrapped(network, "forward", name, hooks))
        if vae is not None:
            stack.enter_context(_wrapped(vae, "decode", "vae", hooks))
        yield


def _is_scheduler(value: Any) -> bool:
    return hasattr(value, "step") and hasattr(value, "set_timesteps")


@contextmanager
def _subclassed(target: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    kind = type(target)
    members = {name: method, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    target.__class__ = type(kind.__name__, (kind,), members)
    try:
        yield
    finally:
        target.__class__ = kind


@contextmanager
def _wrapped(target: Any, method: str, name: str, hooks: Hooks) -> Iterator[None]:
    """Replace a bound method on the instance, outside any wrapper that is already there."""
    own = getattr(target, method)
    placed = vars(target).get(method)

    @functools.wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not hooks.running:
            return own(*args, **kwargs)
        return hooks.model(name, own, args, kwargs)

    object.__setattr__(target, method, call)
    try:
        yield
    finally:
        if placed is None:
            object.__delattr__(target, method)
        else:
            object.__setattr__(target, method, placed)


def _guided_call(kind: type, hooks: Hooks) -> Callable[..., Any]:
    own = kind.__call__
    signature = inspect.signature(own)

    @functools.wraps(own)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if hooks.running:  # a pipeline that calls itself
            return own(self, *args, **kwargs)
        arguments = _bound(signature, self, args, kwargs)
        # pipelines are decorated with no_grad; whether gradients are kept is for the hooks to say
        inner = getattr(own, "__wrapped__", own)
        return hooks.call(functools.partial(inner, self), arguments)

    return call


def _guided_step(kind: type, hooks: Hooks) -> Callable[..., Any]:
    own = kind.step  # type: ignore[attr-defined]
    signature = inspect.signature(own)

    @functools.wraps(own)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not hooks.running:
            return own(self, *args, **kwargs)
        arguments = _bound(signature, self, args, kwargs)
        return hooks.step(self, functools.partial(own, self), arguments)

    return step


def _bound(
    signature: inspect.Signature, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments by name, those of a trailing **kwargs among them."""
    bound = dict(signature.bind(owner, *args, **kwargs).arguments)
    del bound[next(iter(signature.parameters))]
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound |= bound.pop(name, {})
    return bound


@contextmanager
def frozen(pipe: Any, but: tuple[str, ...] | None) -> Iterator[None]:
    """While it lasts, parameters keep no gradient, but those of the networks named; None: all do.

    A text encoder's graph would otherwise be shared by all steps, and be gone after the first
    backward pass.
    """
    parameters = [
        parameter
        for name, module in vars(pipe).items()
        if but is not None and name not in but and isinstance(module, torch.nn.Module)
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
