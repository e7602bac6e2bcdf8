"""A remembered reward is called once per distinct sample, and gives every row its own score."""

from __future__ import annotations

import pickle

import exact
import numpy as np
import per_sample
import pytest
import torch

import fastguide as fg
from fastguide import rewards
from fastguide.errors import ArgumentError, DtypeError, ShapeError


class Recorder:
    """Sum of the tokens with growing weights; keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, samples):
        self.calls.append(samples.tolist())
        return (samples * torch.arange(1.0, 1 + samples.shape[1])).sum(dim=1)


def test_only_unknown_distinct_rows_are_passed_on():
    recorder = Recorder()
    reward = rewards.cached(recorder)
    first = torch.tensor([[1, 0], [0, 2], [1, 0], [0, 0]])
    assert reward(first).tolist() == [1.0, 4.0, 1.0, 0.0]
    second = torch.tensor([[3, 3], [0, 2], [0, 0], [3, 3], [0, 1]])
    assert reward(second).tolist() == [9.0, 4.0, 0.0, 9.0, 2.0]
    assert reward(first).tolist() == [1.0, 4.0, 1.0, 0.0]
    assert recorder.calls == [[[1, 0], [0, 2], [0, 0]], [[3, 3], [0, 1]]]


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, np.int16])
def test_integer_types_share_what_is_known(kind):
    recorder = Recorder()
    reward = rewards.cached(recorder)
    reward(torch.tensor([[1, 2], [3, 4]]))
    rows = [[3, 4], [1, 2]]
    samples = (
        torch.tensor(rows, dtype=kind) if isinstance(kind, torch.dtype) else np.array(rows, kind)
    )
    assert reward(samples).tolist() == [11.0, 5.0]
    assert len(recorder.calls) == 1


def test_large_integers_and_shapes_are_told_apart():
    reward = rewards.cached(lambda x: x.flatten(1).double().sum(dim=1) + x.shape[1])
    assert reward(torch.tensor([[1], [1 + 2**32]])).tolist() == [2.0, 2.0 + 2**32]
    assert reward(torch.arange(6).view(1, 2, 3)).tolist() == [17.0]
    assert reward(torch.arange(6).view(1, 3, 2)).tolist() == [18.0]
    assert reward(torch.zeros(2, 0, dtype=torch.int64)).tolist() == [0.0, 0.0]


def test_no_rows():
    recorder = Recorder()
    assert rewards.cached(recorder)(torch.zeros(0, 3, dtype=torch.int64)).shape == (0,)
    assert recorder.calls == []


def test_memory_is_bounded_and_keeps_what_was_used_last():
    recorder = Recorder()
    # two samples of two tokens: a few more bytes than 2 * 16 of tokens
    reward = rewards.cached(recorder, max_bytes=500)
    one, two, three = (torch.tensor([[i, 0]]) for i in (1, 2, 3))
    for samples in (one, two, one, three, one, two):
        assert reward(samples).tolist() == samples[:, 0].tolist()
    assert recorder.calls == [[[1, 0]], [[2, 0]], [[3, 0]], [[2, 0]]]
    many = torch.arange(40).view(20, 2)
    assert torch.equal(reward(many), Recorder()(many).double())


def test_runs_share_what_they_meet():
    recorder = Recorder()
    reward = rewards.cached(recorder)

    def run(seed):
        sampler = fg.SVDD(exact.diffusion(), reward, num_candidates=4, alpha=0.5)
        return sampler.sample(32, num_steps=exact.STEPS, seed=seed, progress=False)

    first = run(0)
    again = run(1)
    rows = [tuple(row) for call in recorder.calls for row in call]
    assert len(rows) == len(set(rows)) <= 2**3
    plain = fg.SVDD(exact.diffusion(), Recorder(), num_candidates=4, alpha=0.5)
    for seed, result in enumerate((first, again)):
        due = plain.sample(32, num_steps=exact.STEPS, seed=seed, progress=False)
        assert torch.equal(result.samples, due.samples)
        assert torch.equal(result.rewards, due.rewards)


def test_soft_and_pickle():
    task = fg.zoo.load("utr")
    reward = rewards.cached(task.reward)
    samples = torch.randint(4, (3, task.diffusion.length))
    assert torch.equal(reward(samples), task.reward(samples).double())
    probs = torch.nn.functional.one_hot(samples, 4).float()
    assert torch.equal(reward.soft(probs), task.reward.soft(probs))
    remembered = rewards.cached(per_sample.first)
    remembered(torch.tensor([1]).expand(2, 1)[:1])
    again = pickle.loads(pickle.dumps(remembered))
    assert again._function is per_sample.first
    assert len(remembered._known) == 1
    assert len(again._known) == 0


def test_errors():
    reward = rewards.cached(Recorder())
    with pytest.raises(DtypeError, match=r"cached\(Recorder\): only integer samples.*float32"):
        reward(torch.zeros(2, 2))
    with pytest.raises(ShapeError, match=r"one number per sample, \[1\], got \[1, 1\]"):
        rewards.cached(lambda x: x[:, :1])(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(DtypeError, match=r"must return 1 numbers .*, got list"):
        rewards.cached(lambda x: ["good"])(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="max_bytes must be at least 1, got 0"):
        rewards.cached(Recorder(), max_bytes=0)
    noisy = Recorder()
    noisy.deterministic = False
    with pytest.raises(ArgumentError, match="deterministic=False"):
        rewards.cached(noisy)
