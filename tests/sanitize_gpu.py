"""Runs each GPU kernel once on small inputs, for compute-sanitizer:

    compute-sanitizer --tool memcheck --error-exitcode 1 python -P tests/sanitize_gpu.py

and likewise with racecheck and synccheck.
"""

from __future__ import annotations

import torch

from fastguide import ops
from fastguide.kernels.cuda_launchers import SCHEMES


def run_cuda(device: str) -> None:
    """Every CUDA C++ kernel."""
    chains = torch.arange(6, device=device)
    values = torch.randn(6, 40, device=device)
    for inner in (3, 5000):
        states = torch.randn(6, 40, inner, device=device)
        ops.select(values, alpha=0.3, seed=1, chains=chains, step=0, gather=[states])
        for scheme in SCHEMES:
            ops.resample(values, seed=1, chains=chains, step=0, scheme=scheme, gather=[states])
    for scheme in SCHEMES:
        log_w = torch.randn(1, 20_000, device=device)
        ops.resample(log_w, seed=1, chains=chains[:1], step=0, scheme=scheme)
    for rows in (100, 9000):
        for dtype in (torch.int8, torch.int32, torch.int64):
            x = torch.randint(0, 3, (rows, 5), device=device).to(dtype)
            keys = (x.long().sum(1, keepdim=True) % 50).expand(-1, 2).contiguous()
            ops.unique_rows(x, keys)


def run_triton(device: str) -> None:
    """Every Triton kernel."""
    n, length, k = 2, 10, 3
    common = dict(seed=1, chains=torch.arange(n, device=device), step=0)
    for vocab in (4, 20, 2500):
        x = torch.full((n, length), vocab, device=device)
        x[:, ::2] = 0
        logits = torch.randn(n, length, vocab, device=device)
        keys = ops.masked_keys(x)
        ops.masked_propose(logits, x, keys, mask_token=vocab, rho=0.3, num_candidates=k, **common)
        for num_samples in (0, 2):
            ops.masked_posterior(
                logits, x, mask_token=vocab, num_samples=num_samples, keys=keys, seed=1
            )
    values, state = torch.randn(n, k, device=device), torch.randn(n, 600, device=device)
    ops.select(values, alpha=0.3, gather=[torch.randn(n, k, 9, device=device)], **common)
    for kind, tau in (("lme", None), ("mean", None), ("cvar", 0.3)):
        ops.soft_value(values, 0.5, kind=kind, tau=tau)
    ops.gaussian_propose(state, state, a=1.0, b=0.5, s=0.3, shift=state, num_candidates=k, **common)
    stream = (1, common["chains"], 0, 2)
    for dtype in (torch.float32, torch.float64):
        ops.philox_normal(*stream, num_elements=70, dtype=dtype)
    ops.philox_uniform(*stream, num_elements=70)


def main() -> None:
    torch.manual_seed(0)
    for backend, run in (("cuda", run_cuda), ("triton", run_triton)):
        with ops.use_backend(backend):
            run("cuda")
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
