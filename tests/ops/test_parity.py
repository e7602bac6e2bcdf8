"""Every backend against the oracle, on every case of fastguide.testing."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch

from fastguide import ops
from fastguide.kernels import cpu
from fastguide.testing import TRAINING_OPS, Case, assert_matches, cases

OPS = sorted(ops.backends())
ALL = [case for op in OPS for case in cases(op)]
EVERY = pytest.mark.parametrize("case", ALL, ids=str)
# torch.mm adds in an order that depends on the number of threads.
WITHOUT_PRODUCTS = [case for case in ALL if case.kwargs.get("head") is None]
# An output that carries a gradient cannot be given.
WITH_OUT = [case for case in ALL if case.op not in TRAINING_OPS]


def flatten(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flatten(part)]


def like(result: Any) -> Any:
    """Fresh poisoned outputs of the same shapes."""
    if isinstance(result, torch.Tensor):
        return torch.empty_like(result, memory_format=torch.contiguous_format)
    return tuple(like(part) for part in result)


@EVERY
def test_cpp_matches_reference(case: Case) -> None:
    with ops.use_backend("cpp"):
        got = case.run()
    assert_matches(case.op, got, case.oracle())


@EVERY
def test_reference_backend_is_the_reference(case: Case) -> None:
    with ops.use_backend("reference"):
        got = case.run()
    assert_matches(case.op, got, case.oracle())


@pytest.mark.parametrize("case", WITH_OUT, ids=str)
def test_out_is_written_and_returned(case: Case) -> None:
    due = case.run()
    for backend in ("cpp", "reference"):
        out = like(due)
        with ops.use_backend(backend):
            got = case.run(out=out)
        for a, b in zip(flatten(got), flatten(out), strict=True):
            assert a is b
        assert_matches(case.op, got, due)


@EVERY
def test_inputs_are_left_alone(case: Case) -> None:
    before = pickle.dumps((case.args, case.kwargs))
    case.run()
    assert pickle.dumps((case.args, case.kwargs)) == before


@pytest.mark.parametrize("case", WITHOUT_PRODUCTS, ids=str)
def test_same_bits_on_any_number_of_threads(case: Case) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = flatten(case.run())
        torch.set_num_threads(5)
        five = flatten(case.run())
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, five, strict=True):
        assert bits(a) == bits(b)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


def test_threads_split_large_work() -> None:
    """Enough rows that the loops really are divided, and not evenly."""
    n, length, vocab = 97, 200, 5
    x = torch.randint(0, vocab + 1, (n, length))
    arguments: dict[str, Any] = dict(
        mask_token=vocab, rho=0.3, seed=1, chains=torch.arange(n), step=0, num_candidates=10
    )
    logits, keys = torch.randn(n, length, vocab), ops.masked_keys(x)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            proposal = ops.masked_propose(logits, x, keys, **arguments)
            normals = ops.philox_normal(1, torch.arange(n), 0, 2, num_elements=4001)
            results.append([bits(tensor) for tensor in (*proposal, normals)])
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2] == results[3]


PRINT_DIGEST = """
import hashlib, torch
from fastguide import ops
from fastguide.kernels import cpu
from fastguide.testing import cases

def flatten(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for part in result for t in flatten(part)]

digest = hashlib.sha256()
for op in sorted(ops.backends()):
    for case in [case for case in cases(op) if case.kwargs.get("head") is None]:
        for tensor in flatten(case.run()):
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
big = ops.philox_normal(3, torch.arange(64), 1, 2, num_elements=4096, dtype=torch.float64)
digest.update(big.numpy().tobytes())
soft = ops.soft_value(big.view(-1, 16), 0.1)
digest.update(soft.numpy().tobytes())
print(cpu.cpu_level(), digest.hexdigest())
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_every_instruction_set_gives_the_same_bits() -> None:
    digests = {}
    for level in cpu.supported_levels():
        done = run_python(PRINT_DIGEST, FASTGUIDE_CPU=level)
        assert done.returncode == 0, done.stderr
        used, digest = done.stdout.split()
        assert used == level
        digests[level] = digest
    assert "baseline" in digests
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_unsupported_level_fails_loudly(level: str) -> None:
    if level in cpu.supported_levels():
        pytest.skip("this CPU runs it")
    done = run_python(PRINT_DIGEST, FASTGUIDE_CPU=level)
    assert done.returncode != 0
    assert f"FASTGUIDE_CPU={level}: this CPU cannot run it" in done.stderr


def test_unknown_level_fails_loudly() -> None:
    done = run_python(PRINT_DIGEST, FASTGUIDE_CPU="sse9")
    assert done.returncode != 0
    assert "BackendError: FASTGUIDE_CPU=sse9: unknown level; use baseline, avx2 or avx512" in (
        done.stderr
    )
