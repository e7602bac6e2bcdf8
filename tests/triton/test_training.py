"""The Triton kernels of the training ops, forward and backward: in the interpreter, or on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, FastguideError
from fastguide.ops._backend import TRAINING_OPS
from fastguide.testing import Case, assert_matches, cases

# NumPy warns where lanes without a token take infinity from infinity; what they give is not used.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALL = [case for op in sorted(TRAINING_OPS) for case in cases(op)]


def on_device(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return tuple(on_device(each, device) for each in value) if isinstance(value, tuple) else value


def moved(case: Case, device: str) -> Case:
    kwargs = {name: on_device(value, device) for name, value in case.kwargs.items()}
    return case.changed(on_device(case.args, device), kwargs)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_matches_the_reference(case: Case) -> None:
    with ops.use_backend("triton"):
        got = on_device(moved(case, DEVICE).run(), "cpu")
    assert_matches(case.op, got, case.oracle())


FAULTS: list[tuple[str, int | str, tuple[int, ...], float]] = [
    ("masked_ppo", 1, (1, 2), 99),
    ("masked_ppo", 1, (2, 0), -1),
    ("subs_cross_entropy", 1, (3, 6), 99),
    ("gumbel_softmax_step", "chains", (2,), 2**32),
    ("gaussian_ppo", "s", (4,), 0.0),
]


@pytest.mark.parametrize(("op", "place", "where", "value"), FAULTS)
def test_bad_contents_raise_what_the_reference_raises(
    op: str, place: int | str, where: tuple[int, ...], value: float
) -> None:
    name = "5x7" if op == "gaussian_ppo" else "small"
    (case,) = [case for case in cases(op) if case.name == name]
    args, kwargs = list(case.args), dict(case.kwargs)
    inputs: Any = args if isinstance(place, int) else kwargs
    inputs[place] = inputs[place].clone()
    inputs[place][where] = value
    spoiled = case.changed(tuple(args), kwargs)
    messages = []
    for backend, device in (("triton", DEVICE), ("reference", "cpu")):
        with ops.use_backend(backend), pytest.raises(FastguideError) as caught:
            moved(spoiled, device).run()
        messages.append((type(caught.value), str(caught.value)))
    assert messages[0] == messages[1]


def test_a_relaxed_step_says_how_many_tokens_it_takes() -> None:
    logits, x = torch.zeros(1, 1, 2048, device=DEVICE), torch.zeros(1, 1, 2049, device=DEVICE)
    chains = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    with (
        ops.use_backend("triton"),
        pytest.raises(ArgumentError, match="at most 2047 tokens, got 2048"),
    ):
        ops.gumbel_softmax_step(logits, x, rho=0.5, tau=1.0, seed=0, chains=chains, step=0)
