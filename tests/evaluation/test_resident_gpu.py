"""Sampling on a GPU: the samples of the CPU, no waiting, and a step in a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from quarter_model import STEPS, Denoiser, L, V, reward, sample, sampler, state_value

import fastguide as fg
from fastguide.engine import Run, State
from fastguide.evaluation import resident

pytestmark = pytest.mark.gpu

SAVINGS = ["all", "none", {"carry"}, {"duplicates", "history", "rewards", "skip"}]


def on_gpu(value: Any = "posterior_mean", **how: Any) -> fg.SVDD:
    return sampler(Denoiser().to("cuda"), value, **how)


@pytest.mark.parametrize("kept", SAVINGS, ids=str)
@pytest.mark.parametrize("value", ["posterior_mean", state_value])
def test_samples_are_those_of_the_cpu(value: Any, kept: Any) -> None:
    here, due = sample(on_gpu(value), savings=kept), sample(sampler(value=value), savings="none")
    assert torch.equal(here.samples.cpu(), due.samples)
    assert torch.equal(here.rewards.cpu(), due.rewards)


def steps(made: fg.SVDD, kept: Any) -> tuple[Run, Iterator[State]]:
    """A run after two steps: everything is compiled."""
    run = made.start(6, num_steps=STEPS, savings=kept)
    states = iter(run)
    next(states), next(states)
    torch.cuda.synchronize()
    return run, states


@pytest.mark.parametrize("value", ["posterior_mean", state_value])
def test_no_step_waits_without_dedupe(value: Any) -> None:
    with torch.no_grad():
        _, states = steps(on_gpu(value), {"carry"})
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(STEPS - 2):
                next(states)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_one_wait_a_step_with_dedupe(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    wait = resident.read_words

    def read(words: torch.Tensor) -> list[int]:
        torch.cuda.set_sync_debug_mode("default")
        waits.append(wait(words))
        torch.cuda.set_sync_debug_mode("error")
        return waits[-1]

    monkeypatch.setattr(resident, "read_words", read)
    with torch.no_grad():
        _, states = steps(on_gpu(), "all")
        before = len(waits)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(STEPS - 2):
                next(states)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) - before == STEPS - 2


def test_a_step_is_captured_in_a_graph() -> None:
    with torch.no_grad():
        _, plainly = steps(on_gpu(), {"carry"})
        due = next(plainly).x.clone()
        _, states = steps(on_gpu(), {"carry"})
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = next(states).x
        for _ in range(2):
            captured.zero_()
            graph.replay()
            assert torch.equal(captured, due)


def test_a_prompt_and_conditioning_on_the_device() -> None:
    prompt = torch.full((L,), V)
    prompt[3] = 1
    cond = {"shift": torch.ones(1)}
    here = sample(on_gpu(), prompt=prompt.cuda(), cond={"shift": cond["shift"].cuda()})
    due = sample(sampler(), prompt=prompt, cond=cond)
    assert torch.equal(here.samples.cpu(), due.samples)
    assert bool((here.samples[:, 3] == 1).all())
    assert torch.equal(reward(here.samples).float().cpu(), here.rewards.cpu())
