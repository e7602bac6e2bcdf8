"""What is PPO's own: baselines for each prompt, and the likelihood of one call."""

from __future__ import annotations

import pytest
import torch
from exact_chains import G1, quadratic
from torch import nn
from tuning_case import QUIET, assert_equal, count_of_threes, parameters, sequences

import fastguide as fg
from fastguide import finetune
from fastguide.errors import ArgumentError
from fastguide.finetune.baseline import RunningMeans, row_keys

MASK = 4


def two_prompts(size):
    """Half of the paths are given four threes, the others four zeros."""
    prompt = torch.full((size, 8), MASK)
    prompt[: size // 2, :4], prompt[size // 2 :, :4] = 3, 0
    return prompt


def levels(x):
    return 25.0 * count_of_threes(x)


def test_running_baseline_is_one_of_each_prompt():
    """Two prompts a hundred units of reward apart: the advantages of each are centred."""
    prompt = two_prompts(64)
    found = []

    class Watched(finetune.PPO):
        def collect(self, *given):
            buffer = super().collect(*given)
            found.append((buffer.reward, buffer.extra["advantage"][:, 0]))
            return buffer

    tuner = Watched(
        sequences(), levels, alpha=1e-3, adapter="full", learning_rate=1e-6, baseline="running"
    )
    tuner.train(5, 64, num_steps=3, prompt=prompt, **QUIET)
    assert len(tuner.memory()["running"]) == 2
    running = {}
    for reward, advantage in found:
        for half in (slice(None, 32), slice(32, None)):
            mean = reward[half].mean()
            before = running.get(half.start, mean)
            torch.testing.assert_close(advantage[half], reward[half] - before)
            running[half.start] = 0.9 * before + 0.1 * mean
    apart = found[0][0][:32].mean() - found[0][0][32:].mean()
    assert float(apart) > 50
    assert float(found[0][1][:32].mean().abs()) < 1e-9


def test_running_means_keep_what_they_saw():
    """A kind that stays away keeps its mean, and a mean moves a tenth of the way."""
    means = RunningMeans()
    kinds = {"y": torch.tensor([1.0, 2.0, 1.0])}
    first = means.before(torch.tensor([[1.0], [10.0], [3.0]], dtype=torch.float64), kinds)
    assert first[:, 0].tolist() == [2, 10, 2]
    again = RunningMeans(means.means)
    some = {"y": torch.tensor([1.0, 1.0])}
    assert again.before(torch.full((2, 1), 12.0).double(), some)[:, 0].tolist() == [2, 2]
    third = RunningMeans(again.means).before(torch.zeros(3, 1).double(), kinds)
    torch.testing.assert_close(third[:, 0], torch.tensor([3.0, 10.0, 3.0]).double())


def test_keys_do_not_depend_on_the_run():
    """They name prompt and condition of the row alone; these are of one run, for all others."""
    rows = {"prompt": two_prompts(4), "y": torch.tensor([0.5, 0.5, 0.5, 1.5])}
    keys = row_keys(rows, 4)
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 3
    assert torch.equal(row_keys({name: value[2:] for name, value in rows.items()}, 2), keys[2:])
    assert row_keys({}, 3).unique().numel() == 1
    assert row_keys({"y": torch.tensor([0.5])}, 1).tolist() == [964377676838328013]


def test_running_means_are_of_all_processes(monkeypatch):
    """Each process gets the baselines of its own rows, from the rows of both."""
    returns = [torch.tensor([[1.0], [10.0]]), torch.tensor([[3.0], [5.0]])]
    kinds = [{"y": torch.tensor([1.0, 2.0])}, {"y": torch.tensor([1.0, 3.0])}]
    rows = [torch.cat([row_keys(kind, 2) for kind in kinds]), torch.cat(returns)]
    due = [[2, 10], [2, 5]]
    for rank in range(2):
        both = iter(rows)
        monkeypatch.setattr(finetune.parallel, "gathered", lambda own, both=both: next(both))
        means = RunningMeans()
        assert means.before(returns[rank], kinds[rank])[:, 0].tolist() == due[rank]
        assert sorted(mean.item() for mean in means.means.values()) == [2, 5, 10]


def test_running_baseline_is_resumed(tmp_path):
    def make():
        return finetune.PPO(
            sequences(), levels, alpha=1.0, adapter="full", learning_rate=0.01, baseline="running"
        )

    how = dict(num_steps=3, prompt=two_prompts(16), **QUIET)
    whole = make()
    whole.train(5, 16, **how)
    make().train(5, 16, checkpoint=tmp_path, callback=lambda row: row["iteration"] < 2, **how)
    resumed = make()
    resumed.train(5, 16, checkpoint=tmp_path, **how)
    assert_equal(parameters(resumed), parameters(whole))
    assert resumed.memory()["running"].keys() == whole.memory()["running"].keys()


class Sites(nn.Module):
    """Logits of a site, the state's visible threes included: sees a prompt."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(8, 4).double())
        self.seen = nn.Parameter(torch.zeros(4).double())
        self.rows = 0

    def forward(self, x, t):
        if torch.is_grad_enabled():
            self.rows += len(x)
        visible = (x == 3).sum(dim=1).double()
        return self.bias + visible[:, None, None] * self.seen


def test_one_step_likelihood_reads_the_initial_state():
    """One row a path carries the gradient, with the prompt in sight; given tokens count nothing."""
    prompt = two_prompts(32)
    tuner = finetune.PPO(
        fg.MaskedDiffusion(Sites(), 8, 4),
        count_of_threes,
        alpha=0.5,
        adapter="full",
        likelihood="one_step",
    )
    history = tuner.train(1, 32, num_steps=5, prompt=prompt, **QUIET)
    assert tuner._network.rows == 32
    assert history.rows[0]["ratio_drift"] < 1e-9
    bias, seen = tuner._network.bias.grad, tuner._network.seen.grad
    assert bool((bias[:4] == 0).all())
    assert bool((bias[4:] != 0).any())
    assert float(seen.abs().max()) > 0


def test_one_step_gradient():
    """Before the first update it is that of the score function on uniform, independent sites."""
    tuner = finetune.PPO(
        fg.MaskedDiffusion(Sites(), 8, 4),
        count_of_threes,
        alpha=0.5,
        adapter="full",
        likelihood="one_step",
        max_grad_norm=None,
    )
    found = []
    collect = tuner.collect
    tuner.collect = lambda *given: found.append(collect(*given)) or found[-1]
    tuner.train(1, 200, num_steps=5, **QUIET)
    (buffer,) = found
    advantage = buffer.reward - buffer.reward.mean()
    drawn = nn.functional.one_hot(buffer.samples, 4) - 0.25
    expected = -(advantage[:, None, None] * drawn).mean(dim=0)
    torch.testing.assert_close(tuner._network.bias.grad, expected, rtol=1e-9, atol=1e-12)


def test_one_step_updates_within_an_epoch():
    """Ratios are of the tokens, clipped one by one, in every minibatch and part."""
    tuned = []
    for max_rows in (None, 20):
        tuner = finetune.PPO(
            sequences(),
            count_of_threes,
            alpha=0.1,
            adapter="full",
            likelihood="one_step",
            learning_rate=0.05,
            epochs=3,
            minibatches=2,
            max_rows=max_rows,
        )
        history = tuner.train(2, 32, num_steps=4, **QUIET)
        tuned.append(parameters(tuner))
        row = history.rows[-1]
        assert 0 < row["clip_fraction"] < 1
        assert row["ratio_drift"] > 1e-3
    for name in tuned[0]:
        torch.testing.assert_close(tuned[0][name], tuned[1][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: (G1(), quadratic), dict(likelihood="one_step"), "masked chains; .* for G1"),
        (lambda: (sequences(), levels), dict(likelihood="elbo"), "got 'elbo'"),
        (
            lambda: (sequences(), levels),
            dict(likelihood="one_step", local_kl=True),
            "local_kl has no meaning",
        ),
    ],
)
def test_refusals(make, options, message):
    with pytest.raises(ArgumentError, match=message):
        finetune.PPO(*make(), alpha=1.0, adapter="full", **options)
