"""What benches/gpu_ops.py times: each op at several sizes, with rivals and a test of agreement."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fastguide import ops

Call = Callable[[], Any]


@dataclass(frozen=True)
class Place:
    """Where settings are made. small: sizes that a test on the CPU can afford."""

    device: str = "cuda"
    small: bool = False

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype)

    def chains(self, n: int) -> torch.Tensor:
        return torch.arange(n, device=self.device)


@dataclass(frozen=True)
class Setting:
    """One op at one size.

    Attributes:
        ours: the op into preallocated outputs.   bytes_moved: what it must read and write.
        rivals, ceilings: by name; what no version of `ours` could beat, besides the copy.
        agrees: raises unless the results are right.   backend: None for the default.
    """

    op: str
    name: str
    ours: Call
    bytes_moved: int
    rivals: Mapping[str, Call] = field(default_factory=dict)
    ceilings: Mapping[str, Call] = field(default_factory=dict)
    agrees: Call = lambda: None
    backend: str | None = None


def select_settings(at: Place) -> Iterator[Setting]:
    for n, k, inner in ((1024, 16, 12_288), (256, 10, 200), (32, 10, 200)):
        if at.small:
            n, inner = n // 16, inner // 50
        values, source = at.randn(n, k), at.randn(n, k, inner)
        arguments: dict[str, Any] = dict(alpha=0.5, seed=1, chains=at.chains(n), step=3)
        arguments.update(gather=[source])
        out = ops.select(values, **arguments)
        gathered, rows = at.randn(n, inner), at.chains(n) * k
        flat = source.view(n * k, inner)

        def eager(values=values, flat=flat, rows=rows, gathered=gathered) -> torch.Tensor:
            index = torch.multinomial(torch.softmax(values / 0.5, -1), 1)[:, 0]
            return torch.index_select(flat, 0, rows + index, out=gathered)

        def agrees(out=out, source=source) -> None:
            rows = torch.arange(len(source), device=source.device)
            assert torch.equal(out.gathered[0], source[rows, out.index])

        for backend in (None, "triton"):
            yield Setting(
                "select",
                f"N={n} K={k} rows of {inner} float32",
                lambda v=values, a=arguments, o=out: ops.select(v, **a, out=o),
                2 * 4 * n * inner + 4 * n * k,
                {"softmax + multinomial + index_select": eager},
                agrees=agrees,
                backend=backend,
            )


def resample_settings(at: Place) -> Iterator[Setting]:
    for groups, n, scheme in (
        (1, 1_000_000, "systematic"),
        (1, 1_000_000, "multinomial"),
        (4096, 16, "systematic"),
        (64, 1024, "systematic"),
        (64, 1024, "ssp"),
    ):
        if at.small:
            groups, n = -(-groups // 64), -(-n // 100)
        log_w = at.randn(groups, n)
        arguments: dict[str, Any] = dict(seed=1, step=3, chains=at.chains(groups), scheme=scheme)
        out = ops.resample(log_w, **arguments)

        def eager(log_w=log_w, n=n) -> torch.Tensor:
            cdf = torch.softmax(log_w, -1, dtype=torch.float64).cumsum(-1)
            shift = torch.rand(len(cdf), 1, device=cdf.device, dtype=torch.float64)
            grid = (torch.arange(n, device=cdf.device) + shift) / n
            return torch.searchsorted(cdf, grid).clamp_(max=n - 1)

        def agrees(log_w=log_w, out=out, n=n, scheme=scheme) -> None:
            counts = torch.zeros_like(out.ancestors).scatter_add_(
                1, out.ancestors, torch.ones_like(out.ancestors)
            )
            due = n * torch.softmax(log_w.double(), -1)
            bound = (
                1 + 1e-6 if scheme in {"systematic", "ssp"} else 10 * float(due.max()) ** 0.5 + 10
            )
            assert float((counts - due).abs().max()) < bound

        yield Setting(
            "resample",
            f"G={groups} N={n} {scheme}",
            lambda w=log_w, a=arguments, o=out: ops.resample(w, **a, out=o),
            12 * groups * n,
            {"softmax + cumsum + searchsorted": eager} if scheme == "systematic" else {},
            agrees=agrees,
        )


def unique_settings(at: Place) -> Iterator[Setting]:
    for rows, distinct, length in ((2560, 600, 50), (100_000, 30_000, 200)):
        if at.small:
            rows, distinct = rows // 20, distinct // 20
        pool = torch.randint(0, 4, (distinct, length), device=at.device)
        x = pool[torch.randint(0, distinct, (rows,), device=at.device)]
        keys = ops.masked_keys(x)
        out = ops.unique_rows(x, keys)

        def agrees(x=x, out=out) -> None:
            assert torch.equal(x[out.first][out.inverse], x)
            assert int(out.count) == len(torch.unique(x, dim=0))

        yield Setting(
            "unique_rows",
            f"R={rows} L={length} about {distinct} distinct",
            lambda x=x, keys=keys, out=out: ops.unique_rows(x, keys, out=out),
            8 * rows * length + 16 * rows + 16 * rows,
            {"torch.unique(dim=0)": lambda x=x: torch.unique(x, dim=0, return_inverse=True)},
            agrees=agrees,
        )


def masked_settings(at: Place) -> Iterator[Setting]:
    for n, length, vocab, k, rho in (
        (256, 128, 50_258, 10, 1 / 16),
        (64, 128, 50_258, 10, 1 / 64),
        (8, 128, 50_258, 10, 1 / 64),
        (4096, 200, 4, 10, 1 / 64),
        (256, 200, 5, 10, 1 / 64),
    ):
        if at.small:
            n, length, vocab = -(-n // 64), length // 8, min(vocab, 500)
        x = torch.full((n, length), vocab, device=at.device)
        x[:, ::2] = 0
        logits, keys = at.randn(n, length, vocab), ops.masked_keys(x)
        where = f"N={n} L={length} V={vocab} half masked"
        yield from _propose_settings(at, where, logits, x, keys, k, rho)
        out = ops.masked_posterior(logits, x, mask_token=vocab)

        def argmax(x=x, logits=logits, vocab=vocab) -> torch.Tensor:
            return torch.where(x == vocab, logits.argmax(-1), x)

        yield Setting(
            "masked_posterior",
            f"mode, {where}",
            lambda z=logits, x=x, v=vocab, o=out: ops.masked_posterior(z, x, mask_token=v, out=o),
            n * length * (16 + 2 * vocab),
            {"argmax, where": argmax},
            agrees=lambda out=out, argmax=argmax: _equal(out, argmax()),
        )
        del logits, out, argmax


def _propose_settings(
    at: Place,
    where: str,
    logits: torch.Tensor,
    x: torch.Tensor,
    keys: torch.Tensor,
    k: int,
    rho: float,
) -> Iterator[Setting]:
    n, length, vocab = logits.shape
    arguments: dict[str, Any] = dict(mask_token=vocab, rho=rho, seed=1, chains=at.chains(n))
    arguments.update(step=3, num_candidates=k)
    out = ops.masked_propose(logits, x, keys, **arguments)

    def sparse() -> torch.Tensor:
        """Draws where something is revealed; the host waits for how many that are."""
        reveals = (x == vocab)[:, None] & (torch.rand(n, k, length, device=x.device) < rho)
        row, candidate, site = reveals.nonzero(as_tuple=True)
        tokens = x[:, None].repeat(1, k, 1)
        drawn = torch.multinomial(torch.softmax(logits[row, site], -1), 1)[:, 0]
        tokens[row, candidate, site] = drawn
        return tokens

    def agrees() -> None:
        assert bool(((out.tokens == x[:, None]) | (x[:, None] == vocab)).all())
        mean = n * k * (length - length // 2) * rho
        assert abs(int(out.changed.sum()) - mean) <= 8 * mean**0.5 + 8

    sites = (length // 2) * (1 - (1 - rho) ** k)
    yield Setting(
        "masked_propose",
        f"{where} K={k} rho=1/{round(1 / rho)}",
        lambda: ops.masked_propose(logits, x, keys, **arguments, out=out),
        int(n * (8 * length * (k + 1) + 4 * vocab * sites)),
        {"sparse eager": sparse},
        agrees=agrees,
    )


def _equal(got: torch.Tensor, due: torch.Tensor) -> None:
    assert torch.equal(got, due)


def gaussian_settings(at: Place) -> Iterator[Setting]:
    k = 8
    for n in (64, 16):
        size = 120 if at.small else 12_288
        x, output = at.randn(n, size), at.randn(n, size)
        arguments: dict[str, Any] = dict(a=0.9, b=0.1, s=0.3, seed=1, chains=at.chains(n), step=3)
        arguments.update(num_candidates=k)
        out = ops.gaussian_propose(x, output, **arguments)

        def eager(x=x, output=output) -> torch.Tensor:
            mean = 0.9 * x[:, None] + 0.1 * output[:, None]
            return mean + 0.3 * torch.randn(len(x), k, x.shape[1], device=x.device)

        def agrees(x=x, output=output, target=out[0]) -> None:
            noise = (target - (0.9 * x + 0.1 * output)[:, None]) / 0.3
            assert abs(float(noise.mean())) < 0.02
            assert abs(float(noise.std()) - 1) < 0.02

        def call(module: ModuleType, x=x, output=output, a=arguments, out=out) -> Call:
            given = (a["a"], a["b"], a["s"], 1, a["chains"], 3 << 8 | 1, None, None, None)
            return lambda: module.launch_gaussian_propose(x, output, *given, *out)

        on_gpu = at.device == "cuda"
        yield Setting(
            "gaussian_propose",
            f"N={n} K={k} D={size} float32",
            lambda x=x, z=output, a=arguments, o=out: ops.gaussian_propose(x, z, **a, out=o),
            4 * n * size * (k + 2),
            {"randn + arithmetic": eager}
            | ({"the same under torch.compile": torch.compile(eager)} if on_gpu else {}),
            {"its arithmetic without the stores": call(without_stores(Path(tempfile.mkdtemp())))}
            if on_gpu
            else {},
            agrees,
        )


def without_stores(folder: Path) -> ModuleType:
    """kernels/gaussian_propose.py, whose candidates are stored on a condition that never holds."""
    spec = importlib.util.find_spec("fastguide.kernels.gaussian_propose")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    store = "tl.store(out_ptr + o_out, candidate, mask=m_element)"
    assert store in text
    # Triton reads the source of what it compiles: it has to be a file that stays.
    file = folder / "gaussian_propose_without_stores.py"
    file.write_text(text.replace(store, f"{store[:-1]} & (candidate > 1e30))"))
    changed = importlib.util.spec_from_file_location(file.stem, file)
    assert changed is not None
    assert changed.loader is not None
    module = importlib.util.module_from_spec(changed)
    changed.loader.exec_module(module)
    return module


def stream_settings(at: Place) -> Iterator[Setting]:
    n, k, size = (4, 2, 50) if at.small else (64, 8, 65_536)
    chains = at.chains(n)
    common = dict(num_elements=size, num_candidates=k)
    for op, rival in (("philox_normal", torch.randn), ("philox_uniform", torch.rand)):
        draw = getattr(ops, op)
        out = draw(1, chains, 3, 2, **common)
        other = torch.empty_like(out)
        yield Setting(
            op,
            f"N={n} K={k} E={size} {str(out.dtype).removeprefix('torch.')}",
            lambda draw=draw, out=out: draw(1, chains, 3, 2, **common, out=out),
            out.numel() * out.element_size(),
            {f"torch.{rival.__name__}": lambda f=rival, out=other: f(out.shape, out=out)},
            agrees=lambda draw=draw, out=out: _equal(out, draw(1, chains, 3, 2, **common)),
        )


def row_settings(at: Place) -> Iterator[Setting]:
    rows = 100 if at.small else 100_000
    x = torch.randint(0, 5, (rows, 200), device=at.device)
    keys = ops.masked_keys(x)
    yield Setting(
        "masked_keys",
        f"R={rows} L=200",
        lambda: ops.masked_keys(x, out=keys),
        rows * (1600 + 16),
        agrees=lambda: _equal(keys[:1], ops.masked_keys(x[:1])),
    )
    values = at.randn(rows, 16)
    soft = ops.soft_value(values, 0.1)

    def eager() -> torch.Tensor:
        return 0.1 * ((values / 0.1).logsumexp(1) - math.log(16))

    yield Setting(
        "soft_value",
        f"R={rows} S=16 float32",
        lambda: ops.soft_value(values, 0.1, out=soft),
        4 * rows * 17,
        {"logsumexp": eager},
        agrees=lambda: torch.testing.assert_close(soft, eager(), rtol=1e-4, atol=1e-4),
    )


GROUPS = (
    gaussian_settings,
    select_settings,
    masked_settings,
    resample_settings,
    unique_settings,
    stream_settings,
    row_settings,
)
