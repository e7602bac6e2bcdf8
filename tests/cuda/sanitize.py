"""Runs each CUDA kernel once on small inputs, for compute-sanitizer:

    compute-sanitizer --tool memcheck --error-exitcode 1 python -P tests/cuda/sanitize.py

and likewise with racecheck, initcheck and synccheck.
"""

from __future__ import annotations

import torch

from fastguide import ops
from fastguide.kernels.cuda_launchers import SCHEMES


def main() -> None:
    torch.manual_seed(0)
    chains = torch.arange(6, device="cuda")
    values = torch.randn(6, 40, device="cuda")
    ops.use_backend("cuda")
    for inner in (3, 5000):
        states = torch.randn(6, 40, inner, device="cuda")
        ops.select(values, alpha=0.3, seed=1, chains=chains, step=0, gather=[states])
        for scheme in SCHEMES:
            ops.resample(values, seed=1, chains=chains, step=0, scheme=scheme, gather=[states])
    for scheme in SCHEMES:
        log_w = torch.randn(1, 20_000, device="cuda")
        ops.resample(log_w, seed=1, chains=chains[:1], step=0, scheme=scheme)
    for rows in (100, 9000):
        for dtype in (torch.int8, torch.int32, torch.int64):
            x = torch.randint(0, 3, (rows, 5), device="cuda").to(dtype)
            keys = (x.long().sum(1, keepdim=True) % 50).expand(-1, 2).contiguous()
            ops.unique_rows(x, keys)
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
