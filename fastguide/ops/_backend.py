"""Which implementation serves an op. Chosen by device, or forced; never a silent fallback."""

from __future__ import annotations

import importlib
import os
from types import ModuleType, TracebackType

import torch

from fastguide.errors import ArgumentError, BackendError

OPS = (
    "philox_uniform",
    "philox_normal",
    "masked_propose",
    "masked_posterior",
    "masked_keys",
    "unique_rows",
    "select",
    "soft_value",
)
BACKENDS = ("cpp", "reference")
ENVIRONMENT_VARIABLE = "FASTGUIDE_BACKEND"
BUILD_FIX = "run `pip install -e . --no-build-isolation` in the source tree (or `make test`)"

_forced: str | None = None
_native: ModuleType | None = None


class use_backend:  # noqa: N801 - reads as the function it is called like
    """Force a backend for every op: `use_backend("reference")`, or as a context manager.

    A plain call lasts until the next one; `with use_backend(...):` restores what was before.
    It goes before the environment variable FASTGUIDE_BACKEND.

    Args:
        name: "cpp", "reference", or None to choose by device again.

    Raises:
        ArgumentError: unknown name.
    """

    def __init__(self, name: str | None) -> None:
        global _forced
        if name is not None:
            _check_name(name, "use_backend")
        self._before = _forced
        _forced = name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _forced
        _forced = self._before


def _check_name(name: str, where: str) -> None:
    if name not in BACKENDS:
        known = " or ".join(repr(b) for b in BACKENDS)
        raise ArgumentError(f"{where}: unknown backend {name!r}; use {known}")


def forced_backend() -> str | None:
    """The backend in force by `use_backend` or FASTGUIDE_BACKEND, or None."""
    if _forced is not None:
        return _forced
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    if name:
        _check_name(name, f"environment variable {ENVIRONMENT_VARIABLE}")
        return name
    return None


def use_reference(op: str, tensor: torch.Tensor) -> bool:
    """True: run the reference. False: run the kernels of `native()`, which take CPU tensors.

    Raises:
        BackendError: no compiled backend serves the tensor's device.
    """
    forced = forced_backend()
    if forced == "reference":
        return True
    if not tensor.is_cpu:
        asked = "the forced backend 'cpp' serves" if forced else "fastguide has kernels for"
        raise BackendError(
            f"{op}: {asked} CPU tensors only, got a tensor on {tensor.device}; move it to the CPU "
            "or ask for plain PyTorch with fastguide.ops.use_backend('reference')"
        )
    return False


def native() -> ModuleType:
    """The launchers of the compiled CPU kernels, loaded once.

    Raises:
        BackendError: the extension was not built, or cannot run on this CPU as asked.
    """
    global _native
    if _native is None:
        try:
            _native = importlib.import_module("fastguide.kernels.cpu")
        except ImportError as error:
            raise BackendError(
                f"the native extension fastguide._C is missing or broken ({error}): {BUILD_FIX}; "
                "plain PyTorch serves after fastguide.ops.use_backend('reference')"
            ) from error
    return _native


def backends() -> dict[str, tuple[str, str]]:
    """For every op, the backend that serves CPU tensors now and why the others do not.

    Returns:
        {op: (backend, reason)}; backend is "cpp", "reference" or "none".
    """
    if forced_backend() == "reference":
        state = ("reference", "forced; cpp would serve if it were not")
    else:
        try:
            level = native().cpu_level()
            state = ("cpp", f"instruction set {level}; reference serves on request only")
        except BackendError as error:
            state = ("none", str(error))
    return dict.fromkeys(OPS, state)
