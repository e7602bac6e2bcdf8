"""A run resumes bit for bit, accumulates, and counts what it draws."""

from __future__ import annotations

import json

import pytest
import torch
from exact_chains import ALPHA, G1, LENGTH, M1, StateValue, law_of_g1, quadratic, reward
from torch import nn
from tuning_case import QUIET, assert_equal, count_of_threes, parameters, sequences

import fastguide as fg
from fastguide import finetune
from fastguide.checkpoint import digest
from fastguide.errors import (
    ArgumentError,
    CheckpointError,
    NonFiniteError,
)
from fastguide.finetune import linear


def stop_after(rows):
    return lambda row: row["iteration"] + 1 < rows


RUNS = {
    "ppo": (
        lambda: finetune.PPO(
            sequences(),
            count_of_threes,
            alpha=1.0,
            adapter="lora",
            rank=2,
            epochs=2,
            minibatches=3,
            baseline="running",
            ema=0.9,
            learning_rate=linear(0.01, 0.001),
        ),
        4,
    ),
    "replay": (
        lambda: finetune.PathConsistency(
            M1(),
            reward,
            alpha=ALPHA,
            objective="one_step",
            value=StateValue(),
            replay=2,
            adapter="full",
        ),
        LENGTH,
    ),
    "rounds": (
        lambda: finetune.RewardWeightedMLE(
            sequences(), count_of_threes, alpha=2.0, rounds=3, form="denoise", adapter="full"
        ),
        4,
    ),
    "scale": (
        lambda: finetune.PPO(
            G1(), quadratic, alpha=ALPHA, learn_scale=True, adapter="full", learning_rate=0.01
        ),
        10,
    ),
}


@pytest.mark.parametrize("name", list(RUNS))
def test_resumed_run_is_the_run(name, tmp_path):
    make, num_steps = RUNS[name]
    whole = make()
    history = whole.train(7, 12, num_steps=num_steps, seed=3, **QUIET)
    how = dict(num_steps=num_steps, seed=3, checkpoint=tmp_path, **QUIET)
    stopped = make().train(7, 12, callback=stop_after(4), **how)
    assert stopped.stopped == "callback"
    resumed = make()
    again = resumed.train(7, 12, **how)
    assert_equal(parameters(resumed), parameters(whole))
    for name in ("reward", "kl", "loss"):
        if any(name in row for row in history.rows):
            assert torch.equal(history.column(name), again.column(name))
    assert torch.equal(again.column("iteration"), torch.arange(7.0).double())
    for clock in ("seconds", "cpu_seconds"):
        assert bool((again.column(clock).diff() >= 0).all())
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(7))
    if name == "scale":
        assert resumed.diffusion.steps(10)[0].params == whole.diffusion.steps(10)[0].params


@pytest.mark.parametrize("name", list(RUNS))
def test_trained_again_with_other_steps(name):
    """A second training, of another length, starts from the parameters and keeps nothing else."""
    make, num_steps = RUNS[name]
    tuner = make()
    tuner.train(4, 12, num_steps=num_steps, **QUIET)
    if name != "scale" and num_steps != LENGTH:
        num_steps += 1
    history = tuner.train(1, 8, num_steps=num_steps, **QUIET)
    assert len(history.rows) == 1
    if name == "rounds":
        assert tuner.rounds.sampler(0.0) is tuner.reference


def test_interrupted_run_goes_on_from_its_last_state(tmp_path, monkeypatch):
    """Whatever an interrupted iteration has changed is forgotten."""
    monkeypatch.setattr(finetune.method, "SAVE_EVERY_SECONDS", -1.0)
    make, num_steps = RUNS["ppo"]
    whole = make()
    whole.train(6, 12, num_steps=num_steps, **QUIET)

    def interrupt(row):
        if row["iteration"] == 3:
            raise KeyboardInterrupt

    how = dict(num_steps=num_steps, checkpoint=tmp_path, **QUIET)
    with pytest.raises(KeyboardInterrupt):
        make().train(6, 12, callback=interrupt, **how)
    resumed = make()
    resumed.train(6, 12, **how)
    assert_equal(parameters(resumed), parameters(whole))


def test_a_run_that_breaks_keeps_its_last_good_state(tmp_path, monkeypatch):
    """From the fourth iteration on, gradients are NaN: parameters and folder stay as they were."""
    monkeypatch.setattr(finetune.method, "SAVE_EVERY_SECONDS", -1.0)
    how = dict(num_steps=3, **QUIET)

    class Breaking:
        broken = False

        def __call__(self, x):
            return count_of_threes(x)

        def soft(self, probs):
            reward = count_of_threes.soft(probs)
            return reward + (probs[:, 0, 0] * 0).sqrt() if self.broken else reward

    reward = Breaking()

    def make():
        return finetune.RewardBackprop(sequences(), reward, alpha=1.0, ema=0.9, rank=2)

    def from_the_fourth(row):
        reward.broken = row["iteration"] >= 2

    good, broken, mended = make(), make(), make()
    good.train(3, 8, **how)
    with pytest.raises(NonFiniteError, match="5 updates in a row"):
        broken.train(20, 8, checkpoint=tmp_path, callback=from_the_fourth, **how)
    assert_equal(parameters(broken), parameters(good))
    assert_equal(broken._network.state_dict(), good._network.state_dict())
    reward.broken = False
    history = mended.train(8, 8, checkpoint=tmp_path, **how)
    assert history.column("skipped").tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    assert digest(mended._network) != digest(good._network)


def test_checkpoint_of_another_run_is_refused(tmp_path):
    make, num_steps = RUNS["ppo"]
    make().train(2, 4, num_steps=num_steps, checkpoint=tmp_path, **QUIET)
    with pytest.raises(CheckpointError, match="it differs in seed"):
        make().train(2, 4, num_steps=num_steps, seed=1, checkpoint=tmp_path, **QUIET)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2
    fresh = make()
    history = fresh.train(
        2, 4, num_steps=num_steps, seed=1, checkpoint=tmp_path, resume=False, **QUIET
    )
    assert len(history.rows) == 2
    (file,) = tmp_path.glob("training-*.pt")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="changed or cut short"):
        make().train(2, 4, num_steps=num_steps, seed=1, checkpoint=tmp_path, **QUIET)


METHODS = {
    "ppo": (finetune.PPO, {}),
    "backprop": (finetune.RewardBackprop, {}),
    "backprop, checkpointing": (
        finetune.RewardBackprop,
        dict(checkpointing=True, truncation="random_step"),
    ),
    "likelihood": (finetune.RewardWeightedMLE, dict(form="denoise")),
    "value weighted": (finetune.ValueWeighted, dict(num_candidates=3)),
    "vargrad": (finetune.PathConsistency, {}),
    "tb": (finetune.PathConsistency, dict(objective="tb")),
    "forward process": (finetune.ForwardProcess, dict(rounds=2)),
}


@pytest.mark.parametrize("name", list(METHODS))
def test_accumulated_gradients_are_the_gradients(name):
    """Parts of at most 16 rows give what one part gives."""
    method, options = METHODS[name]
    tuned = []
    for max_rows in (None, 16):
        tuner = method(
            sequences(),
            count_of_threes,
            alpha=1.0,
            adapter="full",
            learning_rate=1e-3,
            max_rows=max_rows,
            **options,
        )
        tuner.train(3, 16, num_steps=3, **QUIET)
        tuned.append(parameters(tuner))
    moved = digest(tuned[0]) != digest(sequences().denoiser.state_dict())
    assert moved
    for name in tuned[0]:
        torch.testing.assert_close(tuned[0][name], tuned[1][name], rtol=0, atol=1e-6)


def test_minibatches_read_every_row_once():
    chains = torch.arange(6)
    numbers = finetune.parts.minibatch_numbers(5, 0, chains, 8, 4, whole_paths=False)
    assert numbers.flatten().bincount().tolist() == [12] * 4
    assert all(row.bincount().tolist() == [2] * 4 for row in numbers)
    # the assignment of a chain does not depend on which others there are
    alone = finetune.parts.minibatch_numbers(5, 0, chains[3:4], 8, 4, whole_paths=False)
    assert torch.equal(alone[0], numbers[3])
    assert not torch.equal(
        numbers, finetune.parts.minibatch_numbers(5, 1, chains, 8, 4, whole_paths=False)
    )


def test_a_fraction_of_the_steps_stands_for_all():
    """Each step is read as often as the others, by as many of the minibatches."""
    chains = torch.arange(4000)
    numbers = finetune.parts.minibatch_numbers(5, 0, chains, 8, 2, whole_paths=False, kept=4)
    read = numbers >= 0
    assert read.sum(dim=1).unique().tolist() == [4]
    assert numbers[read].bincount().tolist() == [8000, 8000]
    # binomial, 4000 chains
    assert (read.double().mean(dim=0) - 0.5).abs().max() < 5 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("method", [finetune.PPO, finetune.AdjointMatching])
def test_half_of_the_steps_train_to_the_same_optimum(method):
    rows = []
    tuner = method(
        G1(),
        quadratic,
        alpha=ALPHA,
        adapter="full",
        timestep_fraction=0.5,
        max_grad_norm=None,
        ema=0.97,
        learning_rate=linear(0.05, 1e-3),
    )
    tuner._network.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    tuner.train(1, 32, num_steps=10, **QUIET)
    # ten steps of a rollout, and five of each path in the update
    assert sum(rows) == 32 * 10 + 32 * 5
    tuner.train(150, 512, num_steps=10, **QUIET)
    mean, var, _ = law_of_g1(tuner.diffusion)
    assert (mean, var) == pytest.approx((1.16667, 0.37418), abs=0.05)


def test_fraction_of_the_steps_is_refused_where_paths_are_whole():
    with pytest.raises(ArgumentError, match=r"timestep_fraction must be a share in \(0, 1\]"):
        finetune.PPO(sequences(), count_of_threes, alpha=1.0, timestep_fraction=0.0)
    tuner = finetune.PathConsistency(sequences(), count_of_threes, alpha=1.0, timestep_fraction=0.5)
    with pytest.raises(ArgumentError, match="timestep_fraction must be 1 for PathConsistency"):
        tuner.train(1, 4, num_steps=4, **QUIET)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_ratio_is_one_before_the_first_update(adapter):
    tuner = finetune.PPO(sequences(), count_of_threes, alpha=1.0, adapter=adapter)
    history = tuner.train(1, 16, num_steps=4, **QUIET)
    assert history.rows[0]["ratio_drift"] < 1e-4
    assert history.rows[0]["kl"] == 0
    assert history.rows[0]["clip_fraction"] == 0


def test_a_denoiser_with_noise_of_its_own_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, x, t):
            return torch.randn(*x.shape, 4) + self.bias

    tuner = finetune.PPO(
        fg.MaskedDiffusion(Noisy(), 8, 4), count_of_threes, alpha=1.0, adapter="full"
    )
    with pytest.raises(ArgumentError, match="before the first update"):
        tuner.train(1, 16, num_steps=4, **QUIET)


def test_prompt_and_conditioning():
    """Given sites stay, and each chain sees its own condition."""

    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 4)

        def forward(self, x, t, y):
            return self.net(y[:, None, None].double()).expand(-1, x.shape[1], -1)

    diffusion = fg.MaskedDiffusion(Conditioned().double(), 8, 4)
    prompt = torch.full((8,), 4)
    prompt[2] = 1
    kept = []

    def watched(x):
        kept.append(x[:, 2])
        return torch.where(torch.arange(16) < 8, 1, -1) * count_of_threes(x)

    y = torch.where(torch.arange(16) < 8, 1.0, -1.0)
    tuner = finetune.PPO(
        diffusion, watched, alpha=0.1, adapter="full", learning_rate=0.05, group_size=8
    )
    tuner.train(60, 16, num_steps=3, prompt=prompt, cond={"y": y}, **QUIET)
    assert all(bool((rows == 1).all()) for rows in kept)
    result = fg.Unguided(tuner.diffusion).sample(16, num_steps=3, cond={"y": y}, progress=False)
    count = count_of_threes(result.samples)
    assert count[:8].mean() > count[8:].mean() + 3
    with pytest.raises(ArgumentError, match="batch_size=4 rows"):
        tuner.train(1, 4, num_steps=3, cond={"y": y}, **QUIET)
