"""Every op on a GPU: against the oracle, in graphs, on other streams, far into memory.

Needs a CUDA device. What these kernels compute is tested without one in test_emulated.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastguide import ops, reference
from fastguide.errors import BackendError, NonFiniteError
from fastguide.kernels.cuda_launchers import SCHEMES
from fastguide.testing import Case, assert_matches, cases

pytestmark = pytest.mark.gpu

CUDA = "cuda"
CUDA_OPS = ("resample", "select", "unique_rows")
GIB = 2**30
FAR = 2**31 + 16
"""A stride, in elements, that 32-bit arithmetic cannot hold."""


def moved(value: Any, device: str) -> Any:
    """The same arguments or results on `device`, strides kept."""
    if isinstance(value, torch.Tensor):
        if value.is_contiguous():
            return value.to(device)
        copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        return copy.copy_(value)
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def on_gpu(case: Case, **extra: Any) -> Any:
    function: Callable[..., Any] = getattr(ops, case.op)
    return function(*moved(case.args, CUDA), **moved(case.kwargs, CUDA), **extra)


def plain(result: Any) -> Any:
    """Results on the CPU as plain tuples."""
    if isinstance(result, torch.Tensor):
        return result.cpu()
    return tuple(plain(part) for part in result)


@pytest.mark.parametrize("case", [c for op in sorted(ops.backends()) for c in cases(op)], ids=str)
def test_default_backend_matches_the_reference(case: Case) -> None:
    assert_matches(case.op, plain(on_gpu(case)), plain(case.oracle()))


@pytest.mark.parametrize("case", [c for op in CUDA_OPS for c in cases(op)], ids=str)
def test_cuda_backend_matches_the_reference(case: Case) -> None:
    with ops.use_backend("cuda"):
        got = on_gpu(case)
    assert_matches(case.op, plain(got), plain(case.oracle()))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("groups", "particles"), [(500, 4), (64, 100), (3, 8192), (2, 300_000)])
def test_resample_sizes(scheme: str, groups: int, particles: int) -> None:
    log_w = 2 * torch.randn(groups, particles, dtype=torch.float64)
    arguments = dict(seed=9, step=3, scheme=scheme)
    with ops.use_backend("cpp"):
        due = ops.resample(log_w, chains=torch.arange(groups), **arguments)
    with ops.use_backend("cuda"):
        chains = torch.arange(groups, device=CUDA)
        got = ops.resample(log_w.to(CUDA), chains=chains, **arguments)
    # Beyond one tile the order of addition differs: an edge of the CDF may move by a rounding.
    different = int((got.ancestors.cpu() != due.ancestors).sum())
    assert different <= (0 if particles <= 8192 else 3)
    torch.testing.assert_close(got.log_z.cpu(), due.log_z, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(got.ess.cpu(), due.ess, rtol=1e-12, atol=0.0)


def test_systematic_offspring_stay_within_one() -> None:
    log_w = torch.randn(1, 1_000_000, device=CUDA)
    arguments = dict(seed=1, step=0, chains=torch.zeros(1, dtype=torch.int64, device=CUDA))
    ancestors = ops.resample(log_w, **arguments).ancestors
    counts = torch.bincount(ancestors[0], minlength=1_000_000)
    due = torch.softmax(log_w[0].double(), 0) * 1_000_000
    assert float((counts - due).abs().max()) < 1 + 1e-6


@pytest.mark.parametrize("rows", [8192, 8193, 300_000])
def test_many_unique_rows(rows: int) -> None:
    x = torch.randint(0, 3, (rows, 11), device=CUDA)
    got = ops.unique_rows(x)
    count = int(got.count)
    assert count == len(torch.unique(x, dim=0))
    first = got.first[:count]
    assert bool((first[1:] > first[:-1]).all())
    assert torch.equal(x[first][got.inverse], x)
    assert not bool(got.first[count:].any())


def selection(n: int, **kwargs: Any) -> dict[str, Any]:
    return dict(alpha=0.4, seed=3, chains=torch.arange(n, device=CUDA), step=2, **kwargs)


def test_graph_reads_scalars_and_tensors_anew() -> None:
    values = torch.randn(64, 10, device=CUDA)
    states = torch.randint(0, 4, (64, 10, 50), device=CUDA)
    seed = torch.tensor([5], device=CUDA)
    step = torch.tensor([0], device=CUDA)
    chains = torch.arange(64, device=CUDA)

    def work() -> tuple[Any, Any, Any]:
        chosen = ops.select(values, alpha=0.4, seed=seed, chains=chains, step=step, gather=[states])
        distinct = ops.unique_rows(chosen.gathered[0])
        moved_on = ops.resample(chosen.lme.view(4, 16), seed=seed, chains=chains[:4], step=step)
        return chosen, distinct, moved_on

    stream = torch.cuda.Stream()
    with ops.deferred_faults(CUDA) as faults:
        with torch.cuda.stream(stream):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = work()
        for number in (1, 2, 77):
            step.fill_(number)
            values.normal_()
            graph.replay()
            got = plain(results)
            due = reference.select(
                values.cpu(),
                alpha=0.4,
                seed=5,
                chains=chains.cpu(),
                step=number,
                gather=[states.cpu()],
            )
            assert_matches("select", got[0], due)
            assert_matches("unique_rows", got[1], reference.unique_rows(due[3][0]))
            again = reference.resample(
                due[1].view(4, 16), seed=5, chains=chains[:4].cpu(), step=number
            )
            assert torch.equal(got[2][0], again[0])
        faults.check()
        values[7, 3] = torch.nan
        graph.replay()
        with pytest.raises(NonFiniteError, match="row 7, candidate 3"):
            faults.check()


def test_large_groups_are_captured_too() -> None:
    log_w = torch.randn(2, 50_000, device=CUDA)
    arguments = dict(seed=1, step=4, chains=torch.arange(2, device=CUDA))
    with ops.deferred_faults(CUDA):
        due = ops.resample(log_w, **arguments).ancestors
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = ops.resample(log_w, **arguments).ancestors
        for _ in range(3):
            got.zero_()
            graph.replay()
            assert torch.equal(got, due)


def test_capture_without_a_place_for_faults_is_refused() -> None:
    values = torch.randn(4, 3, device=CUDA)
    ops.select(values, **selection(4))
    graph = torch.cuda.CUDAGraph()
    chains = torch.arange(4, device=CUDA)
    with torch.cuda.graph(graph), pytest.raises(BackendError, match="deferred_faults"):
        ops.select(values, alpha=0.4, seed=3, chains=chains, step=2)


def test_nothing_waits_for_the_device() -> None:
    values = torch.randn(64, 10, device=CUDA)
    rows = torch.randint(0, 3, (640, 20), device=CUDA)
    arguments = selection(64)
    with ops.deferred_faults(CUDA):
        for attempt in ("warm", "checked"):
            torch.cuda.set_sync_debug_mode("error" if attempt == "checked" else "default")
            try:
                index = ops.select(values, **arguments).index
                ops.unique_rows(rows)
                ops.resample(values, seed=1, step=0, chains=arguments["chains"])
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert index.is_cuda


def test_kernels_run_on_the_current_stream() -> None:
    values = torch.zeros(1000, 16, device=CUDA)
    arguments = selection(1000)
    due = torch.randn(1000, 16)
    source = due.pin_memory()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        values.copy_(source, non_blocking=True)
        got = ops.select(values, **arguments)
    stream.synchronize()
    arguments["chains"] = arguments["chains"].cpu()
    assert_matches("select", plain(got), reference.select(due, **arguments))


def far_rows(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor whose rows lie FAR elements apart. Skips where memory is short."""
    inner = 1
    for length in shape[1:]:
        inner *= length
    elements = FAR * (shape[0] - 1) + inner
    if torch.cuda.mem_get_info()[0] < elements * dtype.itemsize + GIB:
        pytest.skip("needs more device memory")
    base = torch.empty(elements, dtype=dtype, device=CUDA)
    inner_strides = torch.empty(shape[1:], device="meta").stride()
    return base.as_strided(shape, (FAR, *inner_strides))


def test_offsets_beyond_32_bits() -> None:
    rows = far_rows((4, 6), torch.int8)
    rows.copy_(torch.tensor([[1] * 6, [2] * 6, [1] * 6, [2] * 6]))
    assert ops.unique_rows(rows).inverse.tolist() == [0, 1, 0, 1]
    del rows
    values = far_rows((2, 5), torch.float32)
    values.copy_(torch.tensor([[0.0, 3, 1, 2, 0], [0, 1, 2, 5, 4]]))
    images = far_rows((2, 5, 7), torch.int8)
    images.copy_(torch.arange(70).view(2, 5, 7))
    arguments = {**selection(2), "alpha": 0.0}
    got = ops.select(values, gather=[images], **arguments)
    assert got.index.tolist() == [1, 3]
    assert got.gathered[0].tolist() == [list(range(7, 14)), list(range(56, 63))]
    ancestors = ops.resample(values, seed=1, step=0, chains=arguments["chains"]).ancestors
    due = reference.resample(values.cpu(), seed=1, step=0, chains=torch.arange(2))[0]
    assert torch.equal(ancestors.cpu(), due)


def test_a_thread_of_its_own() -> None:
    """A new thread has no current context until something makes one."""
    import threading

    values, results = torch.randn(8, 4, device=CUDA), []
    arguments = selection(8)
    due = ops.select(values, **arguments).index
    thread = threading.Thread(target=lambda: results.append(ops.select(values, **arguments).index))
    thread.start()
    thread.join()
    assert torch.equal(results[0], due)
