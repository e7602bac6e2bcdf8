"""What pipelines and schedulers draw, redirected to keyed noise while a guided call runs.

Pipelines and schedulers draw through `randn_tensor`, a global of their own module. That name is
replaced by a shim that asks a context variable, so that other threads and other pipelines draw as
always; when the last guided pipeline is done, the modules are as they were.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Protocol

import torch

Tensor = torch.Tensor

NAME = "randn_tensor"


class NoiseSource(Protocol):
    """Who answers while a guided call runs."""

    def noise(
        self,
        shape: tuple[int, ...],
        generator: Any,
        device: torch.device,
        dtype: torch.dtype,
        draw: Callable[..., Tensor],
    ) -> Tensor:
        """Standard normals of `shape`; draw(generator=...) is the library's own way.

        The first entry of `shape` counts rows of the call: 0 for an encoder of given images.
        """


_SOURCE: ContextVar[NoiseSource | None] = ContextVar("fastguide_noise_source", default=None)
_LOCK = threading.Lock()
_PATCHED: dict[ModuleType, tuple[Callable[..., Tensor], int]] = {}


def _shim(original: Callable[..., Tensor], encodes: bool) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def randn_tensor(
        shape: Any,
        generator: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        layout: torch.layout | None = None,
    ) -> Tensor:
        source = _SOURCE.get()

        def draw(generator: Any) -> Tensor:
            return original(shape, generator=generator, device=device, dtype=dtype, layout=layout)

        if source is None:
            return draw(generator)
        due = torch.device("cpu" if device is None else device)
        kind = torch.get_default_dtype() if dtype is None else dtype
        rows = 0 if encodes else shape[0]
        return source.noise((rows, *shape[1:]), generator, due, kind, draw)

    return randn_tensor


def _modules(objects: Iterable[Any]) -> list[ModuleType]:
    """Modules of the objects' classes, and of their bases, that have the name."""
    found: dict[str, ModuleType] = {}
    for each in objects:
        for kind in type(each).__mro__:
            module = sys.modules.get(kind.__module__)
            if module is not None and callable(getattr(module, NAME, None)):
                found[kind.__module__] = module
    return list(found.values())


@contextmanager
def interceptable(objects: Iterable[Any]) -> Iterator[None]:
    """Put the shim into the modules that define the objects' classes."""
    modules = _modules(objects)
    with _LOCK:
        for module in modules:
            original, users = _PATCHED.get(module, (getattr(module, NAME), 0))
            if users == 0:
                encodes = module.__name__.startswith("diffusers.models.")
                setattr(module, NAME, _shim(original, encodes))
            _PATCHED[module] = (original, users + 1)
    try:
        yield
    finally:
        with _LOCK:
            for module in modules:
                original, users = _PATCHED.pop(module)
                if users > 1:
                    _PATCHED[module] = (original, users - 1)
                else:
                    setattr(module, NAME, original)


@contextmanager
def drawn_from(source: NoiseSource) -> Iterator[None]:
    """While it lasts, this context's draws are answered by `source`."""
    token = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(token)
