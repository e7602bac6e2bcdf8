"""Choosing a backend: by device, by request, by environment; and what happens without one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, BackendError


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_every_op_is_served_by_cpp() -> None:
    table = ops.backends()
    assert set(table) == set(ops.__all__) & set(table)
    for backend, why in table.values():
        assert backend == "cpp"
        assert "instruction set" in why


def test_use_backend_as_context_and_as_call() -> None:
    with ops.use_backend("reference"):
        assert ops.backends()["select"][0] == "reference"
        with ops.use_backend("cpp"):
            assert ops.backends()["select"][0] == "cpp"
        assert ops.backends()["select"][0] == "reference"
    try:
        ops.use_backend("reference")
        assert ops.backends()["select"][0] == "reference"
    finally:
        ops.use_backend(None)
    assert ops.backends()["select"][0] == "cpp"


def test_unknown_backend() -> None:
    with pytest.raises(ArgumentError, match=r"unknown backend 'fast'; use 'cpp' or 'reference'"):
        ops.use_backend("fast")


def test_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGUIDE_BACKEND", "reference")
    assert ops.backends()["select"][0] == "reference"
    with ops.use_backend("cpp"):
        assert ops.backends()["select"][0] == "cpp"
    monkeypatch.setenv("FASTGUIDE_BACKEND", "quick")
    with pytest.raises(ArgumentError, match=r"FASTGUIDE_BACKEND: unknown backend 'quick'"):
        ops.masked_keys(torch.zeros(1, 1, dtype=torch.int64))


def test_a_device_without_kernels_is_refused() -> None:
    x = torch.zeros(1, 1, dtype=torch.int64, device="meta")
    with (
        ops.use_backend("cpp"),
        pytest.raises(BackendError, match="forced backend 'cpp' serves CPU"),
    ):
        ops.masked_keys(x, out=torch.zeros(1, 2, dtype=torch.int64, device="meta"))
    with pytest.raises(BackendError, match="CPU and CUDA tensors only, got a tensor on meta"):
        ops.masked_keys(x, out=torch.zeros(1, 2, dtype=torch.int64, device="meta"))


HIDE_EXTENSION = """
import sys, torch
sys.modules["fastguide._C"] = None
import fastguide.ops as ops
x = torch.zeros(1, 1, dtype=torch.int64)
"""


def test_missing_extension_names_the_fix() -> None:
    done = run_python(HIDE_EXTENSION + "ops.masked_keys(x)")
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert "BackendError: the native extension fastguide._C is missing or broken" in message
    assert "pip install -e . --no-build-isolation" in message
    assert "make test" in message


def test_missing_extension_is_shown_by_backends() -> None:
    done = run_python(HIDE_EXTENSION + "print(*ops.backends()['select'])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("none the native extension fastguide._C is missing")


def test_reference_serves_without_the_extension_on_request() -> None:
    code = HIDE_EXTENSION + "ops.use_backend('reference'); print(ops.masked_keys(x).shape)"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 2])" in done.stdout
    done = run_python(HIDE_EXTENSION + "ops.masked_keys(x)", FASTGUIDE_BACKEND="reference")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the process map of Linux")
def test_one_openmp_runtime() -> None:
    """Two runtimes in one process would fight over the cores."""
    code = (
        "import fastguide.ops as ops; ops.backends(); "
        "maps = open('/proc/self/maps').read().split(); "
        "print(len({name for name in maps if 'libgomp' in name or 'libiomp' in name}))"
    )
    done = run_python(code)
    assert done.stdout.strip() == "1", done.stdout + done.stderr


def _training_loss(op: str, logits: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """A loss of some op, where two of three sites are masked."""
    mask_token = 300
    x = torch.tensor([[300, 1, 300], [300, 300, 2]])
    targets = x.where(x != mask_token, 3)
    if op == "subs_cross_entropy":
        return ops.subs_cross_entropy(logits, x, targets, mask_token=mask_token).sum()
    if op == "subs_cross_entropy, head":
        return ops.subs_cross_entropy(logits, x, targets, mask_token=mask_token, head=head).sum()
    terms = ops.masked_ppo(
        logits,
        x,
        targets,
        torch.full((2,), -3.0),
        torch.ones(2),
        mask_token=mask_token,
        rho=0.5,
        clip=(0.0, 1e9),
        logits_ref=logits.detach().flip(-1),
        temperature=0.8,
    )
    return (terms.surrogate + 0.3 * terms.kl).sum()


@pytest.mark.parametrize("vocab_size", [5, 250])
@pytest.mark.parametrize("op", ["masked_ppo", "subs_cross_entropy", "subs_cross_entropy, head"])
def test_backward_may_be_served_by_another_backend(op: str, vocab_size: int) -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, vocab_size, generator=g, requires_grad=True)
    head = torch.randn(vocab_size, vocab_size, generator=g) / 4
    with ops.use_backend("reference"):
        loss = _training_loss(op, logits, head)
        (due,) = torch.autograd.grad(_training_loss(op, logits, head), logits)
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, due, rtol=1e-4, atol=1e-6)
    loss = _training_loss(op, logits, head)
    with ops.use_backend("reference"):
        (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, due, rtol=1e-4, atol=1e-6)
