"""torch.library: every op passes opcheck, traces, and has a gradient or says that it has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastguide import ops
from fastguide.errors import GradientError
from fastguide.testing import Case, assert_matches, cases

OPS = sorted(ops.backends())
ALL = [case for op in OPS for case in cases(op)]


class RecordOps(TorchDispatchMode):
    """Keeps the registered operators of this package that a call ends up in."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "fastguide":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def registered_call(case: Case) -> tuple[Any, tuple[Any, ...]]:
    """The operator behind a case, with its positional arguments; its gradient's comes second."""
    with RecordOps() as record:
        case.run()
    (operator, args), *backward = record.calls
    assert [each.name() for each, _ in backward] in ([], [f"fastguide::{case.op}_backward"])
    assert operator.name() == f"fastguide::{case.op}"
    return operator, args


@pytest.mark.parametrize("case", ALL, ids=str)
def test_opcheck(case: Case) -> None:
    operator, args = registered_call(case)
    torch.library.opcheck(operator, args, test_utils=["test_schema", "test_faketensor"])


@pytest.mark.parametrize("op", OPS)
def test_opcheck_in_full(op: str) -> None:
    operator, args = registered_call(cases(op)[2])
    torch.library.opcheck(operator, args)


def test_opcheck_in_full_with_a_gradient() -> None:
    for case in cases("soft_value"):
        if case.args[0].shape == (7, 4):
            operator, args = registered_call(case)
            values = args[0].clone().requires_grad_()
            torch.library.opcheck(operator, (values, *args[1:]))


def test_opcheck_in_full_with_gradients_of_a_step() -> None:
    for case in cases("gaussian_propose"):
        if case.name.startswith("odd"):
            operator, args = registered_call(case)
            marked = [
                arg.clone().requires_grad_()
                if isinstance(arg, torch.Tensor) and arg.is_floating_point()
                else arg
                for arg in args
            ]
            torch.library.opcheck(operator, tuple(marked))


def test_every_op_traces_into_one_graph() -> None:
    def step(x: torch.Tensor, logits: torch.Tensor, chains: torch.Tensor) -> torch.Tensor:
        keys = ops.masked_keys(x)
        proposal = ops.masked_propose(
            logits,
            x,
            keys,
            mask_token=4,
            rho=0.5,
            seed=2**64 - 1,
            chains=chains,
            step=3,
            num_candidates=3,
        )
        rows, row_keys = proposal.tokens.flatten(0, 1), proposal.keys.flatten(0, 1)
        groups = ops.unique_rows(rows, row_keys)
        values = groups.inverse.view(-1, 3).float()
        values = values + ops.philox_normal(1, chains, 3, 2, num_elements=3)[:, 0]
        values = values + ops.philox_uniform(1, chains, 3, 2, num_elements=3)[:, 0].float()
        values = values + ops.soft_value(values, 0.1)[:, None]
        moved = ops.gaussian_propose(
            values, values, a=0.5, b=0.5, s=0.1, seed=1, chains=chains, step=3, num_candidates=2
        )
        values = values + moved.candidates.sum(1)
        groups_of_two = ops.resample(
            values.view(2, -1), seed=1, step=3, chains=chains[:2], gather=[values.view(2, -1)]
        )
        values = groups_of_two.gathered[0].view(-1, 3)
        chosen = ops.select(
            values, alpha=0.1, seed=1, chains=chains, step=3, gather=[proposal.tokens]
        )
        return ops.masked_posterior(logits, chosen.gathered[0], mask_token=4)

    x = torch.randint(0, 5, (6, 9))
    inputs = (x, torch.randn(6, 9, 4), torch.arange(6))
    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(traced(*inputs), step(*inputs))


NEEDS_NO_GRADIENT = [
    (case, position)
    for op in ("masked_propose", "masked_posterior", "select", "resample")
    for case in cases(op)[2:4]
    for position in [0]
]


@pytest.mark.parametrize(("case", "position"), NEEDS_NO_GRADIENT, ids=str)
def test_no_silent_gradient(case: Case, position: int) -> None:
    args = list(case.args)
    args[position] = args[position].detach().clone().requires_grad_()
    operator, _ = registered_call(case)
    marked = Case(case.op, case.name, tuple(args), case.kwargs)
    for backend in ("cpp", "reference"):
        with ops.use_backend(backend):
            with pytest.raises(
                GradientError, match=rf"{case.op} has no gradient, but .*detach\(\)"
            ):
                marked.run()
            with torch.no_grad():
                assert_matches(case.op, marked.run(), case.run())
    assert operator is not None


def test_gathered_tensor_with_gradient_is_refused() -> None:
    item = torch.randn(2, 3, 4, requires_grad=True)
    with pytest.raises(GradientError, match=r"gather\[0\] requires one"):
        ops.select(
            torch.zeros(2, 3), alpha=1.0, seed=0, chains=torch.arange(2), step=0, gather=[item]
        )


def test_out_cannot_carry_a_gradient() -> None:
    values = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(GradientError, match="out= cannot carry a gradient"):
        ops.soft_value(values, 1.0, out=torch.empty(3))


@pytest.mark.parametrize(
    ("alpha", "kwargs"),
    [
        (0.3, {}),
        (0.0, {}),
        (1.0, {"kind": "mean"}),
        (1.0, {"kind": "cvar", "tau": 0.35}),
        (1.0, {"kind": "cvar", "tau": 1.0}),
    ],
)
def test_gradient_of_soft_value(alpha: float, kwargs: dict[str, Any]) -> None:
    values = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: ops.soft_value(v, alpha, **kwargs), values)
