"""Clean predictions: mode, sample law, keying by state, errors."""

from __future__ import annotations

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, NonFiniteError, ShapeError
from fastguide.rng import Purpose
from fastguide.testing import chi_square_p

MASK = 3


def test_mode_is_the_first_maximum() -> None:
    logits = torch.tensor([[[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [5.0, -torch.inf, 9.0]]])
    x = torch.tensor([[MASK, MASK, MASK], [0, MASK, 1]])
    index = torch.zeros(2, dtype=torch.int64)
    got = ops.masked_posterior(logits, x, mask_token=MASK, index=index)
    assert got.tolist() == [[1, 0, 2], [0, 0, 1]]


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_sample_law(temperature: float) -> None:
    """Over states (first sample) and over samples (one state)."""
    logits = torch.tensor([[[0.5, -1.0, 1.0], [0.0, 0.0, -torch.inf]]])
    law = torch.softmax(logits[0].double() / temperature, -1)
    for rows, samples in ((30_000, 1), (1, 30_000)):
        x = torch.full((rows, 2), MASK)
        # Keys as those of distinct states.
        keys = ops.masked_keys(torch.arange(rows)[:, None])
        got = ops.masked_posterior(
            logits,
            x,
            mask_token=MASK,
            index=torch.zeros(rows, dtype=torch.int64),
            num_samples=samples,
            keys=keys,
            temperature=temperature,
        ).view(-1, 2)
        for site in range(2):
            assert chi_square_p(torch.bincount(got[:, site], minlength=3), law[site]) > 1e-6
        joint = torch.bincount(got[:, 0] * 3 + got[:, 1], minlength=9)
        assert chi_square_p(joint, torch.outer(law[0], law[1])) > 1e-6


def test_equal_states_get_equal_samples_anywhere() -> None:
    x = torch.randint(0, 4, (6, 20))
    logits = torch.randn(6, 20, 3)
    keys = ops.masked_keys(x)
    whole = ops.masked_posterior(logits, x, mask_token=MASK, num_samples=5, keys=keys, seed=3)
    order = torch.tensor([4, 1, 1, 5])
    again = ops.masked_posterior(
        logits, x[order], mask_token=MASK, index=order, num_samples=5, keys=keys[order], seed=3
    )
    assert torch.equal(again, whole[order])
    fewer = ops.masked_posterior(logits, x, mask_token=MASK, num_samples=2, keys=keys, seed=3)
    assert torch.equal(fewer, whole[:, :2])


def test_key_seed_sample_and_purpose_matter() -> None:
    x = torch.full((1, 200), MASK)
    logits = torch.zeros(1, 200, 3)
    keys = ops.masked_keys(x)

    def sample(keys: torch.Tensor, seed: int, purpose: int) -> torch.Tensor:
        return ops.masked_posterior(
            logits, x, mask_token=MASK, num_samples=2, keys=keys, seed=seed, purpose=purpose
        )

    base = sample(keys, 1, Purpose.POSTERIOR)
    assert not torch.equal(base[:, 0], base[:, 1])
    assert not torch.equal(sample(keys, 2, Purpose.POSTERIOR), base)
    assert not torch.equal(sample(keys, 1, Purpose.LOOKAHEAD), base)
    assert not torch.equal(sample(keys ^ 1, 1, Purpose.POSTERIOR), base)
    assert not torch.equal(sample(keys ^ (1 << 55), 1, Purpose.POSTERIOR), base)
    assert torch.equal(sample(keys ^ (1 << 56), 1, Purpose.POSTERIOR), base)


def test_logits_are_read_only_where_masked() -> None:
    x = torch.randint(0, 4, (6, 20))
    logits = torch.randn(6, 20, 3)
    clean = ops.masked_posterior(logits, x, mask_token=MASK)
    logits[x != MASK] = torch.nan
    assert torch.equal(ops.masked_posterior(logits, x, mask_token=MASK), clean)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("num_samples", [0, 2])
def test_bad_contents(backend: str, num_samples: int) -> None:
    x, logits = torch.full((2, 3), MASK), torch.zeros(2, 3, 3)

    def predict(**changes: torch.Tensor) -> torch.Tensor:
        state = changes.pop("x", x)
        return ops.masked_posterior(
            changes.pop("logits", logits),
            state,
            mask_token=MASK,
            num_samples=num_samples,
            keys=ops.masked_keys(state),
            **changes,
        )

    with ops.use_backend(backend):
        with pytest.raises(ArgumentError, match=r"index\[0\] = 2 is no row of logits"):
            predict(index=torch.tensor([2, 0]))
        each = torch.tensor([[0, 1, 0], [1, 1, -1]])
        with pytest.raises(ArgumentError, match=r"index\[1, 2\] = -1 is no row of logits"):
            predict(logits=logits[0], index=each)
        with pytest.raises(ArgumentError, match=r"x\[1, 0\] = -1 is neither mask_token nor"):
            predict(x=torch.tensor([[MASK, 0, 0], [-1, 0, 0]]))
        logits[1, 2, 0] = torch.nan
        with pytest.raises(NonFiniteError, match="row 1 at site 2 hold NaN"):
            predict()
        logits[1, 2] = -torch.inf
        with pytest.raises(NonFiniteError, match="every logit of row 1 at site 2 is -inf"):
            predict()


def test_bad_arguments() -> None:
    x, logits = torch.full((2, 3), MASK), torch.zeros(2, 3, 3)
    with pytest.raises(ArgumentError, match=r"keys is needed for num_samples=2"):
        ops.masked_posterior(logits, x, mask_token=MASK, num_samples=2)
    with pytest.raises(ArgumentError, match="num_samples must be at least 0, got -1"):
        ops.masked_posterior(logits, x, mask_token=MASK, num_samples=-1)
    with pytest.raises(ArgumentError, match="for the mode use masked_posterior with num_samples=0"):
        ops.masked_posterior(logits, x, mask_token=MASK, temperature=0.0)
    with pytest.raises(ArgumentError, match="logits must hold at least one token"):
        ops.masked_posterior(logits[..., :0], x, mask_token=MASK)
    with pytest.raises(ShapeError, match=r"keys must have shape \[R, 2\] = \[2, 2\], got \[1, 2\]"):
        ops.masked_posterior(logits, x, mask_token=MASK, num_samples=1, keys=x[:1, :2])
