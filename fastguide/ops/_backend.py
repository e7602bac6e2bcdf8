"""Which implementation serves an op. Chosen by device, or forced; never a silent fallback."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

import torch

from fastguide.errors import ArgumentError, BackendError

OPS = (
    "philox_uniform",
    "philox_normal",
    "masked_propose",
    "masked_posterior",
    "masked_keys",
    "unique_rows",
    "gaussian_propose",
    "select",
    "resample",
    "soft_value",
    "gaussian_ppo",
    "masked_ppo",
    "gumbel_softmax_step",
    "subs_cross_entropy",
)
TRAINING_OPS = frozenset(OPS[-4:])
BACKENDS = ("cpp", "reference", "triton", "cuda")
# What each compiled GPU backend has a kernel for; a missing op is served by the other one.
TRITON_OPS = (
    frozenset(
        {
            "philox_uniform",
            "philox_normal",
            "masked_propose",
            "masked_posterior",
            "masked_keys",
            "gaussian_propose",
            "select",
            "soft_value",
        }
    )
    | TRAINING_OPS
)
CUDA_OPS = frozenset({"resample", "select", "unique_rows"})
ENVIRONMENT_VARIABLE = "FASTGUIDE_BACKEND"
GPU_FIX = "install the GPU extra with `pip install 'fastguide[gpu]'`"
BUILD_FIX = "run `pip install -e . --no-build-isolation` in the source tree (or `make test`)"

_forced: str | None = None
_native: ModuleType | None = None
_logged: set[tuple[str, str]] = set()
_log = logging.getLogger("fastguide")


class use_backend:  # noqa: N801 - reads as the function it is called like
    """Force a backend for every op: `use_backend("reference")`, or as a context manager.

    A plain call lasts until the next one; `with use_backend(...):` restores what was before.
    It goes before the environment variable FASTGUIDE_BACKEND.

    Args:
        name: "cpp", "reference", "triton", "cuda", or None to choose by device again.

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
    """True: run the reference. False: `launcher(op, tensor)` serves.

    Raises:
        BackendError: no compiled backend serves the tensor's device.
    """
    return chosen(op, tensor.device.type) == "reference"


def chosen(op: str, device: str) -> str:
    """The backend that serves `op` for tensors on `device` ("cpu", "cuda", ...).

    The first automatic choice of each GPU backend is logged.

    Raises:
        BackendError: the forced backend, or every backend, cannot serve; says why and the fix.
    """
    forced = forced_backend()
    if forced is not None:
        why = _why_not(forced, op, device)
        if why is None:
            return forced
        raise BackendError(
            f"{op}: the forced backend {forced!r} {why}; or ask for plain PyTorch with "
            "fastguide.ops.use_backend('reference')"
        )
    if device == "cpu":
        return "cpp"
    if device != "cuda":
        raise BackendError(
            f"{op}: fastguide has kernels for CPU and CUDA tensors only, got a tensor on {device}; "
            "move it to the CPU or ask for plain PyTorch with "
            "fastguide.ops.use_backend('reference')"
        )
    reasons = []
    for backend in ("cuda", "triton"):
        why = _why_not(backend, op, device)
        if why is None:
            if (op, backend) not in _logged:
                _logged.add((op, backend))
                _log.info("%s: CUDA tensors are served by backend %r", op, backend)
            return backend
        reasons.append(f"backend {backend!r} {why}")
    raise BackendError(
        f"{op}: {'; '.join(reasons)}; or ask for plain PyTorch with "
        "fastguide.ops.use_backend('reference')"
    )


def _why_not(backend: str, op: str, device: str) -> str | None:
    """Why `backend` cannot serve `op` on `device`, with the fix, or None if it can."""
    if backend == "reference":
        return None
    if backend == "cpp":
        return None if device == "cpu" else f"serves CPU tensors only, got a tensor on {device}"
    module, served = ("triton", TRITON_OPS) if backend == "triton" else ("cupy", CUDA_OPS)
    interpreted = device == "cpu" and backend == "triton" and _interpreting()
    if device != "cuda" and not interpreted:
        return f"serves CUDA tensors only, got a tensor on {device}"
    if op not in served:
        return f"has no kernel for {op}"
    if importlib.util.find_spec(module) is None:
        return f"needs {module}, which is not installed: {GPU_FIX}"
    return None


def _interpreting() -> bool:
    """Triton's own interpreter is switched on, so its kernels take CPU tensors (for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def launcher(op: str, tensor: torch.Tensor, part: str = "") -> Callable[..., Any]:
    """`launch_<op><part>` of the backend that serves `tensor`; imported at first use.

    part: "" or what an op has besides its forward kernel, such as "_backward".

    Raises:
        BackendError: the native extension was not built, or cannot run on this CPU as asked.
    """
    return _launcher(chosen(op, tensor.device.type), op, tensor, part)


def served(op: str, tensor: torch.Tensor, part: str = "") -> tuple[str, Callable[..., Any] | None]:
    """The backend that serves `tensor` and its `launcher`, None if that is the reference.

    Raises:
        BackendError: no backend can serve.
    """
    if (
        _forced is None
        and tensor.is_cpu
        and _native is not None
        and not _native.environment(ENVIRONMENT_VARIABLE)
    ):
        return "cpp", _cpu_launcher(_native, op, part)
    backend = chosen(op, tensor.device.type)
    launch = None if backend == "reference" else _launcher(backend, op, tensor, part)
    return backend, launch


def _launcher(backend: str, op: str, tensor: torch.Tensor, part: str) -> Callable[..., Any]:
    if backend == "triton":
        module = importlib.import_module(f"fastguide.kernels.{op}")
    elif backend == "cuda":
        module = importlib.import_module("fastguide.kernels.cuda_launchers")
    else:
        return _cpu_launcher(native(), op, part)
    launch: Callable[..., Any] = getattr(module, f"launch_{op}{part}")
    if (
        backend == "triton"
        and tensor.is_cuda
        and tensor.get_device() != torch.cuda.current_device()
    ):
        return _on_device(launch, tensor.device)
    return launch


def _on_device(launch: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Triton launches on the current device, whatever its tensors say."""

    def run(*arguments: Any) -> Any:
        with torch.cuda.device(device):
            return launch(*arguments)

    return run


@functools.cache
def _cpu_launcher(module: ModuleType, op: str, part: str) -> Callable[..., Any]:
    if op in TRAINING_OPS:
        module = importlib.import_module("fastguide.kernels.cpu_training")
    launch: Callable[..., Any] = getattr(module, f"launch_{op}{part}")
    return launch


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


def backends(device: str = "cpu") -> dict[str, tuple[str, str]]:
    """For every op, the backend that serves tensors on `device` now and why the others do not.

    Args:
        device: "cpu" or "cuda".

    Returns:
        {op: (backend, reason)}; backend is one of BACKENDS, or "none".
    """
    return {op: _state(op, device) for op in OPS}


def _state(op: str, device: str) -> tuple[str, str]:
    try:
        backend = chosen(op, device)
        level = native().cpu_level() if backend == "cpp" else ""
    except BackendError as error:
        return "none", str(error)
    if forced_backend() == backend:
        return backend, f"forced by {ENVIRONMENT_VARIABLE} or use_backend"
    reasons = [f"instruction set {level}"] if level else []
    for other in BACKENDS:
        if other != backend:
            reasons.append(f"{other} {_why_not(other, op, device) or 'serves on request only'}")
    return backend, "; ".join(reasons)
