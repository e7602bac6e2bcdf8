"""masked_propose against the published Gumbel draws and the best plain PyTorch spellings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from harness import num_bytes

from fastguide import ops
from fastguide.testing import chi_square_p, z_score


@dataclass
class Setting:
    """Inputs of one comparison; half of the sites are masked."""

    n: int
    length: int
    vocab: int
    k: int
    rho: float

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.x = torch.randint(0, self.vocab, (self.n, self.length), generator=g)
        self.x[torch.rand(self.n, self.length, generator=g) < 0.5] = self.vocab
        self.logits = torch.randn(self.n, self.length, self.vocab, generator=g)
        self.keys = ops.masked_keys(self.x)
        self.chains = torch.arange(self.n)
        # One output for each who writes into one, so that nobody finds it warm from another.
        shape = (self.n, self.k, self.length)
        self.sparse, self.multinomial = torch.empty(2, *shape, dtype=torch.int64)
        self.proposal = self.propose(None)

    def __str__(self) -> str:
        return (
            f"N={self.n} L={self.length} V={self.vocab} K={self.k}, half masked, "
            f"rho={Fraction(self.rho)}, int64"
        )

    def propose(self, out: ops.Proposal | None) -> ops.Proposal:
        return ops.masked_propose(
            self.logits,
            self.x,
            self.keys,
            mask_token=self.vocab,
            rho=self.rho,
            seed=1,
            chains=self.chains,
            step=3,
            num_candidates=self.k,
            out=out,
        )

    @property
    def bytes_moved(self) -> int:
        """Logits count where some candidate reveals, once."""
        read = (self.proposal.tokens != self.x[:, None]).any(1)
        return num_bytes(self.x, self.keys, self.proposal) + 4 * self.vocab * int(read.sum())

    def ours(self) -> torch.Tensor:
        return self.propose(self.proposal).tokens

    def published(self) -> torch.Tensor:
        """K draws, one after the other, by Gumbel-argmax over V + 1 columns; the chance to stay
        masked stands in the last column and the other columns are not normalised."""
        outputs = []
        copy_flag = (self.x != self.vocab).to(self.x.dtype)
        probs = torch.softmax(self.logits, dim=-1)
        for _ in range(self.k):
            q = torch.empty(self.n, self.length, self.vocab + 1)
            q[..., : self.vocab] = probs * self.rho
            q[..., self.vocab] = 1 - self.rho
            gumbel = 1e-10 - torch.log(torch.rand_like(q) + 1e-10)
            drawn = (q / gumbel).argmax(dim=-1)
            outputs.append(copy_flag * self.x + (1 - copy_flag) * drawn)
        return torch.stack(outputs, dim=1)

    def sparse_eager(self) -> torch.Tensor:
        """Two stages: Bernoulli reveals at masked sites, then inverse CDFs where revealed."""
        n, site = (self.x == self.vocab).nonzero(as_tuple=True)
        hit = (torch.rand(len(n) * self.k) < self.rho).nonzero().squeeze(-1)
        k, hit = hit % self.k, hit // self.k
        n, site = n[hit], site[hit]
        cdf = torch.softmax(self.logits[n, site], dim=-1).cumsum(-1)
        u = torch.rand(len(n), 1) * cdf[:, -1:]
        drawn = (cdf <= u).sum(-1).clamp_(max=self.vocab - 1)
        self.sparse.copy_(self.x[:, None].expand_as(self.sparse))
        self.sparse.view(-1)[(n * self.k + k) * self.length + site] = drawn
        return self.sparse

    def sparse_multinomial(self) -> torch.Tensor:
        """As `sparse_eager`, with torch.multinomial and index_put."""
        n, site = (self.x == self.vocab).nonzero(as_tuple=True)
        hit, k = (torch.rand(len(n), self.k) < self.rho).nonzero(as_tuple=True)
        n, site = n[hit], site[hit]
        drawn = torch.multinomial(torch.softmax(self.logits[n, site], dim=-1), 1).squeeze(-1)
        self.multinomial.copy_(self.x[:, None].expand_as(self.multinomial))
        self.multinomial[n, k, site] = drawn
        return self.multinomial

    def dense_compiled(self) -> Callable[[], torch.Tensor]:
        """Two stages at every site and candidate, fused by torch.compile."""
        mask, rho, shape = self.vocab, self.rho, (self.n, self.k, self.length)

        def draw(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            cdf = torch.softmax(logits, dim=-1).cumsum(-1)[:, None]
            u = torch.rand(*shape, 1) * cdf[..., -1:]
            drawn = (cdf <= u).sum(-1).clamp(max=mask - 1)
            reveal = (x == mask)[:, None] & (torch.rand(shape) < rho)
            return torch.where(reveal, drawn, x[:, None])

        compiled = torch.compile(draw, dynamic=False)
        return lambda: compiled(self.logits, self.x)

    def assert_same_law(self, tokens: torch.Tensor) -> None:
        """Kept sites are copied, the reveals count right, and so do the tokens drawn."""
        masked = (self.x == self.vocab)[:, None].expand_as(tokens)
        assert torch.equal(tokens[~masked], self.x[:, None].expand_as(tokens)[~masked])
        drawn = tokens[masked]
        revealed = drawn[drawn != self.vocab]
        assert abs(z_score(len(revealed), len(drawn), self.rho)) < 5
        law = torch.softmax(self.logits, dim=-1)[self.x == self.vocab].mean(0)
        assert chi_square_p(torch.bincount(revealed, minlength=self.vocab), law) > 1e-6


USUAL = Setting(256, 200, 5, 10, 1 / 64)


def bench_masked_propose(compare: Callable[..., None]) -> None:
    torch.manual_seed(0)
    rivals = {
        "published eager": USUAL.published,
        "sparse eager": USUAL.sparse_eager,
        "sparse eager, multinomial": USUAL.sparse_multinomial,
        "dense two-stage, torch.compile": USUAL.dense_compiled(),
    }
    for draw in (USUAL.ours, *rivals.values()):
        USUAL.assert_same_law(draw())
    compare(
        "masked_propose",
        str(USUAL),
        USUAL.ours,
        rivals,
        bytes_moved=USUAL.bytes_moved,
        due={"published eager": 25, "sparse eager": 3, "sparse eager, multinomial": 3},
    )


def bench_masked_propose_two_threads(compare: Callable[..., None]) -> None:
    compare(
        "masked_propose",
        str(USUAL),
        USUAL.ours,
        {"published eager": USUAL.published},
        bytes_moved=USUAL.bytes_moved,
        due={"published eager": 40},
        num_threads=2,
    )


@pytest.mark.parametrize("rho", [1 / 256, 1 / 16, 1.0])
def bench_masked_propose_other_steps(compare: Callable[..., None], rho: float) -> None:
    """Early and late steps of a chain, at the sizes of the utr task."""
    setting = Setting(32, 50, 4, 10, rho)
    rivals = {"published eager": setting.published, "sparse eager": setting.sparse_eager}
    for draw in (setting.ours, *rivals.values()):
        if rho < 1:
            setting.assert_same_law(draw())
    compare("masked_propose", str(setting), setting.ours, rivals, bytes_moved=setting.bytes_moved)


@pytest.mark.parametrize("rho", [1.0, 1 / 16, 1 / 64])
def bench_masked_propose_large_vocabulary(compare: Callable[..., None], rho: float) -> None:
    """Logits are read where a candidate reveals, once for all of them; the fill reads most."""
    setting = Setting(1, 256, 50_258, 10, rho)
    rivals = {"published eager": setting.published, "sparse eager": setting.sparse_eager}
    masked = int((setting.x == setting.vocab).sum()) * setting.k
    for draw in (setting.ours, *rivals.values()):
        revealed = masked - int((draw() == setting.vocab).sum())
        assert abs(revealed - rho * masked) <= 5 * math.sqrt(rho * (1 - rho) * masked)
    compare(
        "masked_propose",
        str(setting),
        setting.ours,
        rivals,
        bytes_moved=setting.bytes_moved,
        due={"published eager": 300},
        rounds=7,
    )
