"""Compile every Triton kernel ahead of time, and record registers and spills.

No GPU is needed: the launchers run on CPU tensors with a stand-in driver, so that exactly the
specialisations that a launch would ask for are compiled, with the options that users get; nothing
is executed. Registers and spills are what `ptxas -v` says, as Triton calls it. The record of each
version of Triton is kept in benches/results/registers.

    python benches/triton_registers.py [--all] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
import triton_training
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastguide.kernels import device_faults
from fastguide.kernels.gaussian_propose import launch_gaussian_propose
from fastguide.kernels.masked_keys import launch_masked_keys
from fastguide.kernels.masked_posterior import launch_masked_posterior
from fastguide.kernels.masked_propose import launch_masked_propose
from fastguide.kernels.philox_normal import launch_philox_normal
from fastguide.kernels.philox_uniform import launch_philox_uniform
from fastguide.kernels.select import launch_select
from fastguide.kernels.soft_value import launch_soft_value
from fastguide.kernels.triton_runtime import OPTIONS

# The report is that of the compiler that Triton chose, with the options that it gave.
triton.knobs.compilation.always_compile = True
triton.knobs.nvidia.dump_ptxas_log = True

MAIN = 90
ARCHITECTURES = (80, 90, 100)
RECORDS = Path(__file__).resolve().parent / "results" / "registers"
LENGTH = 200
FAR = 2**31 + 16
# One entry per kernel, types and constants; how sizes divide by 16 only vectorises.
Key = tuple[Any, ...]
Launch = tuple[JITFunction, tuple[Any, ...], dict[str, Any]]


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
def _recorded() -> Iterator[dict[Key, Launch]]:
    """Inside, every Triton launch is written down instead of run."""
    launches: dict[Key, Launch] = {}

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.setdefault(_key(self, args, kwargs), (self, args, kwargs))

    original, JITFunction.run = JITFunction.run, record
    try:
        yield launches
    finally:
        JITFunction.run = original


def _key(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
    def kind(value: Any, parameter: Any) -> Any:
        if hasattr(value, "data_ptr"):
            return str(value.dtype).removeprefix("torch.")
        if value is None:
            return None
        if parameter.annotation_type:
            return "int"
        # A length or stride of one becomes a constant, and one beyond 32 bits another type.
        if value == 1 and not parameter.do_not_specialize:
            return 1
        return "long" if abs(value) >= 2**31 else "int"

    kinds = (kind(*pair) for pair in zip(args, kernel.params, strict=False))
    constants = tuple(sorted((k, str(v)) for k, v in kwargs.items()))
    return (kernel.__name__, *kinds, constants)


def _logits(num_rows: int, vocab: int, kwargs: dict[str, Any]) -> torch.Tensor:
    """The logits or the dtype that `kwargs` give, taken out of them; else float32."""
    dtype = kwargs.pop("dtype", torch.float32)
    shape = (num_rows, LENGTH, vocab)
    given = kwargs.pop("logits", None)
    return torch.zeros(1, 1, vocab, dtype=dtype).expand(shape) if given is None else given


def _far(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows that lie further apart than 32 bits can say; they have no memory."""
    row = torch.empty(shape[1:], device="meta")
    everything = torch.empty(shape[0] * FAR, dtype=dtype, device="meta")
    return everything.as_strided(shape, (FAR, *row.stride()))


def _propose(
    num_rows: int, vocab: int, num_candidates: int = 10, **kwargs: Any
) -> Callable[[], Any]:
    x = torch.full((1, LENGTH), vocab).expand(num_rows, LENGTH)
    logits = _logits(num_rows, vocab, kwargs)
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
    num_rows = 64
    x = torch.full((num_rows, LENGTH), vocab)
    logits = _logits(num_rows, vocab, kwargs)
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
    values = kwargs.pop("values", torch.zeros(n, num_candidates, dtype=dtype))
    arguments.update(kwargs)
    index = torch.empty(n, dtype=torch.int64)
    lme, ess = torch.empty(2, n, dtype=torch.float64)
    return lambda: launch_select(
        values, *arguments.values(), items, index, lme, ess, [t.contiguous() for t in targets]
    )


def _soft_value(kind: str, num_samples: int = 16, **kwargs: Any) -> Callable[[], Any]:
    dtype = kwargs.pop("dtype", torch.float32)
    values = kwargs.pop("values", torch.zeros(64, num_samples, dtype=dtype))
    alpha, tau = kwargs.get("alpha", 0.1), kwargs.get("tau", 0.1)
    return lambda: launch_soft_value(values, alpha, kind, tau, torch.empty(64, dtype=dtype))


def _gaussian(**kwargs: Any) -> Callable[[], Any]:
    dtype = kwargs.pop("dtype", torch.float32)
    n, k, d = 16, 8, 12_288
    x, output = kwargs.pop("x", torch.zeros(n, d, dtype=dtype)), torch.zeros(n, d, dtype=dtype)
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
    for vocab in (50_258, 250_000):
        yield _propose(64, vocab)
    for vocab in (4, 32, 50_258):
        yield _posterior(vocab, 0)
        yield _posterior(vocab, 4)
    yield lambda: launch_masked_keys(
        torch.zeros(64, 200, dtype=torch.int64), torch.empty(64, 2, dtype=torch.int64)
    )
    yield _select(gather=[(torch.zeros(64, 10, 1024), None)])
    for kind in ("lme", "mean", "cvar"):
        yield _soft_value(kind)
    yield from triton_training.default_calls()


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
    # A row of logits for each site; tokens that do not lie side by side; far rows.
    for vocab in (4, 300):
        site = dict(logits=torch.zeros(7, vocab), index=torch.zeros(64, LENGTH, dtype=torch.int64))
        apart = torch.zeros(vocab, LENGTH, 64).permute(2, 1, 0)
        for given in (site, dict(logits=apart), dict(logits=_far(64, LENGTH, vocab))):
            yield _propose(64, vocab, **given)
            yield _posterior(vocab, 3, **given)
            yield _posterior(vocab, 0, **given)
    # Several tiles, and one of several blocks.
    for vocab in (2000, 9000):
        yield _propose(64, vocab, temperature=0.5)
        yield _posterior(vocab, 3, temperature=0.5)
    far_tokens = _far(64, LENGTH, dtype=torch.int64)
    few_keys = torch.empty(64, 2, dtype=torch.int64)
    yield lambda: launch_masked_keys(far_tokens, few_keys)
    yield _select(values=_far(64, 10), gather=[(_far(64, 10, 1024), None)])
    yield _select(values=torch.zeros(64, 20)[:, ::2])
    yield _soft_value("lme", values=_far(64, 16))
    yield _soft_value("lme", values=torch.zeros(64, 32)[:, ::2])
    yield _gaussian(x=_far(16, 12_288))
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
    yield from triton_training.branch_calls()


def _combinations() -> Iterator[Callable[[], Any]]:
    """Every dtype with every constant of the kernels that have several."""
    index = torch.zeros(64, LENGTH, dtype=torch.int64)
    for vocab, dtype, per_site in itertools.product(
        (4, 8, 16, 32, 300, 2000, 9000), (torch.float32, torch.float64), (False, True)
    ):
        given: dict[str, Any] = {"dtype": dtype}
        if per_site:
            given = {"logits": torch.zeros(7, vocab, dtype=dtype), "index": index}
        yield _posterior(vocab, 0, **given)
        for temperature in (1.0, 0.5):
            yield _posterior(vocab, 3, temperature=temperature, **given)
            for rows in (64, 4096) if vocab <= 32 else (64,):
                ids = torch.zeros(rows, LENGTH, dtype=torch.int64)
                here = {**given, "index": ids} if per_site else given
                yield _propose(rows, vocab, temperature=temperature, **here)


def _usage(report: str) -> dict[str, int]:
    """Registers per thread and bytes spilled, from what ptxas said."""
    registers = re.search(r"Used (\d+) registers", report)
    stores = re.search(r"(\d+) bytes spill stores", report)
    loads = re.search(r"(\d+) bytes spill loads", report)
    if registers is None or stores is None or loads is None:
        raise RuntimeError(f"ptxas said nothing about registers:\n{report}")
    return {
        "registers": int(registers[1]),
        "spill_store_bytes": int(stores[1]),
        "spill_load_bytes": int(loads[1]),
    }


def _compile(key: Key, launch: Launch, capability: int) -> dict[str, Any]:
    kernel, args, kwargs = launch
    triton.runtime.driver.set_active(_Driver(capability))
    report = io.StringIO()
    with redirect_stdout(report):
        compiled = kernel.run(*args, grid=(1,), warmup=True, **kwargs)
    constants = {k: v for k, v in kwargs.items() if k not in OPTIONS}
    return {
        "kernel": key[0],
        "types": " ".join("-" if t is None else str(t) for t in key[1:-1] if t != "int"),
        "constants": constants,
        "architecture": f"sm_{capability}",
        **_usage(report.getvalue()),
        "shared_bytes": compiled.metadata.shared,
    }


def table(everything: bool = False) -> list[dict[str, Any]]:
    """One row per kernel, specialisation and architecture; "default" marks what samplers launch.

    Defaults are compiled for every architecture, other branches for sm_90.

    Args:
        everything: not only each branch, but all combinations.
    """
    groups = [_default_calls(), _branch_calls(), _combinations() if everything else ()]
    # Far rows have no memory to note a fault in.
    faults = device_faults.DeviceFaults(torch.device("cpu"))
    jobs: dict[tuple[Key, int], tuple[Launch, bool]] = {}
    for calls, default in zip(groups, (True, False, False), strict=True):
        with device_faults.deferred(faults), _recorded() as launches:
            for call in calls:
                call()
        for key, launch in launches.items():
            for capability in ARCHITECTURES if default else (MAIN,):
                jobs.setdefault((key, capability), (launch, default))
    return [
        {**_compile(key, launch, capability), "default": default}
        for (key, capability), (launch, default) in jobs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORDS / f"triton-{triton.__version__}.json")
    parser.add_argument("--all", action="store_true", help="all combinations of branches")
    arguments = parser.parse_args()
    rows = table(arguments.all)
    record = {"compiler": f"Triton {triton.__version__}", "options": OPTIONS}
    lines = ",\n".join(json.dumps(row) for row in rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record)[:-1] + f', "rows": [\n{lines}\n]}}\n')
    for row in rows:
        mark = "*" if row["default"] else " "
        constants = " ".join(f"{k}={v}" for k, v in row["constants"].items())
        print(
            f"{mark} {row['architecture']:6} {row['registers']:4} registers "
            f"{row['spill_store_bytes']:4} B spilled {row['kernel']} {constants}"
        )


if __name__ == "__main__":
    main()
