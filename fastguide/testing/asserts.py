"""How closely a backend must agree with the reference, op by op."""

from __future__ import annotations

from typing import Any

import torch

# Relative tolerance of floating-point outputs in units of their dtype's epsilon; integers are
# equal. Behind each, the worst seen on x86-64 (Zen 4, every instruction set). All arithmetic is
# float64, so a float32 output differs only where a rounding is straddled.
TOLERANCE_EPS: dict[str, dict[torch.dtype, float]] = {
    "philox_normal": {torch.float32: 2.0, torch.float64: 8.0},  # 1, 3
    "gaussian_propose": {torch.float32: 4.0, torch.float64: 64.0},  # 2, 4
    "log_ratio of float32": {torch.float64: 2.0**32},  # 2**30
    "select": {torch.float32: 0.0, torch.float64: 64.0},  # 0 (gathered copies), 6
    "resample": {torch.float32: 0.0, torch.float64: 64.0},  # 0 (gathered copies), 4
    "soft_value": {torch.float32: 2.0, torch.float64: 64.0},  # 1, 8
    "gaussian_ppo": {torch.float32: 2.0, torch.float64: 2.0**13},  # 1, 2**11
    "masked_ppo": {torch.float32: 2.0, torch.float64: 256.0},
    "masked_ppo of float32": {torch.float32: 32.0, torch.float64: 2.0**31},
    "gumbel_softmax_step": {torch.float32: 2.0, torch.float64: 256.0},
    "subs_cross_entropy": {torch.float32: 2.0, torch.float64: 256.0},
    "subs_cross_entropy of float32": {torch.float32: 32.0, torch.float64: 2.0**31},
    # Float32 arithmetic, and a gradient that is that rounded once more: a neighbour at most.
    "masked_ppo of 16 bits": {
        torch.bfloat16: 1.0,
        torch.float16: 1.0,
        torch.float64: 2.0**31,
    },
    "subs_cross_entropy of 16 bits": {
        torch.bfloat16: 1.0,
        torch.float16: 1.0,
        torch.float64: 2.0**31,
    },
}
# Near 0 a log(mean), and a candidate whose mean and noise cancel, have no relative accuracy.
ABSOLUTE: dict[str, dict[torch.dtype, float]] = {
    "gaussian_propose": {torch.float32: 1e-6, torch.float64: 1e-13},
    "log_ratio of float32": {torch.float64: 1e-5},
    "select": {torch.float64: 1e-14},
    "resample": {torch.float64: 1e-14},
    "soft_value": {torch.float32: 1e-14, torch.float64: 1e-14},
    "gaussian_ppo": {torch.float32: 1e-7, torch.float64: 1e-13},
    "masked_ppo": {torch.float32: 1e-8, torch.float64: 1e-13},
    "masked_ppo of float32": {torch.float32: 4e-6, torch.float64: 1e-6},
    "gumbel_softmax_step": {torch.float32: 1e-8, torch.float64: 1e-13},
    "subs_cross_entropy": {torch.float32: 1e-8, torch.float64: 1e-13},
    "subs_cross_entropy of float32": {torch.float32: 4e-6, torch.float64: 4e-6},
    "masked_ppo of 16 bits": {torch.bfloat16: 4e-6, torch.float16: 4e-6, torch.float64: 1e-6},
    # 2**-24 is the step of the smallest float16.
    "subs_cross_entropy of 16 bits": {
        torch.bfloat16: 1e-8,
        torch.float16: 2.0**-24,
        torch.float64: 4e-6,
    },
}


def assert_matches(op: str, got: Any, due: Any) -> None:
    """Outputs of `op`, a tensor or nested tuples, agree: integers bit for bit, floats closely."""
    if not isinstance(due, torch.Tensor):
        assert len(got) == len(due), f"{op}: {len(got)} outputs, expected {len(due)}"
        if op == "gaussian_propose" and due[0].dtype == torch.float32:
            # Sums of products with float32 noise.
            assert_matches(op, got[0], due[0])
            assert_matches("log_ratio of float32", got[1], due[1])
            return
        if f"{op} of float32" in TOLERANCE_EPS and due[-1].dtype == torch.float32:
            # Large vocabularies, and products with a head, are float32 arithmetic.
            op = f"{op} of float32"
        halves = (torch.bfloat16, torch.float16)
        if f"{op} of 16 bits" in TOLERANCE_EPS and due[-1].dtype in halves:
            op = f"{op} of 16 bits"
        for one, other in zip(got, due, strict=True):
            assert_matches(op, one, other)
        return
    assert got.shape == due.shape, f"{op}: shape {list(got.shape)}, expected {list(due.shape)}"
    assert got.dtype == due.dtype, f"{op}: dtype {got.dtype}, expected {due.dtype}"
    rtol = atol = 0.0
    if due.is_floating_point() and op in TOLERANCE_EPS:
        rtol = TOLERANCE_EPS[op][due.dtype] * torch.finfo(due.dtype).eps
        atol = ABSOLUTE.get(op, {}).get(due.dtype, 0.0)
    torch.testing.assert_close(
        got, due, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{op}: {text}"
    )
