"""The compiled Triton kernels on a GPU: parity, strides, far offsets, streams, captured graphs.

The bodies that take a device run in the interpreter too; what is particular to small inputs is in
test_interpreter.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_device import DEVICES, FAR, captured, far, filled_late, fresh, moved

from fastguide import ops, reference
from fastguide.errors import NonFiniteError
from fastguide.ops._backend import TRAINING_OPS, TRITON_OPS
from fastguide.testing import Case, assert_matches, cases

CUDA = "cuda"
SAMPLING_OPS = sorted(TRITON_OPS - TRAINING_OPS)
ALL = [case for op in SAMPLING_OPS for case in cases(op)]


def run(op: str, device: str, *args: Any, **kwargs: Any) -> Any:
    """The op by Triton, its results on the CPU."""
    with ops.use_backend("triton"):
        result = getattr(ops, op)(*moved(args, device), **moved(kwargs, device))
    return moved(result, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", ALL, ids=str)
def test_matches_the_reference(case: Case) -> None:
    assert_matches(case.op, run(case.op, CUDA, *case.args, **case.kwargs), case.oracle())


def propose(n: int, length: int, vocab: int, k: int, **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, vocab, (n, length), generator=generator)
    x[torch.rand(n, length, generator=generator) < 0.5] = vocab
    arguments: dict[str, Any] = dict(
        logits=3 * torch.randn(n, length, vocab + 1, generator=generator)[..., :vocab],
        x=x,
        keys=reference.masked_keys(x),
        mask_token=vocab,
        rho=0.1,
        seed=2**63 + 5,
        chains=torch.arange(n),
        step=9,
        num_candidates=k,
        temperature=0.8,
        first_candidate=torch.arange(n) * 3,
    )
    return {**arguments, **changes}


def predict(arguments: dict[str, Any], num_samples: int) -> dict[str, Any]:
    """Arguments of masked_posterior for the same states."""
    names = ("logits", "x", "mask_token", "keys", "seed", "temperature")
    return {**{name: arguments[name] for name in names}, "num_samples": num_samples}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("n", "length", "vocab", "k"),
    [
        (256, 200, 5, 10),
        (2000, 50, 4, 10),
        (3, 70, 32, 70),
        (8, 64, 50_258, 10),
        (1, 3, 250_000, 4),
    ],
)
def test_tokens_equal_those_of_the_cpp_kernels(n: int, length: int, vocab: int, k: int) -> None:
    arguments = propose(n, length, vocab, k)
    got = run("masked_propose", CUDA, **arguments)
    with ops.use_backend("cpp"):
        due = ops.masked_propose(**arguments)
    for a, b in zip(got, due, strict=True):
        assert torch.equal(a, b)
    for num_samples in (0, 3):
        arguments = predict(propose(n, length, vocab, k), num_samples)
        with ops.use_backend("cpp"):
            predicted = ops.masked_posterior(**arguments)
        assert torch.equal(run("masked_posterior", CUDA, **arguments), predicted)


@DEVICES
@pytest.mark.parametrize("vocab", [5, 3000])
def test_ties_are_summed_in_order(vocab: int, device: str) -> None:
    """A draw whose target is a step of the CDF: the last bits of the sums decide."""
    n, length = (40, 30) if device == CUDA else (2, 3)
    arguments = propose(n, length, vocab, 3, rho=1.0, temperature=1.0, first_candidate=None)
    u = reference.philox_uniform(
        arguments["seed"], arguments["chains"], 9, 4, num_elements=length, num_candidates=1
    )
    logits = torch.full((n, length, vocab), -torch.inf, dtype=torch.float64)
    logits[..., 0] = torch.log(u[:, 0])
    logits[..., 1:] = (torch.log1p(-u[:, 0]) - torch.tensor(vocab - 1.0).log())[..., None]
    arguments["logits"] = logits
    got = run("masked_propose", device, **arguments)
    with ops.use_backend("cpp"):
        due = ops.masked_propose(**arguments)
    assert torch.equal(got[0], due.tokens)


@DEVICES
def test_normals_have_the_bits_of_the_cpp_kernels(device: str) -> None:
    elements = 100_003 if device == CUDA else 1003
    arguments = dict(num_elements=elements, num_candidates=3, dtype=torch.float64)
    got = run("philox_normal", device, 11, torch.arange(4), 2, 2, **arguments)
    with ops.use_backend("cpp"):
        due = ops.philox_normal(11, torch.arange(4), 2, 2, **arguments)
    assert torch.equal(got, due)


@DEVICES
def test_gaussian_candidates_have_the_bits_of_the_cpp_kernels(device: str) -> None:
    n, size = (16, 12_289) if device == CUDA else (2, 257)
    arguments = dict(x=torch.randn(n, size), output=torch.randn(n, size), a=0.9, b=-0.4, s=0.6)
    arguments.update(seed=3, chains=torch.arange(n), step=2, num_candidates=8)
    got = run("gaussian_propose", device, **arguments)
    with ops.use_backend("cpp"):
        due = ops.gaussian_propose(**arguments)
    assert torch.equal(got[0], due[0])
    arguments["shift"] = torch.randn(n, size)
    got = run("gaussian_propose", device, **arguments)
    again = run("gaussian_propose", device, **arguments)
    due = reference.gaussian_propose(**arguments)
    torch.testing.assert_close(got[1], due[1], rtol=1e-5, atol=1e-2)
    assert torch.equal(got[1], again[1])


def drawn(n: int, **more: Any) -> dict[str, Any]:
    """What every op with draws takes."""
    return dict(seed=4, chains=torch.arange(n) + 7, step=3, **more)


def gaussian() -> dict[str, Any]:
    x, output, shift = torch.randn(3, 2, 70)
    return drawn(2, x=x, output=output, shift=shift, a=0.9, b=0.3, s=0.5, num_candidates=3)


def selection() -> dict[str, Any]:
    return drawn(2, values=torch.randn(2, 20), alpha=0.5, gather=[torch.randn(2, 20, 9)])


def soft() -> dict[str, Any]:
    return dict(values=torch.randn(2, 20), alpha=0.5)


# op, arguments, the argument that lies far apart, along which dimension.
FAR_INPUTS: list[tuple[str, Callable[[], dict[str, Any]], str, int]] = [
    *[
        ("masked_propose", lambda v=vocab: propose(2, 9, v, 3, rho=0.5), "logits", dim)
        for vocab in (5, 3000)
        for dim in range(3)
    ],
    *[
        ("masked_posterior", lambda v=v, s=s: predict(propose(2, 9, v, 3), s), "logits", dim)
        for v in (5, 3000)
        for s in (0, 2)
        for dim in (0, 2)
    ],
    *[("masked_propose", lambda: propose(2, 9, 5, 3, rho=0.5), "x", dim) for dim in range(2)],
    ("masked_propose", lambda: propose(2, 9, 40, 3, rho=0.5), "x", 0),
    *[("masked_keys", lambda: dict(x=torch.randint(0, 9, (2, 9))), "x", dim) for dim in range(2)],
    *[("gaussian_propose", gaussian, name, 0) for name in ("x", "output", "shift")],
    *[("select", selection, "values", dim) for dim in range(2)],
    *[("select", selection, "gather", dim) for dim in range(2)],
    *[("soft_value", soft, "values", dim) for dim in range(2)],
]


@DEVICES
@pytest.mark.parametrize(("op", "build", "name", "dim"), FAR_INPUTS)
def test_inputs_beyond_32_bit_offsets(
    op: str, build: Callable[[], dict[str, Any]], name: str, dim: int, device: str
) -> None:
    arguments = build()
    due = getattr(reference, op)(**arguments)
    here = moved(arguments, device)
    given = arguments[name]
    here[name] = [far(given[0], device, dim)] if name == "gather" else far(given, device, dim)
    with ops.use_backend("triton"):
        got = getattr(ops, op)(**here)
    assert_matches(op, moved(got, "cpu"), due)


@DEVICES
@pytest.mark.parametrize("op", ["philox_uniform", "philox_normal", "gaussian_propose"])
def test_outputs_beyond_32_bit_offsets(op: str, device: str) -> None:
    """The last chain's are those of a call for that chain alone."""
    n, k = 3, 8
    size = -(-FAR[device] // ((n - 1) * k))
    dtype = torch.float64 if op == "philox_uniform" else torch.float32
    fresh(2 * n * k * size, dtype, device)

    def call(first: int) -> torch.Tensor:
        chains = torch.arange(first, n, device=device)
        if op == "gaussian_propose":
            x = torch.linspace(0, 1, size, device=device).expand(n - first, size)
            scalars = dict(a=0.5, b=0.5, s=0.3, seed=1, step=0, num_candidates=k)
            return ops.gaussian_propose(x, x, chains=chains, **scalars).candidates
        return getattr(ops, op)(1, chains, 0, 2, num_elements=size, num_candidates=k)

    with ops.use_backend("triton"):
        assert torch.equal(call(0)[-1:], call(n - 1))


@DEVICES
@pytest.mark.parametrize("vocab", [4, 40])
def test_tokens_beyond_32_bit_offsets(vocab: int, device: str) -> None:
    n, length = 3, 1024 if device == CUDA else 16
    k = -(-FAR[device] // ((n - 1) * length))
    fresh(n * k * length, torch.int64, device)
    arguments = propose(n, length, vocab, k, rho=0.01, first_candidate=None)
    arguments.update(logits=torch.randn(1, length, vocab), index=torch.zeros(n, dtype=torch.int64))
    rows = ("x", "keys", "chains", "index")
    last = {**arguments, **{name: arguments[name][-1:] for name in rows}}
    with ops.use_backend("triton"):
        got = ops.masked_propose(**moved(arguments, device))
        due = ops.masked_propose(**moved(last, device))
    for a, b in zip(got, due, strict=True):
        assert torch.equal(a[-1:], b)


def late_cases() -> list[Case]:
    """The last case of each op, and a proposal from a small vocabulary."""
    small = next(case for case in cases("masked_propose") if case.name == "small")
    return [small, *(cases(op)[-1] for op in SAMPLING_OPS)]


@DEVICES
@pytest.mark.parametrize("case", late_cases(), ids=str)
def test_kernels_run_on_the_current_stream(case: Case, device: str) -> None:
    due = case.oracle()

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(ops, case.op)(*args, **kwargs)

    with ops.use_backend("triton"), ops.deferred_faults(device):
        got = filled_late(call, dict(args=case.args, kwargs=case.kwargs), device)
    assert_matches(case.op, got, due)


@DEVICES
@pytest.mark.parametrize("vocab", [4, 40])
def test_a_captured_step_reads_scalars_and_tensors_anew(vocab: int, device: str) -> None:
    n, length, k = (16, 40, 6) if device == CUDA else (2, 9, 3)
    host = propose(n, length, vocab, k)
    arguments = moved(host, device)

    def scalar(value: float) -> torch.Tensor:
        dtype = torch.int64 if isinstance(value, int) else torch.float64
        return torch.tensor([value], dtype=dtype, device=device)

    arguments.update(seed=scalar(5), step=scalar(0), rho=scalar(0.3), temperature=scalar(0.8))
    alpha = scalar(0.4)
    values, state = torch.randn(n, k, device=device), torch.randn(n, 64, device=device)
    outputs = (
        torch.empty(n, k, length, dtype=torch.int64, device=device),
        torch.empty(n, k, 2, dtype=torch.int64, device=device),
        torch.empty(n, k, dtype=torch.int32, device=device),
    )
    common = {name: arguments[name] for name in ("seed", "chains", "step")}
    stream = (arguments["seed"], arguments["chains"], arguments["step"], 2)

    def work() -> tuple[Any, ...]:
        proposal = ops.masked_propose(**arguments, out=outputs)
        chosen = ops.select(values, alpha=alpha, gather=[proposal.tokens], **common)
        noisy = ops.gaussian_propose(
            state, state, a=alpha, b=alpha, s=alpha, num_candidates=2, **common
        )
        x = chosen.gathered[0]
        keys = ops.masked_keys(x)
        predicted = ops.masked_posterior(
            **predict({**arguments, "x": x, "keys": keys}, num_samples=2)
        )
        value = ops.soft_value(predicted.double().mean(2), 0.4)
        uniform = ops.philox_uniform(*stream, num_elements=5)
        normal = ops.philox_normal(*stream, num_elements=5)
        return proposal, chosen, noisy.candidates, keys, predicted, value, uniform, normal

    with ops.use_backend("triton"), ops.deferred_faults(device) as faults:
        results, replay = captured(work, device)
        for step, rho in ((1, 0.0), (2, 0.5), (77, 1.0)):
            arguments["step"].fill_(step)
            arguments["rho"].fill_(rho)
            values.normal_()
            replay()
            got = moved(results, "cpu")
            here = {**host, "seed": 5, "step": step, "rho": rho}
            plain = {name: here[name] for name in ("seed", "chains", "step")}
            due = reference.masked_propose(**here)
            assert_matches("masked_propose", got[0], due)
            choice = reference.select(values.cpu(), alpha=0.4, gather=[due[0]], **plain)
            assert_matches("select", got[1], choice)
            x = choice[3][0]
            noise = reference.gaussian_propose(
                state.cpu(), state.cpu(), a=0.4, b=0.4, s=0.4, num_candidates=2, **plain
            )[0]
            torch.testing.assert_close(got[2], noise, rtol=3e-6, atol=3e-6)
            keys = reference.masked_keys(x)
            assert torch.equal(got[3], keys)
            tokens = reference.masked_posterior(
                **predict({**here, "x": x, "keys": keys}, num_samples=2)
            )
            assert torch.equal(got[4], tokens)
            assert_matches("soft_value", got[5], reference.soft_value(tokens.double().mean(2), 0.4))
            draws = (5, host["chains"], step, 2)
            uniform = reference.philox_uniform(*draws, num_elements=5)
            assert torch.equal(got[6], uniform)
            normal = reference.philox_normal(*draws, num_elements=5)
            assert_matches("philox_normal", got[7], normal)
        faults.check()
        arguments["logits"][1] = torch.nan
        replay()
        with pytest.raises(NonFiniteError, match="row 1"):
            faults.check()


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    small, large = (moved(propose(64, 50, vocab, 10), CUDA) for vocab in (4, 300))
    values = torch.randn(64, 10, device=CUDA)
    common = dict(seed=1, chains=small["chains"], step=0)
    with ops.use_backend("triton"), ops.deferred_faults(CUDA):
        for mode in ("default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                for arguments in (small, large):
                    proposal = ops.masked_propose(**arguments)
                    ops.masked_posterior(**predict(arguments, num_samples=0))
                ops.select(values, alpha=0.1, gather=[proposal.tokens], **common)
                ops.soft_value(values, 0.1)
                ops.gaussian_propose(
                    values, values, a=1.0, b=1.0, s=1.0, num_candidates=4, **common
                )
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_tensors_on_another_device_than_the_current_one() -> None:
    x = torch.randint(0, 9, (5, 30))
    with torch.cuda.device(0), ops.use_backend("triton"):
        assert torch.equal(ops.masked_keys(x.to("cuda:1")).cpu(), reference.masked_keys(x))
