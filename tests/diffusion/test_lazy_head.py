"""A head that runs at single sites: the samples of the dense denoiser, at a share of its work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastguide as fg
from fastguide import ops
from fastguide.diffusion import lazy_head
from fastguide.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError

L, V, WIDTH = 24, 37, 6


class Body(torch.nn.Module):
    """Hidden states in whole numbers of 1/4, so that sums are exact at any batch shape."""

    def __init__(self, vocab: int = V + 1, length: int = L) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.table = torch.randint(-2, 3, (vocab, WIDTH), generator=g).float()
        self.places = torch.randint(-2, 3, (length, WIDTH), generator=g).float()
        self.rows = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        self.rows += len(x)
        each = self.table[x] + self.places
        states = each + each.sum(1, keepdim=True).remainder(3)
        if cond:
            states = states + cond["label"][:, None, None]
        return states + t[:, None, None].round()


class Head(torch.nn.Module):
    """Counts the sites it is asked for."""

    def __init__(self, columns: int = V) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.weight = torch.randint(-2, 3, (WIDTH, columns), generator=g).float() / 4
        self.sites = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.sites += hidden[..., 0].numel()
        return hidden @ self.weight


def state_value(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (x % 5 == 0).double().mean(1)


class Reward:
    """Share of even tokens; of probabilities, its expectation."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x % 2 == 0).double().mean(1)

    def soft(self, probs: torch.Tensor) -> torch.Tensor:
        return probs[..., ::2].sum(-1).mean(1)


VALUES: dict[str, Any] = {
    "of the state": state_value,
    "mode": "posterior_mean",
    "soft": fg.values.PosteriorMean(Reward(), x0="soft"),
    "samples": fg.values.PosteriorSamples(Reward(), 3, alpha=0.1),
}


def both(**settings: Any) -> tuple[fg.MaskedDiffusion, fg.MaskedDiffusion]:
    """The same chain with the head inside the denoiser, and lazy."""
    body, head = settings.pop("body", Body()), settings.pop("head", Head())

    def dense(x: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        return head(body(x, t, **cond))

    sizes = (settings.pop("length", L), settings.pop("vocab_size", V))
    return (
        fg.MaskedDiffusion(dense, *sizes, **settings),
        fg.MaskedDiffusion(body, *sizes, head=head, **settings),
    )


def sample(diffusion: fg.MaskedDiffusion, value: Any = "posterior_mean", **how: Any) -> fg.Result:
    sampler = fg.SVDD(diffusion, Reward(), value=value, num_candidates=4, alpha=0.05)
    return sampler.sample(**{"num_samples": 5, "num_steps": 8, "progress": False, **how})


def assert_equal(one: fg.Result, other: fg.Result) -> None:
    assert torch.equal(one.samples, other.samples)
    assert torch.equal(one.rewards, other.rewards)
    values = (one.trace.values, other.trace.values)
    torch.testing.assert_close(*values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_samples_are_those_of_the_dense_denoiser(value: Any) -> None:
    dense, lazy = both()
    assert_equal(sample(dense, value), sample(lazy, value))


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_token": 0, "forbidden_tokens": (3, 4)},
        {"mask_token": 1000, "body": Body(1001)},
        {"mask_token": 7, "final": "mode"},
        {"head": Head(V + 1), "temperature": 0.7},
        {"time_conditioned": True},
        {"length": 1, "vocab_size": 2, "body": Body(3, 1), "head": Head(2)},
    ],
    ids=str,
)
@pytest.mark.parametrize("value", ["posterior_mean", state_value])
def test_every_setting_of_the_chain(settings: dict[str, Any], value: Any) -> None:
    dense, lazy = both(**settings)
    assert_equal(sample(dense, value), sample(lazy, value))


@pytest.mark.parametrize("value", ["posterior_mean", state_value])
def test_guidance_runs_the_head_on_both_rows(value: Any) -> None:
    settings = {"null_cond": {"label": torch.zeros(1)}, "guidance_scale": 1.5}
    cond = {"label": torch.arange(5.0)}
    dense, lazy = both(**settings)
    one, other = sample(dense, value, cond=cond), sample(lazy, value, cond=cond)
    assert_equal(one, other)
    assert other.cost.head_rows_requested == one.cost.denoiser_rows_requested * L


def test_infilling_looks_at_nothing_but_the_masks() -> None:
    body, head = Body(), Head()
    _, lazy = both(body=body, head=head)
    prompt = torch.arange(L)
    prompt[[3, 8]] = V
    result = sample(lazy, state_value, prompt=prompt, num_samples=1)
    kept = torch.arange(L) != 3
    kept[8] = False
    assert torch.equal(result.samples[0][kept], prompt[kept])
    assert 2 <= head.sites <= 2 * 4 * 9


@pytest.mark.parametrize("how", [{"fixed_rows": 4}, {"max_rows": 3}, {"savings": "none"}], ids=str)
def test_every_way_of_running(how: dict[str, Any]) -> None:
    _, lazy = both()
    for value in (state_value, "posterior_mean"):
        assert_equal(sample(lazy, value), sample(lazy, value, **how))


def test_fixed_rows_is_the_batch_of_the_head_too() -> None:
    body, head = Body(), Head()
    shapes = set()

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(hidden.shape))
        return head(hidden)

    sample(fg.MaskedDiffusion(body, L, V, head=watched), fixed_rows=6)
    assert shapes == {(6, WIDTH)}


def test_logits_in_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, lazy = both()
    whole = {name: sample(lazy, value) for name, value in VALUES.items()}
    monkeypatch.setattr(lazy_head, "LOGIT_BYTES", 4 * V * 30)
    for name, value in VALUES.items():
        assert_equal(whole[name], sample(lazy, value))


@pytest.mark.parametrize(("num_candidates", "factor"), [(1, 50), (10, 6)])
def test_head_rows_of_a_long_run(num_candidates: int, factor: int) -> None:
    """Against a denoiser with its head inside, run at each of 128 steps on every candidate kept."""
    length, steps = 200, 128
    body, head = Body(length=length), Head()
    lazy = fg.MaskedDiffusion(body, length, V, head=head)
    sampler = fg.SVDD(lazy, Reward(), value=state_value, num_candidates=num_candidates, alpha=0.05)
    cost = sampler.sample(8, num_steps=steps, progress=False).cost
    assert cost.head_rows == head.sites
    assert factor * head.sites <= body.rows * length
    assert cost.head_rows_requested == cost.denoiser_rows_requested * length


def test_values_that_read_x0_run_the_head_at_masked_sites() -> None:
    body, head = Body(), Head()
    _, lazy = both(body=body, head=head)
    cost = sample(lazy).cost
    assert cost.head_rows == head.sites
    assert head.sites < body.rows * L
    assert f"head {cost.head_rows:,} of {cost.head_rows_requested:,} sites" in str(cost)


def test_likelihoods_agree() -> None:
    dense, lazy = both()
    x = torch.randint(0, V, (3, L), generator=torch.Generator().manual_seed(2))
    assert torch.allclose(dense.elbo(x, num_masks=8), lazy.elbo(x, num_masks=8))


def test_bad_heads_are_refused() -> None:
    with pytest.raises(DtypeError, match="head must be callable or None, got int"):
        fg.MaskedDiffusion(Body(), L, V, head=3)

    def run(body: Any, head: Any) -> None:
        sample(fg.MaskedDiffusion(body, L, V, head=head))

    with pytest.raises(ShapeError, match=r"head must return logits \[\d+, 37\] \(or 38 columns\)"):
        run(Body(), lambda hidden: hidden)
    with pytest.raises(DtypeError, match="head must return a tensor of logits"):
        run(Body(), lambda hidden: None)
    with pytest.raises(DtypeError, match="head must return floating-point logits, got "):
        run(Body(), lambda hidden: torch.zeros(len(hidden), V, dtype=torch.int64))
    with pytest.raises(
        ShapeError, match=r"hidden states \[1, 24, ...\], which head turns into log"
    ):
        run(lambda x, t: torch.zeros(5, 3), Head())
    with pytest.raises(DtypeError, match="floating-point hidden states"):
        run(lambda x, t: x[..., None], Head())


def test_non_finite_numbers_name_step_and_chain() -> None:
    def broken(hidden: torch.Tensor) -> torch.Tensor:
        return torch.full((len(hidden), V), torch.nan)

    with pytest.raises(
        NonFiniteError, match=r"head returned NaN.* at step 0 for chain \d, candidate"
    ):
        sample(fg.MaskedDiffusion(Body(), L, V, head=broken))
    with pytest.raises(
        NonFiniteError, match=r"denoiser returned NaN.* at step 0 for chain \d, candidate"
    ):
        sample(
            fg.MaskedDiffusion(
                lambda x, t: torch.full((len(x), L, 2), torch.nan), L, V, head=Head()
            )
        )


def test_a_row_for_each_site_must_be_given() -> None:
    x = torch.full((2, 3), V)
    with pytest.raises(ArgumentError, match=r"index \[R, L\] must say which row belongs"):
        ops.masked_posterior(torch.zeros(6, V), x, mask_token=V)
