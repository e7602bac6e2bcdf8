"""Rewards of several components: what they add up to, and how each is reported."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
from typing import Any

import exact
import numpy as np
import pytest
import tiny_task
import torch
from quarter_model import Denoiser, L, V

import fastguide as fg
from fastguide import report
from fastguide.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from fastguide.evaluation import savings
from fastguide.rewards import combine

X = torch.tensor(exact.CLEAN)


def ones(x: torch.Tensor) -> torch.Tensor:
    return x.sum(1)


def first(x: torch.Tensor) -> list[float]:
    return [float(row[0]) for row in x]


def both(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([ones(x).double(), exact.reward(x)], dim=1)


ONES, MAIN = ones(X).double(), exact.reward(X)


def close(found: torch.Tensor, due: torch.Tensor) -> None:
    torch.testing.assert_close(found, due, rtol=1e-14, atol=1e-14)


# -- what it adds up to ----------------------------------------------------------------------------


def test_weighted_sums() -> None:
    parts = {"ones": ones, "main": exact.reward}
    close(combine(parts)(X), ONES + MAIN)
    close(combine(parts, weights={"ones": -0.5})(X), MAIN - 0.5 * ONES)
    close(combine(parts, weights={"ones": 0, "main": 3})(X), 3 * MAIN)
    close(combine(both, names=["ones", "main"], weights={"ones": 2})(X), 2 * ONES + MAIN)
    close(combine({"first": first})(X), X[:, 0].double())


def test_a_threshold_is_a_price_on_what_is_missing() -> None:
    parts = {"ones": ones, "main": exact.reward}
    least = combine(parts, weights={"ones": 2}, thresholds={"ones": 1.5})
    close(least(X), MAIN - 2 * (1.5 - ONES).clamp_min(0))
    most = combine(parts, weights={"ones": -2}, thresholds={"ones": 1.5})
    close(most(X), MAIN - 2 * (ONES - 1.5).clamp_min(0))
    alone = combine({"ones": ones}, thresholds={"ones": 1})
    close(alone(X), (ONES - 1).clamp_max(0))


def test_rules_and_ensembles() -> None:
    parts = {"ones": ones, "main": exact.reward}
    close(
        combine(parts, rule=lambda c: torch.minimum(c["ones"], c["main"]))(X),
        torch.minimum(ONES, MAIN),
    )
    ensemble = [ones, exact.reward, first]
    members = torch.stack([ONES, MAIN, X[:, 0].double()], dim=1)
    for tau in (1e-6, 1 / 3, 0.5, 1.0):
        combined = combine(ensemble, tau=tau)
        assert combined.names == ("member_0", "member_1", "member_2")
        close(combined(X), fg.ops.soft_value(members, 0.0, kind="cvar", tau=tau))
    close(combine(ensemble, tau=1e-6)(X), members.amin(1))
    close(combine(ensemble, tau=1)(X), members.mean(1))
    # by hand: half of three members are the worst one and half of the next
    low, middle, _ = members.sort(dim=1).values.unbind(1)
    close(combine(ensemble, tau=0.5)(X), (low + 0.5 * middle) / 1.5)


def test_samplers_follow_the_combined_law() -> None:
    """What the engine sees is one number, so the law is that of any reward."""
    reward = combine(
        {"main": exact.reward, "ones": ones}, weights={"ones": -1.0}, thresholds={"ones": 1}
    )
    total = exact.REWARD - np.maximum(np.array(exact.CLEAN).sum(1) - 1, 0)
    sampler = fg.SMC(exact.diffusion(), reward, num_particles=64, alpha=2.0)
    result = sampler.sample(4000, num_steps=4, progress=False)
    law = exact.pretrained_law() * np.exp(total / 2.0)
    shares = torch.zeros(8, dtype=torch.float64)
    states = exact.clean_index(result.particles.flatten(0, 1))
    weights = (result.log_weights + result.log_z[:, None]).exp().flatten() / 4000
    shares.scatter_add_(0, states, weights)
    np.testing.assert_allclose(shares, law, rtol=0.02)


# -- what is reported ------------------------------------------------------------------------------


def svdd(reward: Any, **how: Any) -> fg.SVDD:
    return fg.SVDD(exact.diffusion(), reward, num_candidates=4, alpha=0.5, **how)


class Counter:
    """A reward that counts its rows."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.rows = 0

    def __call__(self, x: torch.Tensor) -> Any:
        self.rows += len(x)
        return self._function(x)


@pytest.mark.parametrize("kept", ["all", "none"])
def test_components_of_every_sample(kept: str, tmp_path: Any) -> None:
    counted, idle = Counter(exact.reward), Counter(ones)
    reward = combine({"main": counted, "ones": idle}, weights={"ones": 0})
    sampler = svdd(reward)
    result = sampler.sample(70, num_steps=4, progress=False, savings=kept)
    assert result.components is not None
    assert list(result.components) == ["main", "ones"]
    assert torch.equal(result.components["main"], exact.reward(result.samples).float())
    assert torch.equal(result.components["ones"], result.samples.sum(1).float())
    assert torch.equal(result.rewards, result.components["main"])
    # one row more for each distinct sample; what has no weight is looked at only there
    distinct = len(result.samples.unique(dim=0)) if kept == "all" else 70
    assert idle.rows == distinct
    assert result.cost.reward_rows == counted.rows
    assert result.cost.reward_rows == int(result.trace.reward_rows.sum()) + distinct
    assert result.cost.reward_rows <= sampler.plan(70, num_steps=4).reward_rows
    result.save(tmp_path)
    loaded = fg.Result.load(tmp_path)
    assert loaded.components is not None
    assert loaded.components.keys() == result.components.keys()
    for name, part in result.components.items():
        assert torch.equal(loaded.components[name], part)


def test_other_rewards_have_none(tmp_path: Any) -> None:
    result = svdd(exact.reward).sample(3, num_steps=2, progress=False)
    assert result.components is None
    result.save(tmp_path)
    assert fg.Result.load(tmp_path).components is None
    empty = svdd(combine({"ones": ones})).sample(0, num_steps=2, progress=False)
    assert empty.components is None


def test_shards_checkpoints_and_stops(tmp_path: Any) -> None:
    reward = combine({"main": exact.reward, "ones": ones})
    whole = svdd(reward).sample(150, num_steps=4, progress=False)
    kept = svdd(reward).sample(150, num_steps=4, progress=False, checkpoint=tmp_path)
    again = svdd(reward).sample(150, num_steps=4, progress=False, checkpoint=tmp_path)
    # stopped right after a shard's last step: its components are still to be looked at
    moves = iter(range(100))
    stopped = svdd(reward).sample(
        150, num_steps=4, progress=False, callback=lambda step, state: next(moves) < 4
    )
    assert len(stopped) == 64
    for result in (kept, again, stopped):
        for name, part in result.components.items():
            assert torch.equal(part, whole.components[name][: len(result)])


def test_refinement_reports_what_it_holds() -> None:
    reward = combine({"main": exact.reward, "ones": ones}, weights={"ones": 0.1})
    search = fg.IterativeRefinement(svdd(reward), fraction=0.5, num_rounds=4)
    for result in search.sample(20, num_steps=3, progress=False):
        close(result.components["ones"], result.samples.sum(1).float())
        close(result.components["main"], exact.reward(result.samples).float())


def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "RESIDENT_DEVICES", {"cpu", "cuda"})
    reward = combine({"twos": lambda x: (x == 2).double().mean(1), "ones": lambda x: x.sum(1)})
    sampler = fg.SVDD(fg.MaskedDiffusion(Denoiser(), L, V), reward, num_candidates=3, alpha=5.0)
    assert sampler.start(1, num_steps=3).resident
    result = sampler.sample(9, num_steps=5, progress=False)
    close(result.components["ones"], result.samples.sum(1).float())


def test_limits_and_conditioning() -> None:
    def near(x: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        assert len(x) <= 5
        return -(x.sum(1) - goal).abs()

    near.needs_cond = True  # type: ignore[attr-defined]

    def denoiser(x: torch.Tensor, t: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return exact.denoiser(x, t)

    reward = combine({"near": near, "main": exact.reward}, weights={"main": 0.1})
    assert reward.needs_cond
    sampler = fg.SVDD(fg.MaskedDiffusion(denoiser, 3, 2), reward, num_candidates=6, alpha=0.1)
    goal = torch.arange(12) % 4 * 1.0
    result = sampler.sample(12, num_steps=4, progress=False, cond={"goal": goal}, max_rows=5)
    close(result.components["near"], -(result.samples.sum(1) - goal).abs().float())


def test_networks_among_the_components_run_in_eval_mode() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return x.sum(1)

    net = Net()
    reward = combine({"net": net, "main": exact.reward})
    moves = iter(range(100))
    svdd(reward).sample(
        70, num_steps=4, progress=False, callback=lambda step, state: next(moves) < 4
    )
    assert net.training
    # a value may have a network of its own
    value = fg.values.PosteriorMean(net)
    svdd(exact.reward, value=value).sample(3, num_steps=4, progress=False)


def test_soft_gradients_pickles_and_memory() -> None:
    class Soft:
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return ones(x)

        def soft(self, probs: torch.Tensor) -> torch.Tensor:
            return probs[..., 1].sum(1)

    reward = combine({"a": Soft(), "b": Soft()}, weights={"a": 2, "b": -1}, thresholds={"b": 1})
    probs = torch.rand(4, 3, 2, dtype=torch.float64, requires_grad=True)
    total = probs[..., 1].sum(1)
    close(reward.soft(probs), 2 * total + (1 - total).clamp_max(0))
    (gradient,) = torch.autograd.grad(reward.soft(probs).sum(), probs)
    slope = 2 - (total > 1).double()
    close(gradient[..., 1], slope[:, None].expand(4, 3))
    ensemble = combine([Soft(), lambda x: x, Soft()])
    assert not hasattr(ensemble, "soft")
    svdd(reward, value=fg.values.PosteriorMean(reward, "soft")).sample(
        5, num_steps=3, progress=False
    )
    y = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    parts = {"sum": lambda x: x.sum(1), "max": lambda x: x.amax(1)}
    (gradient,) = torch.autograd.grad(combine(parts, tau=0.5)(y).sum(), y)
    assert bool(gradient.isfinite().all())
    again = pickle.loads(pickle.dumps(combine({"ones": ones, "main": exact.reward})))
    close(again(X), ONES + MAIN)
    remembered = fg.rewards.cached(combine({"ones": ones, "main": exact.reward}))
    close(remembered(X), ONES + MAIN)
    result = svdd(remembered).sample(4, num_steps=3, progress=False)
    assert list(result.components) == ["ones", "main"]


def test_reports_show_the_components(tmp_path: Any) -> None:
    task = tiny_task.task()
    parts = {"load": task.reward, "short, sweet": ones}
    task = dataclasses.replace(task, reward=combine(parts, weights={"short, sweet": 0.01}))
    settings = report.Settings(
        alphas=(0.5,), num_samples=4, num_candidates=2, num_steps=3, num_reference=8, num_masks=2
    )
    made = report.compare(task, settings, progress=False)
    report.write(made, tmp_path)
    (svdd_record,) = (
        one
        for one in json.loads((tmp_path / "summary.json").read_text())["methods"]
        if one["key"].startswith("svdd")
    )
    (designs,) = (one for one in made.designs if one.key.startswith("svdd"))
    part = designs.result.components["load"]
    assert svdd_record["components"]["load"]["mean"] == pytest.approx(float(part.mean()))
    with (tmp_path / "designs.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    found = [float(line["short, sweet"]) for line in lines if line["method"] == designs.key]
    assert found == designs.result.components["short, sweet"].tolist()
    assert "short, sweet" in (tmp_path / "report.html").read_text()
    text = report.designs_text(task.name, designs)
    assert f"{float(part.mean()):.2f} ±" in next(t for t in text.splitlines() if "  load" in t)
    assert "load" in report.summary_text(made)
    pytest.importorskip("matplotlib")
    figure = report.plot(designs.result)
    assert any("load" in axes.get_title(loc="left") for axes in figure.axes)


# -- bad input -------------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    parts = {"ones": ones, "main": exact.reward}
    for how, text in (
        ({"weights": {"one": 1}}, r"weights names 'one', which is no component; there are 'ones'"),
        ({"thresholds": {"x": 1}}, r"thresholds names 'x', which is no component"),
        ({"weights": {"ones": float("nan")}}, r"weights\['ones'\] must be finite, got nan"),
        ({"weights": {"ones": 0}, "thresholds": {"ones": 1}}, "threshold of 'ones' does nothing"),
        ({"weights": {"ones": 0, "main": 0}}, "all weights are 0"),
        ({"weights": {"ones": 1}, "tau": 0.5}, "give one of the three"),
        ({"rule": sum, "tau": 0.5}, "give one of the three"),
        ({"tau": 0.0}, r"tau must be a share in \(0, 1\]"),
        ({"names": ["a", "b"]}, "names= belongs to a single reward"),
    ):
        with pytest.raises(ArgumentError, match=text):
            combine(parts, **how)
    with pytest.raises(ArgumentError, match="needs names=, one for each"):
        combine(both)
    with pytest.raises(ArgumentError, match="names must differ from one another"):
        combine(both, names=["a", "a"])
    with pytest.raises(ArgumentError, match="there must be at least one reward"):
        combine({})
    with pytest.raises(DtypeError, match="component 'ones' must be callable, got int"):
        combine({"ones": 3})
    with pytest.raises(DtypeError, match="names must be non-empty strings, got 3"):
        combine({3: ones})
    with pytest.raises(DtypeError, match=r"rewards must be .*, got int"):
        combine(3)
    with pytest.raises(DtypeError, match="rule must be callable, got str"):
        combine(parts, rule="min")
    with pytest.raises(DtypeError, match="weights must be a dict from names to numbers, got list"):
        combine(parts, weights=[1, 2])


def test_wrong_returns_name_the_component() -> None:
    for function, error, text in (
        (lambda x: x, ShapeError, r"component 'bad' must return \[8\], got \[8, 3\]"),
        (lambda x: x[:, :1] * 1.0, ShapeError, r"got \[8, 1\]; drop .* with .squeeze\(-1\)"),
        (lambda x: x[:, 0] == 1, DtypeError, "component 'bad' must return real numbers"),
        (lambda x: "seven", DtypeError, r"component 'bad' must return numbers \[8\].*got str"),
    ):
        with pytest.raises(error, match=text):
            combine({"good": ones, "bad": function})(X)
    with pytest.raises(ShapeError, match=r"the reward of 3 names must return \[8, 3\], got \[8, 2"):
        combine(both, names=["a", "b", "c"])(X)
    with pytest.raises(ShapeError, match=r"rule must return \[8\], got \[\]"):
        combine({"a": ones}, rule=lambda c: c["a"].sum())(X)


def sometimes(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x[:, 0] == 1, torch.nan, 0.0)


def test_a_component_that_is_not_finite_is_named() -> None:
    reward = combine({"main": exact.reward, "folding": sometimes})
    text = r"reward component 'folding' returned nan at step \d for chain \d+, candidate \d"
    with pytest.raises(NonFiniteError, match=text):
        svdd(reward).sample(50, num_steps=4, progress=False)
    wall = combine(
        {"main": exact.reward, "ones": ones},
        rule=lambda c: torch.where(c["ones"] < 2, c["main"], -torch.inf),
    )
    with pytest.raises(NonFiniteError, match="reward returned -inf at step"):
        svdd(wall).sample(50, num_steps=4, progress=False)


def test_a_wall_by_rejection() -> None:
    """A rule of -inf with on_invalid="reject" has the law that is cut off there."""
    wall = combine(
        {"main": exact.reward, "ones": ones},
        rule=lambda c: torch.where(c["ones"] < 3, c["main"], -torch.inf),
    )
    sampler = fg.SMC(exact.diffusion(), wall, num_particles=64, alpha=2.0, on_invalid="reject")
    result = sampler.sample(3000, num_steps=4, progress=False)
    law = exact.pretrained_law() * np.exp(exact.REWARD / 2.0)
    law[-1] = 0
    assert exact.counts_of(result.samples)[-1] == 0
    assert exact.chi_square_p(exact.counts_of(result.samples), law / law.sum()) > 1e-6
