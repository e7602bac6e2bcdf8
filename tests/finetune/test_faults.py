"""Training stops when it should, and refuses what cannot work."""

from __future__ import annotations

import pytest
import torch
from exact_chains import M1, quadratic, reward
from tuning_case import QUIET, assert_equal, count_of_threes, parameters, sequences

import fastguide as fg
from fastguide import finetune
from fastguide.errors import (
    ArgumentError,
    DtypeError,
    GradientError,
    NonFiniteError,
    ShapeError,
)


def test_kl_budget_stops():
    tuner = finetune.PPO(
        sequences(), count_of_threes, alpha=0.01, learning_rate=0.05, adapter="full", kl_budget=1.0
    )
    history = tuner.train(60, 32, num_steps=4, **QUIET)
    assert history.stopped == "kl_budget"
    kl = history.column("kl")
    assert kl[-1] > 1.0
    assert bool((kl[:-1] <= 1.0).all())


def test_a_limit_that_was_met_stays_met(tmp_path):
    def tuner(budget):
        return finetune.PPO(
            sequences(),
            count_of_threes,
            alpha=0.01,
            learning_rate=0.05,
            adapter="full",
            kl_budget=budget,
        )

    folder = {"checkpoint": tmp_path, "num_steps": 4, **QUIET}
    first = tuner(1.0).train(60, 32, **folder)
    again = tuner(1.0).train(60, 32, **folder)
    assert (again.stopped, again.rows) == ("kl_budget", first.rows)
    more = tuner(1e9).train(len(first.rows) + 1, 32, **folder)
    assert len(more.rows) == len(first.rows) + 1


@pytest.mark.parametrize("method", [finetune.RewardWeightedMLE, finetune.ForwardProcess])
def test_a_budget_that_nobody_would_watch_is_refused(method):
    with pytest.raises(ArgumentError, match=r"kl_budget: .* knows no KL"):
        method(sequences(), count_of_threes, alpha=1.0, kl_budget=1.0)


def test_held_out_reward_stops():
    tuner = finetune.PPO(
        sequences(),
        count_of_threes,
        alpha=0.1,
        learning_rate=0.05,
        adapter="full",
        held_out=lambda x: -count_of_threes(x),
        patience=4,
    )
    history = tuner.train(60, 64, num_steps=4, **QUIET)
    assert history.stopped == "held_out"
    assert len(history.rows) < 20


def test_time_stops():
    tuner = finetune.PPO(sequences(), count_of_threes, alpha=1.0)
    history = tuner.train(1000, 8, num_steps=3, max_seconds=0, **QUIET)
    assert history.stopped == "max_seconds"
    assert len(history.rows) == 1


def test_invalid_rewards():
    def broken(x):
        return count_of_threes(x).masked_fill(x[:, 0] == 3, float("nan"))

    tuner = finetune.PPO(sequences(), broken, alpha=1.0)
    with pytest.raises(NonFiniteError, match="on_invalid='reject'"):
        tuner.train(1, 64, num_steps=3, **QUIET)
    tuner = finetune.PPO(
        sequences(), broken, alpha=0.2, adapter="full", learning_rate=0.05, on_invalid="reject"
    )
    tuner.train(30, 64, num_steps=3, **QUIET)
    result = fg.Unguided(tuner.diffusion).sample(64, num_steps=3, progress=False)
    natural = fg.Unguided(sequences()).sample(64, num_steps=3, progress=False)
    # what is invalid is avoided, and the rest is still preferred
    assert (result.samples[:, 0] == 3).sum() < (natural.samples[:, 0] == 3).sum()
    assert (result.samples[:, 1:] == 3).sum() > (natural.samples[:, 1:] == 3).sum()
    with pytest.raises(ShapeError, match="one number per sample"):
        finetune.PPO(sequences(), lambda x: x, alpha=1.0).train(1, 4, num_steps=3, **QUIET)


def test_gradients_that_are_not_finite_change_nothing():
    class Broken:
        def __call__(self, x):
            return count_of_threes(x)

        def soft(self, probs):
            return probs[..., 3].sum(dim=1) + (probs[:, 0, 0] * 0).sqrt()

    tuner = finetune.RewardBackprop(sequences(), Broken(), alpha=1.0, adapter="full")
    before = parameters(tuner)
    with pytest.raises(NonFiniteError, match="5 updates in a row"):
        tuner.train(10, 8, num_steps=3, **QUIET)
    assert_equal(parameters(tuner), before)


def test_weights_on_too_few_paths_are_refused():
    tuner = finetune.RewardWeightedMLE(sequences(), count_of_threes, alpha=0.01)
    with pytest.raises(ArgumentError, match=r"rest on \d\.\d of 256 paths"):
        tuner.train(1, 256, num_steps=3, **QUIET)


def test_arguments():
    diffusion = sequences()
    for error, match, make in (
        (ArgumentError, "alpha", lambda: finetune.PPO(diffusion, count_of_threes, alpha=0)),
        (ArgumentError, "adapter", lambda: ppo(adapter="none")),
        (ArgumentError, "rank", lambda: ppo(rank=0)),
        (ArgumentError, "learn_scale", lambda: ppo(learn_scale=True)),
        (ArgumentError, "minibatches", lambda: ppo(minibatches=0)),
        (ArgumentError, "clip", lambda: ppo(clip=0)),
        (TypeError, "unknown", lambda: ppo(unknown=1)),
        (DtypeError, "nn.Module", lambda: finetune.PPO(no_module(), count_of_threes, alpha=1.0)),
        (DtypeError, "Gaussian", lambda: finetune.AdjointMatching(diffusion, quadratic, alpha=1)),
        (GradientError, "soft", lambda: finetune.RewardBackprop(diffusion, len, alpha=1.0)),
        (ArgumentError, "truncation", lambda: backprop(truncation=0)),
        (ArgumentError, "value", lambda: pcl(objective="subtb")),
        (ArgumentError, "no layer|has none", lambda: finetune.PPO(M1(), reward, alpha=1.0)),
    ):
        with pytest.raises(error, match=match):
            make()


def ppo(**options):
    return finetune.PPO(sequences(), count_of_threes, alpha=1.0, **options)


def backprop(**options):
    return finetune.RewardBackprop(sequences(), count_of_threes, alpha=1.0, **options)


def pcl(**options):
    return finetune.PathConsistency(sequences(), count_of_threes, alpha=1.0, **options)


def no_module():
    return fg.MaskedDiffusion(lambda x, t: torch.zeros(*x.shape, 4), 8, 4)
