"""Every op on a GPU: against the oracle, in graphs, on other streams, far into memory.

The bodies that take a device run on the CPU too, with the CUDA sources emulated; what is particular
to small inputs is in test_emulated.py.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from on_device import DEVICES, captured, far, filled_late, moved

from fastguide import ops, reference
from fastguide.errors import BackendError, NonFiniteError
from fastguide.kernels.cuda_launchers import SCHEMES
from fastguide.testing import TRAINING_OPS, Case, assert_matches, cases

CUDA = "cuda"
CUDA_OPS = ("resample", "select", "unique_rows")


@pytest.fixture(autouse=True)
def _emulated_on_the_cpu(request: pytest.FixtureRequest) -> None:
    if "device" in request.fixturenames and request.getfixturevalue("device") == "cpu":
        request.getfixturevalue("on_host")


# Those of training, with their gradients, are in tests/triton/test_training.py.
EVERY_CASE = [c for op in sorted(set(ops.backends()) - set(TRAINING_OPS)) for c in cases(op)]


def on_gpu(case: Case) -> Any:
    return moved(getattr(ops, case.op)(*moved(case.args, CUDA), **moved(case.kwargs, CUDA)), "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_default_backend_matches_the_reference(case: Case) -> None:
    assert_matches(case.op, on_gpu(case), case.oracle())


@pytest.mark.gpu
@pytest.mark.parametrize("case", [c for op in CUDA_OPS for c in cases(op)], ids=str)
def test_cuda_backend_matches_the_reference(case: Case) -> None:
    with ops.use_backend("cuda"):
        assert_matches(case.op, on_gpu(case), case.oracle())


@pytest.mark.gpu
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


@DEVICES
def test_systematic_offspring_stay_within_one(device: str) -> None:
    particles = 1_000_000 if device == CUDA else 20_000
    log_w = torch.randn(1, particles, device=device)
    arguments = dict(seed=1, step=0, chains=torch.zeros(1, dtype=torch.int64, device=device))
    ancestors = ops.resample(log_w, **arguments).ancestors
    counts = torch.bincount(ancestors[0], minlength=particles)
    due = torch.softmax(log_w[0].double(), 0) * particles
    assert float((counts - due).abs().max()) < 1 + 1e-6


@DEVICES
@pytest.mark.parametrize("rows", [8192, 8193, 300_000])
def test_many_unique_rows(rows: int, device: str) -> None:
    rows = rows if device == CUDA else rows // 1000
    x = torch.randint(0, 3, (rows, 11), device=device)
    got = ops.unique_rows(x)
    count = int(got.count)
    assert count == len(torch.unique(x, dim=0))
    first = got.first[:count]
    assert bool((first[1:] > first[:-1]).all())
    assert torch.equal(x[first][got.inverse], x)
    assert not bool(got.first[count:].any())


def selection(n: int, device: str, **kwargs: Any) -> dict[str, Any]:
    return dict(alpha=0.4, seed=3, chains=torch.arange(n, device=device), step=2, **kwargs)


@DEVICES
def test_graph_reads_scalars_and_tensors_anew(device: str) -> None:
    """The ops of one step of a sampler, each by the backend that serves it."""
    n, length, vocab, k = 64, 20, 4, 8
    x = torch.full((n, length), vocab, device=device)
    x[:, ::3] = 1
    logits = torch.randn(n, length, vocab, device=device)
    values = torch.randn(n, k, device=device)
    seed, step = torch.tensor([5], device=device), torch.tensor([0], device=device)
    chains = torch.arange(n, device=device)
    # On the CPU only the CUDA sources read scalars from memory.
    proposal = dict(mask_token=vocab, rho=0.3, num_candidates=k, chains=chains)

    def work() -> tuple[Any, ...]:
        now = dict(seed=seed, step=step) if device == CUDA else dict(seed=5, step=int(step))
        tokens = ops.masked_propose(logits, x, ops.masked_keys(x), **proposal, **now).tokens
        distinct = ops.unique_rows(tokens.flatten(0, 1))
        chosen = ops.select(values, alpha=0.4, seed=seed, chains=chains, step=step, gather=[tokens])
        moved_on = ops.resample(
            chosen.lme.view(4, 16),
            seed=seed,
            chains=chains[:4],
            step=step,
            gather=[x.view(4, 16, -1)],
        )
        return tokens, distinct, chosen, moved_on

    host = moved(dict(logits=logits, x=x), "cpu")
    with ops.deferred_faults(device) as faults:
        results, replay = captured(work, device)
        for number in (1, 2, 77):
            step.fill_(number)
            values.normal_()
            replay()
            got = moved(results, "cpu")
            now = dict(seed=5, step=number)
            keys = reference.masked_keys(host["x"])
            drawn = moved(proposal, "cpu")
            tokens = reference.masked_propose(**host, keys=keys, **drawn, **now)[0]
            assert torch.equal(got[0], tokens)
            assert_matches("unique_rows", got[1], reference.unique_rows(tokens.flatten(0, 1)))
            ids = chains.cpu()
            due = reference.select(values.cpu(), alpha=0.4, chains=ids, gather=[tokens], **now)
            assert_matches("select", got[2], due)
            again = reference.resample(
                due[1].view(4, 16), chains=ids[:4], gather=[host["x"].view(4, 16, -1)], **now
            )
            assert_matches("resample", got[3], again)
        faults.check()
        values[7, 3] = torch.nan
        replay()
        with pytest.raises(NonFiniteError, match="row 7, candidate 3"):
            faults.check()


@DEVICES
def test_large_groups_are_captured_too(device: str) -> None:
    particles = 50_000 if device == CUDA else 9000
    log_w = torch.randn(2, particles, device=device)
    arguments = dict(seed=1, step=4, chains=torch.arange(2, device=device))
    with ops.deferred_faults(device):
        due = ops.resample(log_w, **arguments).ancestors
        got, replay = captured(lambda: ops.resample(log_w, **arguments).ancestors, device)
        for _ in range(3):
            got.zero_()
            replay()
            assert torch.equal(got, due)


@pytest.mark.gpu
def test_capture_without_a_place_for_faults_is_refused() -> None:
    values = torch.randn(4, 3, device=CUDA)
    arguments = selection(4, CUDA)
    ops.select(values, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(BackendError, match="deferred_faults"):
        ops.select(values, **arguments)


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    values = torch.randn(64, 10, device=CUDA)
    rows = torch.randint(0, 3, (640, 20), device=CUDA)
    arguments = selection(64, CUDA)
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


LATE = [next(c for c in reversed(cases(op)) if c.name != "no columns") for op in CUDA_OPS]


@DEVICES
@pytest.mark.parametrize("case", LATE, ids=str)
def test_kernels_run_on_the_current_stream(case: Case, device: str) -> None:
    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(ops, case.op)(*args, **kwargs)

    due = case.oracle()
    with ops.deferred_faults(device):
        got = filled_late(call, dict(args=case.args, kwargs=case.kwargs), device)
    assert_matches(case.op, got, due)


@DEVICES
def test_offsets_beyond_32_bits(device: str) -> None:
    rows = torch.tensor([[1] * 6, [2] * 6, [1] * 6, [2] * 6], dtype=torch.int8)
    assert ops.unique_rows(far(rows, device)).inverse.tolist() == [0, 1, 0, 1]
    values = torch.tensor([[0.0, 3, 1, 2, 0], [0, 1, 2, 5, 4]])
    images = torch.arange(70, dtype=torch.int8).view(2, 5, 7)
    arguments = {**selection(2, device), "alpha": 0.0}
    for dim in range(2):
        got = ops.select(far(values, device, dim), gather=[far(images, device, dim)], **arguments)
        assert got.index.tolist() == [1, 3]
        assert got.gathered[0].tolist() == [list(range(7, 14)), list(range(56, 63))]
        draws = dict(seed=1, step=0, scheme="residual")
        here = dict(chains=arguments["chains"], gather=[far(images, device, dim)])
        got = ops.resample(far(values, device, dim), **here, **draws)
        due = reference.resample(values, chains=torch.arange(2), gather=[images], **draws)
        assert_matches("resample", moved(got, "cpu"), due)


@DEVICES
def test_a_thread_of_its_own(device: str) -> None:
    """A new thread has no current context until something makes one."""
    values, results = torch.randn(8, 4, device=device), []
    arguments = selection(8, device)
    due = ops.select(values, **arguments).index
    thread = threading.Thread(target=lambda: results.append(ops.select(values, **arguments).index))
    thread.start()
    thread.join()
    assert torch.equal(results[0], due)
