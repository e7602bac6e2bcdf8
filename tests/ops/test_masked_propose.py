"""Masked proposals: laws, edges, keys, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from fastguide.rng import Purpose
from fastguide.testing import Case, cases, chi_square_p, z_score
from fastguide.testing.cases import edge_logits

MASK = 4


def propose(logits: torch.Tensor, x: torch.Tensor, **changes: Any) -> ops.Proposal:
    arguments: dict[str, Any] = dict(
        mask_token=MASK, rho=0.5, seed=1, chains=torch.arange(len(x)), step=0, num_candidates=3
    )
    return ops.masked_propose(logits, x, ops.masked_keys(x), **{**arguments, **changes})


def all_masked(n: int, length: int) -> torch.Tensor:
    return torch.full((n, length), MASK)


@pytest.mark.parametrize("case", cases("masked_propose"), ids=str)
def test_keys_and_counts_describe_the_tokens(case: Case) -> None:
    tokens, keys, changed = case.run()
    x, mask = case.args[1], case.kwargs["mask_token"]
    n, k, length = tokens.shape
    assert torch.equal(ops.masked_keys(tokens.reshape(n * k, length)).view(n, k, 2), keys)
    assert torch.equal(changed, (tokens != x[:, None]).sum(-1, dtype=torch.int32))
    kept = (x != mask)[:, None].expand_as(tokens)
    assert torch.equal(tokens[kept], x[:, None].expand_as(tokens)[kept])


@pytest.mark.parametrize("rho", [1 / 64, 0.3, 0.9])
def test_reveal_law(rho: float) -> None:
    """Sites reveal independently with probability rho, along every axis of the output."""
    n, k, length = 200, 12, 50
    logits = torch.zeros(1, length, 4)
    tokens = propose(
        logits,
        all_masked(n, length),
        rho=rho,
        num_candidates=k,
        index=torch.zeros(n, dtype=torch.int64),
    ).tokens
    revealed = (tokens != MASK).double()
    trials = revealed.numel()
    assert abs(z_score(int(revealed.sum()), trials, rho)) < 5
    for dim in range(3):
        counts = revealed.sum([d for d in range(3) if d != dim])
        sd = math.sqrt(trials / len(counts) * rho * (1 - rho))
        scores = (counts - trials / len(counts) * rho) / sd
        assert float(scores.abs().max()) < 5.5
        shifted = (revealed - rho).roll(1, dim) * (revealed - rho)
        assert abs(float(shifted.mean())) / (rho * (1 - rho)) * math.sqrt(trials) < 5
    per_candidate = torch.bincount((tokens != MASK).sum(-1).flatten(), minlength=length + 1)
    binomial = [
        math.comb(length, j) * rho**j * (1 - rho) ** (length - j) for j in range(length + 1)
    ]
    assert chi_square_p(per_candidate, binomial) > 1e-6


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_token_law(temperature: float) -> None:
    n, k = 4000, 10
    row = torch.tensor([[0.3, -1.0, 2.0, 0.0], [-torch.inf, 0.0, 0.0, -8.0]])
    tokens = propose(
        row[None],
        all_masked(n, 2),
        rho=1.0,
        num_candidates=k,
        temperature=temperature,
        index=torch.zeros(n, dtype=torch.int64),
    ).tokens
    for site in range(2):
        law = torch.softmax(row[site].double() / temperature, -1)
        counts = torch.bincount(tokens[..., site].flatten(), minlength=4)
        assert chi_square_p(counts, law) > 1e-6
        candidates = torch.bincount(tokens[:, 0, site] * 4 + tokens[:, 1, site], minlength=16)
        assert chi_square_p(candidates, torch.outer(law, law)) > 1e-6
    laws = torch.softmax(row.double() / temperature, -1)
    sites = torch.bincount((tokens[..., 0] * 4 + tokens[..., 1]).flatten(), minlength=16)
    assert chi_square_p(sites, torch.outer(laws[0], laws[1])) > 1e-6


def test_law_of_a_large_vocabulary() -> None:
    n, vocab = 60_000, 300
    logits = torch.linspace(-2, 2, vocab).expand(1, 1, vocab)
    x = torch.full((n, 1), vocab)
    tokens = propose(
        logits, x, mask_token=vocab, rho=1.0, num_candidates=1, index=torch.zeros(n).long()
    ).tokens
    counts = torch.bincount(tokens.flatten(), minlength=vocab)
    assert chi_square_p(counts, torch.softmax(logits[0, 0].double(), -1)) > 1e-6


@pytest.mark.parametrize("vocab", [600, 1024, 5000])
def test_few_and_many_draws_agree_at_the_end_of_a_token(vocab: int) -> None:
    """A few draws from a large vocabulary go by sums of blocks, many by sums in order.

    Most targets here are closer to the end of a token than sums of blocks can tell: without a
    way back to the sums in order, hundreds of these draws differ.
    """
    gap = torch.tensor([0.0, 1e-15, -1e-15, 1e-13, -1e-13, 1e-11, -1e-11, 1e-10, -1e-10, 1e-6])
    chains, many = torch.arange(60), vocab // 200
    u = ops.philox_uniform(1, chains, 0, Purpose.TOKEN, num_elements=len(gap))[:, 0]
    logits = edge_logits(u, gap.expand_as(u), vocab)
    x = torch.full(u.shape, vocab)
    arguments: dict[str, Any] = dict(mask_token=vocab, rho=1.0, chains=chains)
    few = propose(logits, x, num_candidates=1, **arguments).tokens
    assert torch.equal(few, propose(logits, x, num_candidates=many, **arguments).tokens[:, :1])
    # Next to the end of the first third of the tokens, on either side.
    assert int((few == vocab // 3 - 1).sum()) > 60
    assert int((few == vocab // 3).sum()) > 60


def test_a_wrong_law_is_caught() -> None:
    """Negative control: 40,000 draws tell logits apart that differ by 0.1."""
    n = 4000
    logits = torch.tensor([[[0.4, -1.0, 2.0, 0.0]]])
    tokens = propose(
        logits, all_masked(n, 1), rho=1.0, num_candidates=10, index=torch.zeros(n).long()
    ).tokens
    law = torch.softmax(torch.tensor([0.3, -1.0, 2.0, 0.0]), -1)
    assert chi_square_p(torch.bincount(tokens.flatten(), minlength=4), law) < 1e-6


def test_rho_one_reveals_everything_and_rho_zero_nothing() -> None:
    x = all_masked(50, 100)
    logits = torch.randn(50, 100, 4)
    assert not bool((propose(logits, x, rho=1.0).tokens == MASK).any())
    nothing = propose(logits, x, rho=0.0)
    assert torch.equal(nothing.tokens, x[:, None].expand(-1, 3, -1))
    assert int(nothing.changed.sum()) == 0


def test_below_one_by_an_ulp_still_counts_as_a_probability() -> None:
    rho = math.nextafter(1.0, 0.0)
    propose(torch.zeros(1, 1, 4), all_masked(1, 1), rho=rho)


def test_logits_are_read_only_where_revealed() -> None:
    """NaN at sites that stay masked, or were never masked, does no harm."""
    x = torch.randint(0, 5, (20, 30))
    logits = torch.randn(20, 30, 4)
    clean = propose(logits, x, rho=0.1)
    needed = (clean.tokens != x[:, None]).any(1)
    assert bool((~needed & (x == MASK)).any())
    logits[~needed] = torch.nan
    assert torch.equal(propose(logits, x, rho=0.1).tokens, clean.tokens)


def test_candidates_do_not_depend_on_how_many_are_drawn() -> None:
    x = torch.randint(0, 5, (7, 40))
    logits = torch.randn(7, 40, 4)
    whole = propose(logits, x, num_candidates=11)
    for first, count in [(0, 1), (1, 3), (3, 8), (10, 1)]:
        part = propose(logits, x, num_candidates=count, first_candidate=torch.full((7,), first))
        assert torch.equal(part.tokens, whole.tokens[:, first : first + count])
        assert torch.equal(part.keys, whole.keys[:, first : first + count])


def test_chains_do_not_depend_on_their_neighbours() -> None:
    x = torch.randint(0, 5, (9, 40))
    logits = torch.randn(9, 40, 4)
    whole = propose(logits, x)
    for n in range(9):
        alone = propose(logits[n : n + 1], x[n : n + 1], chains=torch.tensor([n]))
        assert torch.equal(alone.tokens[0], whole.tokens[n])


def test_step_and_seed_matter() -> None:
    x = all_masked(20, 60)
    logits = torch.zeros(20, 60, 4)
    base = propose(logits, x).tokens
    assert not torch.equal(propose(logits, x, step=1).tokens, base)
    assert not torch.equal(propose(logits, x, seed=2).tokens, base)


BACKENDS = pytest.mark.parametrize("backend", ["cpp", "reference"])


@BACKENDS
def test_bad_contents(backend: str) -> None:
    x, logits = all_masked(3, 2), torch.zeros(3, 2, 4)
    with ops.use_backend(backend):
        with pytest.raises(ArgumentError, match=r"index\[1\] = 3 is no row of logits"):
            propose(logits, x, index=torch.tensor([0, 3, -1]))
        each = torch.tensor([[0, 1], [1, 4], [-1, 0]])
        with pytest.raises(ArgumentError, match=r"index\[1, 1\] = 4 is no row of logits"):
            propose(logits[0, :1].expand(4, 4), x, index=each, rho=1.0)
        odd = x.clone()
        odd[2, 1] = 7
        with pytest.raises(ArgumentError, match=r"x\[2, 1\] = 7 is neither mask_token nor a token"):
            propose(logits, odd)
        with pytest.raises(ArgumentError, match=r"chains\[2\] = 4294967296 must lie"):
            propose(logits, x, chains=torch.tensor([0, 1, 2**32]))
        with pytest.raises(ArgumentError, match="row 0 has candidate or particle id -1"):
            propose(logits, x, first_candidate=torch.tensor([-1, 0, 0]))
        for bad in (torch.nan, torch.inf):
            logits[1, 1, 2] = bad
            with pytest.raises(
                NonFiniteError, match=r"logits of row 1 at site 1 hold NaN or \+inf; check the den"
            ):
                propose(logits, x, rho=1.0)
        logits[1, 1] = -torch.inf
        with pytest.raises(NonFiniteError, match="every logit of row 1 at site 1 is -inf"):
            propose(logits, x, rho=1.0)


def test_the_first_fault_is_reported_on_any_number_of_threads() -> None:
    x, logits = all_masked(400, 200), torch.zeros(400, 200, 4)
    logits[37, 5], logits[38:, 3] = torch.nan, torch.nan
    threads = torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            with pytest.raises(NonFiniteError, match="row 37 at site 5 "):
                propose(logits, x, rho=1.0)
    finally:
        torch.set_num_threads(threads)


def test_bad_arguments() -> None:
    x, logits = all_masked(3, 2), torch.zeros(3, 2, 4)
    with pytest.raises(ArgumentError, match=r"rho must be a probability in \[0, 1\], got 1.5"):
        propose(logits, x, rho=1.5)
    with pytest.raises(ArgumentError, match="rho must be a probability"):
        propose(logits, x, rho=math.nan)
    with pytest.raises(ArgumentError, match=r"temperature must be positive and finite, got 0\.0"):
        propose(logits, x, temperature=0)
    with pytest.raises(ArgumentError, match="num_candidates must be at least 1, got 0"):
        propose(logits, x, num_candidates=0)
    with pytest.raises(ShapeError, match=r"logits must have shape \[U, L, V\] = \[3, 2, any\]"):
        propose(logits[:2], x)
    with pytest.raises(ShapeError, match=r"logits must have shape \[U, L, V\] = \[any, 2, any\]"):
        propose(torch.zeros(1, 5, 4), x, index=torch.zeros(3).long())
    with pytest.raises(ArgumentError, match="logits must hold at least one token"):
        propose(torch.zeros(3, 2, 0), x)
    with pytest.raises(DtypeError, match="logits must be float32 or float64, got float16"):
        propose(logits.half(), x)
    with pytest.raises(ShapeError, match=r"chains must have shape \[N\] = \[3\], got \[2\]"):
        propose(logits, x, chains=torch.arange(2))
    wrong = torch.empty(3, 3, 1, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"out: tokens must have shape \[3, 3, 2\]"):
        propose(logits, x, out=(wrong, wrong, wrong))
