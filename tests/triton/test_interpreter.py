"""Every Triton kernel and branch in the interpreter: integers equal the oracle's."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import sanitize_gpu
import torch
import triton
import triton.language as tl

from fastguide import ops, reference
from fastguide.errors import BackendError, FastguideError
from fastguide.ops._backend import TRAINING_OPS, TRITON_OPS
from fastguide.testing import Case, assert_matches, cases

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels are compiled where there is a GPU"
)

# Seconds each; the others cover the same branches.
LONG = {"many candidates", "everything revealed", "hot", "cold"}


def marked(case: Case) -> Any:
    long = case.op == "masked_propose" and case.name in LONG
    return pytest.param(case, marks=[pytest.mark.slow] if long else [], id=str(case))


ALL = [marked(case) for op in sorted(TRITON_OPS - TRAINING_OPS) for case in cases(op)]


def flatten(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flatten(part)]


def like(result: Any) -> Any:
    """Fresh poisoned outputs of the same shapes."""
    if isinstance(result, torch.Tensor):
        return torch.empty_like(result, memory_format=torch.contiguous_format)
    return tuple(like(part) for part in result)


@pytest.mark.parametrize("case", ALL)
def test_matches_the_reference(case: Case) -> None:
    due = case.oracle()
    out = like(due)
    with ops.use_backend("triton"):
        got = case.run(out=out)
    assert_matches(case.op, got, due)
    for a, b in zip(flatten(got), flatten(out), strict=True):
        assert a is b


def propose(**changes: Any) -> Any:
    """A proposal with unaligned candidate ids, an index and several blocks of sites."""
    n, length, vocab = 3, 70, changes.pop("vocab", 5)
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, vocab + 1, (n, length), generator=generator)
    x[:, :: 3 if vocab <= 32 else 16] = vocab
    arguments: dict[str, Any] = dict(
        logits=2 * torch.randn(4, length, vocab, generator=generator),
        x=x,
        keys=reference.masked_keys(x),
        mask_token=vocab,
        rho=0.2,
        seed=2**63 + 5,
        chains=torch.tensor([0, 5, 2**32 - 1]),
        step=9,
        num_candidates=9,
        index=torch.tensor([3, 0, 1]),
        temperature=0.8,
        first_candidate=torch.tensor([0, 3, 2**32 - 9]),
    )
    return {**arguments, **changes}


def posterior(**changes: Any) -> Any:
    arguments = propose(vocab=changes.pop("vocab", 5))
    names = ("logits", "x", "mask_token", "index", "keys", "seed", "temperature")
    return {**{name: arguments[name] for name in names}, "num_samples": 3, **changes}


def selection(**changes: Any) -> Any:
    generator = torch.Generator().manual_seed(4)
    arguments: dict[str, Any] = dict(
        values=torch.randn(7, 21, generator=generator),
        alpha=0.3,
        seed=8,
        chains=torch.arange(7),
        step=1,
        gather=[(torch.arange(12.0).view(6, 2), torch.zeros(7, 21, dtype=torch.int64))],
    )
    return {**arguments, **changes}


def gaussian(**changes: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    arguments: dict[str, Any] = dict(
        x=torch.randn(3, 70, generator=generator),
        output=torch.randn(2, 70, generator=generator),
        a=0.9,
        b=-0.4,
        s=0.6,
        seed=3,
        chains=torch.arange(3),
        step=2,
        num_candidates=5,
        index=torch.tensor([1, 0, 1]),
        first_candidate=torch.tensor([0, 7, 2]),
    )
    return {**arguments, **changes}


def check(op: str, arguments: dict[str, Any]) -> None:
    """Triton agrees with the oracle, and in every integer and token with the C++ kernels."""
    with ops.use_backend("triton"):
        got = getattr(ops, op)(**arguments)
    assert_matches(op, got, getattr(reference, op)(**arguments))
    with ops.use_backend("cpp"):
        native = getattr(ops, op)(**arguments)
    for a, b in zip(flatten(got), flatten(native), strict=True):
        if not a.is_floating_point():
            assert torch.equal(a, b)


@pytest.mark.parametrize("chunk", [4, 16])
def test_unaligned_candidates_in_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastguide.kernels import masked_propose

    monkeypatch.setattr(masked_propose, "propose_tile", lambda *sizes: (chunk, 32))
    check("masked_propose", propose())
    check("masked_propose", propose(first_candidate=None, num_candidates=1))


@pytest.mark.parametrize("vocab", [1, 2, 32, 33, 300])
def test_vocabularies_on_both_sides_of_the_border(vocab: int) -> None:
    check("masked_propose", propose(vocab=vocab, num_candidates=2))
    check("masked_posterior", posterior(vocab=vocab))
    check("masked_posterior", posterior(vocab=vocab, num_samples=0, keys=None))


@pytest.mark.parametrize("vocab", [5, 40])
def test_strided_double_logits(vocab: int) -> None:
    logits = torch.randn(vocab, 70, 8, dtype=torch.float64).permute(2, 1, 0)[::2]
    check("masked_propose", propose(vocab=vocab, logits=logits, num_candidates=3))
    check("masked_posterior", posterior(vocab=vocab, logits=logits))


@pytest.mark.parametrize("offset", [0.0, 200.0, 1e4, 1e30])
def test_tiles_with_maxima_far_apart(offset: float) -> None:
    """Each tile is summed relative to its own largest logit; one may hold no token at all."""
    logits = torch.randn(4, 70, 2100)
    logits[0, :, 1024:] += offset
    logits[3, :, 1024:2048] -= offset
    logits[1, :, :1024] = -torch.inf
    check("masked_propose", propose(vocab=2100, logits=logits, num_candidates=2))
    check("masked_posterior", posterior(vocab=2100, logits=logits, num_samples=1))


@triton.jit
def _everything(count):  # type: ignore[no-untyped-def]
    return tl.exp(count * 0.0)


@pytest.mark.parametrize("vocab", [5, 300])
def test_the_sum_in_order_decides_ties(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw is treated as one whose target lies at a step of the CDF."""
    from fastguide.kernels import categorical, select

    monkeypatch.setattr(categorical, "tie_margin", _everything)
    monkeypatch.setattr(select, "tie_margin", _everything)
    logits = propose(vocab=vocab)["logits"]
    logits[..., -1] = -torch.inf
    check("masked_propose", propose(vocab=vocab, logits=logits, num_candidates=2, rho=0.1))
    if vocab == 5:
        check("masked_posterior", posterior(logits=logits))
        values = selection()["values"]
        values[:, -2:] = -torch.inf
        check("select", selection(values=values))


@pytest.mark.parametrize("k", [2, 40])
def test_a_target_at_a_step_of_the_cdf(k: int) -> None:
    """The first candidate's weight is the draw itself, and the order of addition decides."""
    chains = torch.arange(40)
    u = reference.philox_uniform(5, chains, 1, 7, num_elements=1)[:, 0, 0]
    rest = (torch.log1p(-u) - math.log(k - 1))[:, None].expand(-1, k - 1)
    values = torch.cat([torch.log(u)[:, None], rest], dim=1)
    arguments = dict(alpha=1.0, seed=5, chains=chains, step=1)
    with ops.use_backend("triton"):
        got = ops.select(values, **arguments)
    with ops.use_backend("cpp"):
        due = ops.select(values, **arguments)
    assert torch.equal(got.index, due.index)
    assert 2 < int((got.index == 0).sum()) < 38


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("s", [0.0, 0.6])
def test_gaussian_branches(dtype: torch.dtype, shift: bool, s: float) -> None:
    if shift and s == 0:
        pytest.skip("refused by the op")
    arguments = gaussian(s=s)
    arguments["x"], arguments["output"] = arguments["x"].to(dtype), arguments["output"].to(dtype)
    # Rows that do not touch, and one tensor whose elements lie apart.
    arguments["x"] = torch.cat([arguments["x"], arguments["x"]], dim=1)[:, :70]
    arguments["output"] = arguments["output"].T.contiguous().T
    arguments["x"][1, 3], arguments["output"][0, 5] = torch.inf, torch.nan
    if shift:
        arguments["shift"] = torch.randn(3, 70, 2, dtype=dtype)[..., 0]
    with ops.use_backend("triton"):
        got = ops.gaussian_propose(**arguments)
    due = reference.gaussian_propose(**arguments)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(got[0], due[0], rtol=tolerance, atol=tolerance, equal_nan=True)
    torch.testing.assert_close(
        got[1], due[1], rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-5
    )
    with ops.use_backend("cpp"):
        native = ops.gaussian_propose(**arguments)
    torch.testing.assert_close(got[0], native[0], rtol=0.0, atol=0.0, equal_nan=True)


def test_normals_have_the_bits_of_the_cpp_kernels() -> None:
    """Both use the same formulas, without contraction: log, cos and sin agree in every bit."""
    arguments = dict(num_elements=1000, num_candidates=2, dtype=torch.float64)
    with ops.use_backend("triton"):
        got = ops.philox_normal(11, torch.arange(4), 2, 2, **arguments)
    with ops.use_backend("cpp"):
        due = ops.philox_normal(11, torch.arange(4), 2, 2, **arguments)
    assert torch.equal(got, due)


@pytest.mark.parametrize(("kind", "tau"), [("lme", None), ("mean", None), ("cvar", 0.3)])
@pytest.mark.parametrize("samples", [1, 100, 1030])
def test_soft_values_of_long_rows(kind: str, tau: float | None, samples: int) -> None:
    values = torch.randn(2, samples, dtype=torch.float64)
    values[1, samples // 2] = -torch.inf
    if samples == 1030 and kind == "lme":
        values[0, 3] = torch.nan
    with ops.use_backend("triton"):
        got = ops.soft_value(values, 0.2, kind=kind, tau=tau)
    assert_matches("soft_value", got, reference.soft_value(values, 0.2, kind=kind, tau=tau))


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int16, torch.bfloat16, torch.int32, torch.complex128],
)
def test_gathered_dtypes(dtype: torch.dtype) -> None:
    source = torch.randint(0, 2, (7, 21, 3)).to(dtype)
    where = torch.randint(0, 7, (7, 21))
    with ops.use_backend("triton"):
        got = ops.select(**selection(gather=[source, (source[:, 0], where)]))
    rows = torch.arange(7)
    assert torch.equal(got.gathered[0], source[rows, got.index])
    assert torch.equal(got.gathered[1], source[where[rows, got.index], 0])


def test_ids_reach_the_last_counter_word() -> None:
    last = torch.full((7,), 2**32 - 1)
    check("select", selection(chains=last, particles=last))


DEVICE_SCALARS: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    ("masked_propose", propose, {"rho": 0.2, "temperature": 0.8, "step": 9}),
    (
        "masked_propose",
        lambda **c: propose(vocab=40, num_candidates=2, **c),
        {"rho": 1.0, "step": 3},
    ),
    ("masked_posterior", posterior, {"temperature": 0.8}),
    ("masked_posterior", lambda **c: posterior(vocab=40, **c), {"temperature": 1.0}),
    ("select", selection, {"alpha": 0.3, "step": 1}),
    ("select", selection, {"alpha": 0.0, "step": 1}),
    ("gaussian_propose", gaussian, {"a": 0.9, "b": -0.4, "s": 0.6, "step": 2}),
]


@pytest.mark.parametrize(("op", "build", "scalars"), DEVICE_SCALARS)
def test_scalars_in_device_tensors(
    op: str, build: Callable[..., Any], scalars: dict[str, Any]
) -> None:
    """A captured graph reads seed, step and scalars from memory: the results are the same."""
    scalars = {**scalars, "seed": 2**63 + 1}
    tensors = {
        name: torch.tensor(
            [value], dtype=torch.float64 if isinstance(value, float) else torch.int64
        )
        for name, value in {**scalars, "seed": 1 - 2**63}.items()
    }
    with ops.use_backend("triton"):
        got = getattr(ops, op)(**build(**tensors))
        due = getattr(ops, op)(**build(**scalars))
    for a, b in zip(flatten(got), flatten(due), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", ["philox_uniform", "philox_normal"])
def test_stream_scalars_in_device_tensors(op: str) -> None:
    arguments = dict(num_elements=9, num_candidates=2)
    with ops.use_backend("triton"):
        due = getattr(ops, op)(7, torch.arange(3), 5, 2, **arguments)
        seed, step = torch.tensor([7]), torch.tensor([5])
        got = getattr(ops, op)(seed, torch.arange(3), step, 2, **arguments)
    assert torch.equal(got, due)


def spoiled(tensor: torch.Tensor, *place: int, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


def masked_site(arguments: dict[str, Any], row: int) -> int:
    """A masked site of a row, far enough in to lie in the second block."""
    masked = (arguments["x"][row] == arguments["mask_token"]).nonzero()[:, 0]
    return int(masked[-1])


def few(**changes: Any) -> dict[str, Any]:
    """A proposal of few candidates."""
    return propose(num_candidates=2, first_candidate=torch.tensor([0, 3, 1]), **changes)


def bad_logits(vocab: int, value: float, **changes: Any) -> dict[str, Any]:
    arguments = few(vocab=vocab, rho=1.0, **changes)
    site = masked_site(arguments, 1)
    logits = arguments["logits"].clone()
    logits[0, site, 1 if value != -torch.inf else slice(None)] = value
    return {**arguments, "logits": logits}


def bad_posterior(vocab: int, value: float, num_samples: int) -> dict[str, Any]:
    arguments = bad_logits(vocab, value)
    keys = arguments["keys"] if num_samples else None
    return posterior(vocab=vocab, logits=arguments["logits"], num_samples=num_samples, keys=keys)


FAULTS: list[tuple[str, dict[str, Any]]] = [
    *[
        ("masked_propose", bad_logits(vocab, value))
        for vocab in (5, 40)
        for value in (torch.nan, torch.inf, -torch.inf)
    ],
    *[
        ("masked_posterior", bad_posterior(vocab, value, num_samples))
        for vocab in (5, 40)
        for value in (torch.nan, -torch.inf)
        for num_samples in (0, 2)
    ],
    *[
        (op, build(vocab=vocab, **change))
        for vocab in (5, 40)
        for op, build in (("masked_propose", few), ("masked_posterior", posterior))
        for change in (
            {"index": torch.tensor([3, 4, 1])},
            {"index": torch.tensor([3, 0, -1])},
            {"x": spoiled(propose(vocab=vocab)["x"], 2, 68, value=vocab + 1)},
        )
    ],
    *[
        ("masked_propose", {**few(vocab=vocab), **change})
        for vocab in (5, 40)
        for change in (
            {"chains": torch.tensor([0, -1, 2**32])},
            {"first_candidate": torch.tensor([0, 2**32 - 1, 0])},
        )
    ],
    ("select", selection(values=spoiled(selection()["values"], 3, 20, value=torch.nan))),
    ("select", selection(values=spoiled(selection()["values"], 3, 20, value=torch.inf), alpha=0.0)),
    ("select", selection(chains=torch.tensor([0, 1, 2, 3, 2**32, -1, 0]))),
    ("select", selection(particles=torch.tensor([0, 1, 2, -3, 2**32, -1, 0]))),
    (
        "select",
        selection(gather=[(torch.zeros(3, 2), torch.full((7, 21), 3))]),
    ),
    ("gaussian_propose", gaussian(index=torch.tensor([1, 2, 1]))),
    ("gaussian_propose", gaussian(chains=torch.tensor([1, 2**32, 1]))),
]


@pytest.mark.parametrize(("op", "arguments"), FAULTS)
def test_bad_contents_raise_what_the_reference_raises(op: str, arguments: dict[str, Any]) -> None:
    messages = []
    for backend in ("triton", "reference"):
        with ops.use_backend(backend), pytest.raises(FastguideError) as caught:
            getattr(ops, op)(**arguments)
        messages.append((type(caught.value), str(caught.value)))
    assert messages[0] == messages[1]
    # The record is clean again.
    with ops.use_backend("triton"):
        ops.select(**selection())


def test_bad_logits_where_nothing_is_revealed_do_no_harm() -> None:
    for vocab in (5, 40):
        arguments = propose(vocab=vocab, rho=0.0)
        arguments["logits"][:] = torch.nan
        check("masked_propose", arguments)


def test_an_op_without_a_triton_kernel_is_refused() -> None:
    with ops.use_backend("triton"), pytest.raises(BackendError, match="no kernel for unique_rows"):
        ops.unique_rows(torch.zeros(2, 2, dtype=torch.int64))


def test_cpu_tensors_need_the_interpreter() -> None:
    code = (
        "import torch, fastguide.ops as ops\n"
        "ops.use_backend('triton')\n"
        "print(ops.backends()['select'])\n"
        "ops.masked_keys(torch.zeros(1, 1, dtype=torch.int64))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "the forced backend 'triton' serves CUDA tensors only" in done.stderr
    assert "none" in done.stdout


def test_what_the_sanitizer_sees_runs() -> None:
    with ops.use_backend("triton"):
        sanitize_gpu.run_triton("cpu")
