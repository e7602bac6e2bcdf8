"""What tests of GPU kernels share. Their bodies run without a GPU too: there the kernels are
interpreted or emulated, a replayed graph is a second call, and far is not very far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

DEVICES = pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cpu",
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="the kernels are compiled where there is a GPU"
            ),
        ),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
FAR = {"cpu": 1009, "cuda": 2**31 + 16}
"""Elements from the first to the last: on a device more than 32 bits can say."""
GIB = 2**30


def moved(value: Any, device: str) -> Any:
    """The same arguments or results on `device`, strides kept; sequences as plain tuples."""
    if isinstance(value, torch.Tensor):
        if value.is_contiguous():
            return value.to(device)
        copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        return copy.copy_(value)
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(moved(item, device) for item in value)
    return value


def tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested arguments or results, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in tensors(item)]


def fresh(elements: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Uninitialised memory; skips where a device has too little."""
    if device == "cuda" and torch.cuda.mem_get_info()[0] < elements * dtype.itemsize + GIB:
        pytest.skip("needs more device memory")
    return torch.empty(elements, dtype=dtype, device=device)


def far(tensor: torch.Tensor, device: str, dim: int = 0) -> torch.Tensor:
    """A copy on `device` whose last entry along `dim` lies FAR elements after the first."""
    first = tensor.movedim(dim, 0)
    inner = first[0].numel()
    stride = max(inner, -(-FAR[device] // (len(first) - 1)))
    base = fresh(stride * (len(first) - 1) + inner, tensor.dtype, device)
    strides = torch.empty(first.shape[1:], device="meta").stride()
    return base.as_strided(first.shape, (stride, *strides)).copy_(first).movedim(0, dim)


def captured(work: Callable[[], Any], device: str) -> tuple[Any, Callable[[], None]]:
    """The results of `work`, and what computes them anew in place."""
    if device == "cpu":
        results = work()

        def again() -> None:
            for kept, new in zip(tensors(results), tensors(work()), strict=True):
                kept.copy_(new)

        return results, again
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = work()
    return results, graph.replay


@contextmanager
def late_stream(device: str) -> Iterator[None]:
    """Inside, work goes to a stream that is busy for a while: who does not wait comes too early."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        yield
    stream.synchronize()


def filled_late(call: Callable[..., Any], arguments: dict[str, Any], device: str) -> Any:
    """The results on the CPU of a call on a late stream, whose inputs arrive there too."""
    here = moved(arguments, device)
    sources = [t.cpu().clone() for t in tensors(here)]
    if device == "cuda":
        sources = [source.pin_memory() if source.numel() else source for source in sources]
    for tensor in tensors(here):
        tensor.zero_()
    with late_stream(device):
        for tensor, source in zip(tensors(here), sources, strict=True):
            tensor.copy_(source, non_blocking=True)
        got = call(**here)
    return moved(got, "cpu")
