"""Outputs that are taken once are those that would be taken again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from tuning_case import QUIET, count_of_threes, parameters, sequences

import fastguide as fg
from fastguide import finetune
from fastguide.finetune import parts, sharing
from fastguide.finetune.laws import laws_of
from fastguide.finetune.parts import Part
from fastguide.finetune.rollout import roll
from fastguide.finetune.sharing import Recalling, outputs

CHAINS = torch.arange(40)


class Counted(nn.Module):
    """Counts its rows; its output depends on the state, and on the time if it is read."""

    def __init__(self):
        super().__init__()
        self.network = sequences().denoiser.eval()
        self.rows = 0

    def forward(self, x, t):
        self.rows += len(x)
        return self.network(x, t) + t.double()[:, None, None]


def laws(time_conditioned=False, steps=24):
    network = Counted()
    diffusion = fg.MaskedDiffusion(network, 8, 4, time_conditioned=time_conditioned)
    return laws_of(diffusion, steps), network


def whole(buffer):
    paths, steps = torch.ones(buffer.states.shape[:2], dtype=torch.bool)[:, 1:].nonzero(
        as_tuple=True
    )
    return Part(buffer, paths, steps)


@pytest.mark.parametrize("time_conditioned", [False, True])
def test_rows_of_an_update(time_conditioned):
    """Equal states of a path share a row, unless the network reads the time."""
    policy, network = laws(time_conditioned)
    part = whole(roll(policy, None, 3, CHAINS))
    expected = policy.output(part.x, part.steps, {})
    network.rows = 0
    found = outputs(policy, part)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    distinct = sum(len({tuple(x) for x in path[:-1].tolist()}) for path in part.buffer.states)
    assert network.rows == (len(part.x) if time_conditioned else distinct)
    assert distinct < len(part.x) / 2
    pull = torch.randn(found.shape, dtype=found.dtype)
    weights = list(network.parameters())
    for one, due in zip(
        torch.autograd.grad((found * pull).sum(), weights),
        torch.autograd.grad((expected * pull).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(one, due, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("time_conditioned", [False, True])
@pytest.mark.parametrize("max_rows", [None, 16])
def test_rollout_that_recalls_is_the_rollout(max_rows, time_conditioned):
    policy, network = laws(time_conditioned)
    expected = roll(policy, policy, 3, CHAINS, max_rows=max_rows)
    before, network.rows = network.rows, 0
    drawn, natural = Recalling(policy), Recalling(policy, keep=True)
    found = roll(drawn, natural, 3, CHAINS, max_rows=max_rows)
    assert torch.equal(found.states, expected.states)
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=1e-12, atol=1e-12)
    assert float(found.kl.abs().max()) == 0
    part = whole(found)
    kept = policy.output(part.x, part.steps, {}).view(natural.kept().shape)
    torch.testing.assert_close(natural.kept(), kept, rtol=1e-12, atol=1e-12)
    network.rows -= len(part.x)
    assert network.rows == before if time_conditioned else network.rows < before / 2


def test_conditions_follow_their_rows():
    """A state that is taken again is taken with the condition of its own path."""

    class Conditioned(nn.Module):
        def forward(self, x, t, y):
            return torch.nn.functional.one_hot(y, 4)[:, None] * 5.0 + (x[..., None] == 4)

    policy = laws_of(fg.MaskedDiffusion(Conditioned(), 8, 4), 24)
    cond = {"y": CHAINS % 4}
    found = roll(Recalling(policy), None, 3, CHAINS, cond=cond)
    expected = roll(policy, None, 3, CHAINS, cond=cond)
    assert torch.equal(found.states, expected.states)
    part = whole(found)
    assert torch.equal(outputs(policy, part), policy.output(part.x, part.steps, part.cond))


@pytest.mark.parametrize(("name", "value"), [("MOST_KEPT", 0), ("CPU_BYTES", 1000)])
def test_limits_change_no_result(name, value, monkeypatch):
    """Outputs that are computed again, and small portions, train the same parameters."""
    tuned = []
    for small in (False, True):
        if small:
            monkeypatch.setattr(sharing if name == "MOST_KEPT" else parts, name, value)
        tuner = finetune.PPO(
            sequences(), count_of_threes, alpha=1.0, adapter="full", learning_rate=0.01, epochs=2
        )
        tuner.train(3, 16, num_steps=12, **QUIET)
        tuned.append(parameters(tuner))
    for name in tuned[0]:
        torch.testing.assert_close(tuned[0][name], tuned[1][name], rtol=0, atol=1e-9)


def test_portions_of_a_pass():
    """Rows come path after path, as many as were asked for or as a CPU takes at best."""
    policy, _ = laws(steps=3)
    buffer = roll(policy, None, 3, CHAINS)
    chosen = torch.ones(40, 4, dtype=torch.bool)
    given = dict(whole_paths=False)
    (one,) = parts.parts(buffer, chosen, max_rows=None, **given)
    assert len(one.paths) == 160 < parts.CPU_BYTES / 64
    assert [len(p.paths) for p in parts.parts(buffer, chosen, max_rows=50, **given)] == [
        50,
        50,
        50,
        10,
    ]
