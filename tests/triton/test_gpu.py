"""The compiled Triton kernels on a GPU: parity, strides, far offsets, streams, captured graphs.

Needs a CUDA device. The same kernels run in the interpreter without one (test_interpreter.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastguide import ops, reference
from fastguide.errors import NonFiniteError
from fastguide.ops._backend import TRITON_OPS
from fastguide.testing import Case, assert_matches, cases

pytestmark = pytest.mark.gpu

CUDA = "cuda"
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
        return tuple(moved(item, device) for item in value)
    return value


def run(op: str, *args: Any, **kwargs: Any) -> Any:
    """The op on the GPU by Triton, its results on the CPU."""
    with ops.use_backend("triton"):
        result = getattr(ops, op)(*moved(args, CUDA), **moved(kwargs, CUDA))
    return moved(result, "cpu")


ALL = [case for op in sorted(TRITON_OPS) for case in cases(op)]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_matches_the_reference(case: Case) -> None:
    due = case.oracle()
    assert_matches(case.op, run(case.op, *case.args, **case.kwargs), due)


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
    got = run("masked_propose", **arguments)
    with ops.use_backend("cpp"):
        due = ops.masked_propose(**arguments)
    for a, b in zip(got, due, strict=True):
        assert torch.equal(a, b)
    names = ("logits", "x", "mask_token", "keys", "seed", "temperature")
    arguments = {name: arguments[name] for name in names}
    for num_samples in (0, 3):
        with ops.use_backend("cpp"):
            due = ops.masked_posterior(**arguments, num_samples=num_samples)
        assert torch.equal(run("masked_posterior", **arguments, num_samples=num_samples), due)


@pytest.mark.parametrize("vocab", [5, 3000])
def test_ties_are_summed_in_order(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw whose target is a step of the CDF: the last bits of the sums decide."""
    arguments = propose(40, 30, vocab, 3, rho=1.0, temperature=1.0, first_candidate=None)
    u = reference.philox_uniform(
        arguments["seed"], arguments["chains"], 9, 4, num_elements=30, num_candidates=1
    )
    logits = torch.full((40, 30, vocab), -torch.inf, dtype=torch.float64)
    logits[..., 0] = torch.log(u[:, 0])
    logits[..., 1:] = (torch.log1p(-u[:, 0]) - torch.tensor(vocab - 1.0).log())[..., None]
    arguments["logits"] = logits
    got = run("masked_propose", **arguments)
    with ops.use_backend("cpp"):
        due = ops.masked_propose(**arguments)
    assert torch.equal(got[0], due.tokens)


def test_normals_have_the_bits_of_the_cpp_kernels() -> None:
    arguments = dict(num_elements=100_003, num_candidates=3, dtype=torch.float64)
    got = run("philox_normal", 11, torch.arange(4), 2, 2, **arguments)
    with ops.use_backend("cpp"):
        due = ops.philox_normal(11, torch.arange(4), 2, 2, **arguments)
    assert torch.equal(got, due)


def test_gaussian_candidates_have_the_bits_of_the_cpp_kernels() -> None:
    arguments = dict(
        x=torch.randn(16, 12_289), output=torch.randn(16, 12_289), a=0.9, b=-0.4, s=0.6, seed=3
    )
    arguments.update(chains=torch.arange(16), step=2, num_candidates=8)
    got = run("gaussian_propose", **arguments)
    with ops.use_backend("cpp"):
        due = ops.gaussian_propose(**arguments)
    assert torch.equal(got[0], due[0])
    arguments["shift"] = torch.randn(16, 12_289)
    got = run("gaussian_propose", **arguments)
    again = run("gaussian_propose", **arguments)
    due = reference.gaussian_propose(**arguments)
    torch.testing.assert_close(got[1], due[1], rtol=1e-5, atol=1e-2)
    assert torch.equal(got[1], again[1])


def far_rows(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor whose rows lie FAR elements apart. Skips where memory is short."""
    inner = torch.Size(shape[1:]).numel()
    elements = FAR * (shape[0] - 1) + inner
    if torch.cuda.mem_get_info()[0] < elements * dtype.itemsize + GIB:
        pytest.skip("needs more device memory")
    base = torch.empty(elements, dtype=dtype, device=CUDA)
    return base.as_strided(shape, (FAR, *torch.empty(shape[1:], device="meta").stride()))


@pytest.mark.parametrize("vocab", [5, 3000])
def test_logits_beyond_32_bit_offsets(vocab: int) -> None:
    arguments = propose(2, 30, vocab, 3, rho=0.5)
    logits = far_rows((2, 30, vocab), torch.float32)
    logits.copy_(arguments["logits"])
    due = reference.masked_propose(**arguments)
    with ops.use_backend("triton"):
        got = ops.masked_propose(**{**moved(arguments, CUDA), "logits": logits})
        mode = ops.masked_posterior(
            logits, arguments["x"].to(CUDA), mask_token=arguments["mask_token"]
        )
    assert_matches("masked_propose", moved(tuple(got), "cpu"), due)
    assert torch.equal(
        mode.cpu(),
        reference.masked_posterior(
            arguments["logits"], arguments["x"], mask_token=arguments["mask_token"]
        ),
    )


def test_outputs_beyond_32_bit_offsets() -> None:
    elements = 2**31 + 4096
    if torch.cuda.mem_get_info()[0] < elements * 4 + GIB:
        pytest.skip("needs more device memory")
    chains = torch.arange(2, device=CUDA)
    with ops.use_backend("triton"):
        z = ops.philox_normal(1, chains, 0, 2, num_elements=elements // 2)
        assert abs(float(z[1].mean(dtype=torch.float64))) < 1e-3
        few = ops.philox_normal(1, chains[1:], 0, 2, num_elements=1000)
    assert torch.equal(z[1:, :, :1000], few)


def test_kernels_run_on_the_current_stream() -> None:
    arguments = moved(propose(64, 50, 4, 10), CUDA)
    due = 3 * torch.randn(64, 50, 4)
    source = due.pin_memory()
    arguments["logits"] = torch.zeros(64, 50, 4, device=CUDA)
    with ops.use_backend("triton"), ops.deferred_faults(CUDA):
        ops.masked_propose(**arguments)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            arguments["logits"].copy_(source, non_blocking=True)
            got = ops.masked_propose(**arguments)
        stream.synchronize()
    arguments["logits"] = due
    expected = reference.masked_propose(**moved(arguments, "cpu"))
    assert_matches("masked_propose", moved(tuple(got), "cpu"), expected)


@pytest.mark.parametrize("vocab", [4, 500])
def test_a_captured_step_reads_scalars_and_tensors_anew(vocab: int) -> None:
    n, length, k = 16, 40, 6
    arguments = moved(propose(n, length, vocab, k), CUDA)
    scalars = {
        "seed": torch.tensor([5], device=CUDA),
        "step": torch.tensor([0], device=CUDA),
        "rho": torch.tensor([0.3], dtype=torch.float64, device=CUDA),
        "temperature": torch.tensor([0.8], dtype=torch.float64, device=CUDA),
    }
    alpha = torch.tensor([0.4], dtype=torch.float64, device=CUDA)
    values = torch.randn(n, k, device=CUDA)
    arguments.update(scalars)
    state = torch.randn(n, 64, device=CUDA)
    outputs = (
        torch.empty(n, k, length, dtype=torch.int64, device=CUDA),
        torch.empty(n, k, 2, dtype=torch.int64, device=CUDA),
        torch.empty(n, k, dtype=torch.int32, device=CUDA),
    )
    common = dict(seed=scalars["seed"], chains=arguments["chains"], step=scalars["step"])

    def work() -> tuple[Any, ...]:
        proposal = ops.masked_propose(**arguments, out=outputs)
        chosen = ops.select(values, alpha=alpha, gather=[proposal.tokens], **common)
        noisy = ops.gaussian_propose(
            state, state, a=alpha, b=alpha, s=alpha, num_candidates=2, **common
        )
        return tuple(proposal), tuple(chosen), noisy.candidates

    with ops.use_backend("triton"), ops.deferred_faults(CUDA) as faults:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = work()
        for step, rho in ((1, 0.0), (2, 0.5), (77, 1.0)):
            scalars["step"].fill_(step)
            scalars["rho"].fill_(rho)
            values.normal_()
            graph.replay()
            proposal, chosen, noisy = moved(results, "cpu")
            host = moved(arguments, "cpu")
            host.update(seed=5, step=step, rho=rho, temperature=0.8)
            due = reference.masked_propose(**host)
            assert_matches("masked_propose", proposal, due)
            plain = dict(seed=5, chains=host["chains"], step=step)
            due_choice = reference.select(values.cpu(), alpha=0.4, gather=[due[0]], **plain)
            assert_matches("select", chosen, due_choice)
            due_noise = reference.gaussian_propose(
                state.cpu(), state.cpu(), a=0.4, b=0.4, s=0.4, num_candidates=2, **plain
            )[0]
            torch.testing.assert_close(noisy, due_noise, rtol=3e-6, atol=3e-6)
        faults.check()
        arguments["logits"][3] = torch.nan
        graph.replay()
        with pytest.raises(NonFiniteError, match="row 3"):
            faults.check()


def test_nothing_waits_for_the_device() -> None:
    small, large = (moved(propose(64, 50, vocab, 10), CUDA) for vocab in (4, 300))
    values = torch.randn(64, 10, device=CUDA)
    with ops.use_backend("triton"), ops.deferred_faults(CUDA):
        for mode in ("default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                for arguments in (small, large):
                    proposal = ops.masked_propose(**arguments)
                    ops.masked_posterior(
                        arguments["logits"], arguments["x"], mask_token=arguments["mask_token"]
                    )
                ops.select(
                    values,
                    alpha=0.1,
                    seed=1,
                    chains=arguments["chains"],
                    step=0,
                    gather=[proposal.tokens],
                )
                ops.soft_value(values, 0.1)
                ops.gaussian_propose(
                    values,
                    values,
                    a=1.0,
                    b=1.0,
                    s=1.0,
                    seed=1,
                    chains=arguments["chains"],
                    step=0,
                    num_candidates=4,
                )
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_tensors_on_another_device_than_the_current_one() -> None:
    x = torch.randint(0, 9, (5, 30))
    with torch.cuda.device(0), ops.use_backend("triton"):
        assert torch.equal(ops.masked_keys(x.to("cuda:1")).cpu(), reference.masked_keys(x))
