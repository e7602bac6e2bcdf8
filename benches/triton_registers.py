"""Compile every Triton kernel ahead of time, and record registers and spills.

No GPU is needed: the launchers run on CPU tensors with a stand-in driver, so that exactly the
specialisations that a launch would ask for are compiled, with the options that users get; nothing
is executed. Registers and spills come from `ptxas -v` on the emitted PTX.

    python benches/triton_registers.py [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastguide.kernels.gaussian_propose import launch_gaussian_propose
from fastguide.kernels.masked_keys import launch_masked_keys
from fastguide.kernels.masked_posterior import launch_masked_posterior
from fastguide.kernels.masked_propose import launch_masked_propose
from fastguide.kernels.philox_normal import launch_philox_normal
from fastguide.kernels.philox_uniform import launch_philox_uniform
from fastguide.kernels.select import launch_select
from fastguide.kernels.soft_value import launch_soft_value

MAIN = 90
ARCHITECTURES = (80, 90, 100)
LENGTH = 200
# As Triton calls it.
PTXAS_OPTIONS = ("-v", "--fmad=false", "--regAllocOptLevel=2")
# One entry per kernel, types and constants; how sizes divide by 16 only vectorises.
Key = tuple[Any, ...]


class _Driver:
    """Says which GPU is there, and nothing more."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _recorded() -> Iterator[dict[Key, tuple[JITFunction, tuple[Any, ...], dict[str, Any]]]]:
    """Inside, every Triton launch is written down instead of run."""
    launches: dict[Key, tuple[JITFunction, tuple[Any, ...], dict[str, Any]]] = {}

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.setdefault(_key(self, args, kwargs), (self, args, kwargs))

    original, JITFunction.run = JITFunction.run, record
    try:
        yield launches
    finally:
        JITFunction.run = original


def _key(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
    def kind(value: Any) -> Any:
        if hasattr(value, "data_ptr"):
            return str(value.dtype).removeprefix("torch.")
        return None if value is None else type(value).__name__

    constants = tuple(sorted((k, str(v)) for k, v in kwargs.items()))
    return (kernel.__name__, *(kind(value) for value in args), constants)


def _propose(
    num_rows: int, vocab: int, num_candidates: int = 10, **kwargs: Any
) -> Callable[[], Any]:
    dtype = kwargs.pop("dtype", torch.float32)
    x = torch.full((1, LENGTH), vocab).expand(num_rows, LENGTH)
    logits = torch.zeros(1, LENGTH, vocab, dtype=dtype).expand(num_rows, LENGTH, vocab)
    outputs = (
        torch.empty(num_rows, num_candidates, LENGTH, dtype=torch.int64),
        torch.empty(num_rows, num_candidates, 2, dtype=torch.int64),
        torch.empty(num_rows, num_candidates, dtype=torch.int32),
    )
    arguments: dict[str, Any] = dict(
        mask_token=vocab, rho=0.1, seed=1, chains=torch.arange(num_rows), step=3, index=None
    )
    arguments.update(temperature=1.0, first_candidate=None)
    arguments.update(kwargs)
    keys = torch.zeros(num_rows, 2, dtype=torch.int64)
    return lambda: launch_masked_propose(logits, x, keys, *arguments.values(), *outputs)


def _posterior(vocab: int, num_samples: int, **kwargs: Any) -> Callable[[], Any]:
    dtype = kwargs.pop("dtype", torch.float32)
    num_rows = 64
    x = torch.full((num_rows, LENGTH), vocab)
    logits = torch.zeros(1, LENGTH, vocab, dtype=dtype).expand(num_rows, LENGTH, vocab)
    keys = torch.zeros(num_rows, 2, dtype=torch.int64) if num_samples else None
    out = torch.empty(num_rows, max(num_samples, 1), LENGTH, dtype=torch.int64)
    arguments: dict[str, Any] = dict(
        mask_token=vocab, index=None, num_samples=num_samples, keys=keys, seed=1
    )
    arguments.update(temperature=1.0, purpose=5)
    arguments.update(kwargs)
    return lambda: launch_masked_posterior(logits, x, *arguments.values(), out)


def _select(num_candidates: int = 10, **kwargs: Any) -> Callable[[], Any]:
    n = 64
    dtype = kwargs.pop("dtype", torch.float32)
    arguments: dict[str, Any] = dict(
        alpha=0.1, log_ratio=None, seed=1, chains=torch.arange(n), counter=7, particles=None
    )
    items = kwargs.pop("gather", [])
    targets = [source[:, 0] if where is None else source[:n] for source, where in items]
    arguments.update(kwargs)
    values = torch.zeros(n, num_candidates, dtype=dtype)
    index = torch.empty(n, dtype=torch.int64)
    lme, ess = torch.empty(2, n, dtype=torch.float64)
    return lambda: launch_select(
        values, *arguments.values(), items, index, lme, ess, [t.contiguous() for t in targets]
    )


def _soft_value(kind: str, num_samples: int = 16, **kwargs: Any) -> Callable[[], Any]:
    dtype = kwargs.pop("dtype", torch.float32)
    values = torch.zeros(64, num_samples, dtype=dtype)
    alpha, tau = kwargs.get("alpha", 0.1), kwargs.get("tau", 0.1)
    return lambda: launch_soft_value(values, alpha, kind, tau, torch.empty(64, dtype=dtype))


def _gaussian(**kwargs: Any) -> Callable[[], Any]:
    dtype = kwargs.pop("dtype", torch.float32)
    n, k, d = 16, 8, 12_288
    x, output = torch.zeros(n, d, dtype=dtype), torch.zeros(n, d, dtype=dtype)
    shift = torch.zeros(n, d, dtype=dtype) if kwargs.pop("shift", False) else None
    arguments: dict[str, Any] = dict(a=1.0, b=0.5, s=0.1, seed=1, chains=torch.arange(n), counter=7)
    arguments.update(index=None, first_candidate=None, shift=shift)
    arguments.update(kwargs)
    out = torch.empty(n, k, d, dtype=dtype)
    ratio = torch.empty(n, 0 if shift is None else k, dtype=torch.float64)
    return lambda: launch_gaussian_propose(x, output, *arguments.values(), out, ratio)


def _stream(
    launch: Callable[..., Any],
    dtype: torch.dtype,
    seed: int | torch.Tensor = 1,
    counter: int | torch.Tensor = 7,
    first: torch.Tensor | None = None,
) -> Callable[[], Any]:
    chains = torch.arange(16)
    return lambda: launch(seed, chains, counter, first, torch.empty(16, 4, 1024, dtype=dtype))


def _default_calls() -> Iterator[Callable[[], Any]]:
    """Calls as samplers make them, at the sizes of a GPU."""
    yield _stream(launch_philox_uniform, torch.float64)
    yield _stream(launch_philox_normal, torch.float32)
    yield _gaussian()
    yield _propose(64, 4)
    yield _propose(4096, 4)
    yield _propose(4096, 32)
    yield _propose(64, 50_258)
    for vocab in (4, 32, 50_258):
        yield _posterior(vocab, 0)
        yield _posterior(vocab, 4)
    yield lambda: launch_masked_keys(
        torch.zeros(64, 200, dtype=torch.int64), torch.empty(64, 2, dtype=torch.int64)
    )
    yield _select(gather=[(torch.zeros(64, 10, 1024), None)])
    for kind in ("lme", "mean", "cvar"):
        yield _soft_value(kind)


def _branch_calls() -> Iterator[Callable[[], Any]]:
    """The other branches: each dtype and each constant at least once, optional inputs, and scalars
    that lie in device memory, as a captured graph has them."""
    integer, double = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
    ids = torch.zeros(64, dtype=torch.int64)
    few = torch.zeros(16, dtype=torch.int64)
    for dtype in (torch.float32, torch.float64):
        yield _stream(launch_philox_normal, dtype, first=few)
        yield _gaussian(dtype=dtype, shift=True, index=few, first_candidate=few)
        yield _gaussian(dtype=dtype, s=0.0)
        for vocab in (4, 300):
            given: dict[str, Any] = dict(dtype=dtype, temperature=0.5, index=ids)
            yield _propose(64, vocab, first_candidate=ids, **given)
            yield _posterior(vocab, 3, **given)
            yield _posterior(vocab, 0, dtype=dtype, index=ids)
        ratio = torch.zeros(64, 10, dtype=dtype)
        yield _select(dtype=dtype, log_ratio=ratio, particles=ids)
        yield _select(1000, dtype=dtype)
        for kind in ("lme", "mean", "cvar"):
            yield _soft_value(kind, dtype=dtype)
        yield _soft_value("cvar", 2000, dtype=dtype)
    for vocab in (1, 2, 8, 16):
        yield _propose(64, vocab)
    for source in (torch.bool, torch.int16, torch.float32, torch.complex128):
        where = torch.zeros(64, 10, dtype=torch.int64)
        yield _select(gather=[(torch.zeros(65, 3, dtype=source), where)])
    # Scalars in device memory.
    scalars = dict(seed=integer, temperature=double)
    yield _stream(launch_philox_uniform, torch.float64, integer, integer, few)
    yield _stream(launch_philox_normal, torch.float32, integer, integer)
    yield _gaussian(seed=integer, counter=integer, a=double, b=double, s=double)
    for vocab in (4, 300):
        yield _propose(64, vocab, step=integer, rho=double, **scalars)
        yield _posterior(vocab, 3, **scalars)
    yield _select(alpha=double, seed=integer, counter=integer)
    for kind in ("lme", "cvar"):
        yield _soft_value(kind, alpha=double, tau=double)


def _ptxas() -> str:
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    names = [bundled / "ptxas-blackwell", bundled / "ptxas"]
    return next((str(path) for path in names if path.is_file()), "ptxas")


def _usage(ptx: str) -> dict[str, int]:
    """Registers per thread and bytes spilled, as ptxas reports them."""
    target = re.search(r"^\.target (\w+)", ptx, re.M)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        report = subprocess.run(
            [_ptxas(), *PTXAS_OPTIONS, f"--gpu-name={target[1]}", source, "-o", f"{folder}/out"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", report)
    stores = re.search(r"(\d+) bytes spill stores", report)
    loads = re.search(r"(\d+) bytes spill loads", report)
    if registers is None or stores is None or loads is None:
        raise RuntimeError(f"ptxas said nothing about registers:\n{report}")
    return {
        "registers": int(registers[1]),
        "spill_stores_bytes": int(stores[1]),
        "spill_loads_bytes": int(loads[1]),
    }


def _compile(
    key: Key, launch: tuple[JITFunction, tuple[Any, ...], dict[str, Any]], capability: int
) -> dict[str, Any]:
    kernel, args, kwargs = launch
    triton.runtime.driver.set_active(_Driver(capability))
    began = time.perf_counter()
    compiled = kernel.run(*args, grid=(1,), warmup=True, **kwargs)
    seconds = time.perf_counter() - began
    constants = {k: str(v) for k, v in kwargs.items()}
    return {
        "kernel": key[0],
        "types": [t for t in key[1:-1] if t != "int"],
        "constants": constants,
        "architecture": f"sm_{capability}",
        **_usage(compiled.asm["ptx"]),
        "shared_bytes": compiled.metadata.shared,
        "seconds": round(seconds, 3),
    }


def table(part: int = 0, parts: int = 1) -> list[dict[str, Any]]:
    """One row per kernel, specialisation and architecture; "default" marks what samplers launch.

    Defaults are compiled for every architecture, other branches for sm_90.

    Args:
        part, parts: this share of the rows only, so that processes may divide them.
    """
    with _recorded() as defaults:
        for call in _default_calls():
            call()
    with _recorded() as branches:
        for call in _branch_calls():
            call()
    jobs = [(key, launch, c, True) for key, launch in defaults.items() for c in ARCHITECTURES]
    jobs += [(k, launch, MAIN, False) for k, launch in branches.items() if k not in defaults]
    return [
        {**_compile(key, launch, capability), "default": default}
        for key, launch, capability, default in jobs[part::parts]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/triton_registers.json"))
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1, help="compile every PARTS-th row only")
    arguments = parser.parse_args()
    rows = table(arguments.part, arguments.parts)
    record = {
        "triton": triton.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        mark = "*" if row["default"] else " "
        constants = " ".join(f"{k}={v}" for k, v in row["constants"].items() if k.isupper())
        print(
            f"{mark} {row['architecture']:6} {row['registers']:4} registers "
            f"{row['spill_stores_bytes']:4} B spilled {row['seconds']:6.2f} s "
            f"{row['kernel']} {constants}"
        )


if __name__ == "__main__":
    main()
