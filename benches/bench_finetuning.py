"""Samples trained per second: `fg.finetune` against loops as published code spells them.

Both copy the network, make an optimiser and train the same number of iterations of as many paths,
steps and updates, on one thread. Rows of the network are counted by a wrapper outside: the eager
loops' are all that the method asks for; ours may be fewer, where a state that a step left as it was
is not computed again. Noise differs, so rewards, KL and losses must agree as those of other seeds.
The one that gains least on its rival is shown first. DRAKES also meets a loop that takes its KL in
a second pass, as the released one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

import eager_finetuning as eager
import pytest
import torch
from harness import RECORDS, compared, interleaved, threads
from torch import nn

import fastguide as fg

ROUNDS = 5
ITERATIONS, MINIBATCHES = 2, 2
ALPHA, CLIP, RATE = 0.5, 0.2, 1e-3
KINDS = ("PPO", "RewardBackprop", "RewardWeightedMLE")


class Watched(nn.Module):
    """Counts rows of a network and of all its copies, without and with a gradient."""

    def __init__(self, network: nn.Module, rows: dict[bool, int]) -> None:
        super().__init__()
        self.network = network
        self.rows = _Shared(rows)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        self._count(len(x))
        return self.network(x, t)

    def soft(self, onehot: torch.Tensor, t: torch.Tensor) -> Any:
        self._count(len(onehot))
        network: Any = self.network
        return network.soft(onehot, t)

    def _count(self, size: int) -> None:
        trained = any(p.requires_grad for p in self.network.parameters())
        self.rows.of[trained and torch.is_grad_enabled()] += size


class _Shared:
    def __init__(self, of: dict[bool, int]) -> None:
        self.of = of

    def __deepcopy__(self, memo: Any) -> _Shared:
        return self


class Perceptron(nn.Module):
    """The velocity of vectors [B, D] at t [B]."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dims + 1, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, dims),
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.net(torch.cat([x, t.float()[:, None] / 1000], dim=1))
        return made


@dataclass
class Contest:
    """One method on one model, ours and eager: functions from a seed to the last row of a training.

    `rows` counts those of the network, without and with a gradient.
    """

    text: str
    size: int
    rows: dict[bool, int]
    ours: Callable[[int], dict[str, float]]
    eager: Callable[[int], dict[str, float]]
    released: Callable[[int], dict[str, float]] | None = None

    def run(self, which: str, seed: int) -> tuple[dict[str, float], dict[bool, int]]:
        """The last row and the rows of the network."""
        self.rows.update({False: 0, True: 0})
        torch.manual_seed(seed)
        with torch.enable_grad():
            row = getattr(self, which)(seed)
        return row, dict(self.rows)


def gaussian(name: str, size: int, num_steps: int) -> Contest:
    rows = {False: 0, True: 0}
    torch.manual_seed(0)
    if name == "perceptron":
        shape: tuple[int, ...] = (64,)
        network: nn.Module = Perceptron(64, 256)
        table = torch.linspace(0.9999, 0.98, 1000, dtype=torch.float64).cumprod(0)
    else:
        task = fg.zoo.load("glyphs").diffusion
        shape, network, table = task.shape, task.denoiser, task.alphas_cumprod
    watched = Watched(network.eval().requires_grad_(False), rows)
    diffusion = fg.GaussianDiffusion(
        watched, shape, alphas_cumprod=table, prediction_type="v_prediction"
    )

    def reward(x: torch.Tensor) -> torch.Tensor:
        return -(x.flatten(1) - 0.5).square().mean(dim=1)

    steps = []
    moves, levels = diffusion.steps(num_steps), diffusion.levels(num_steps)
    deviation = 1.0
    for move, level in zip(moves, levels, strict=False):
        a, b, s = move.params
        # a step that draws nothing is held by the deviation of the step before
        deviation = s if move.varies else deviation
        steps.append((move.time, a, b, deviation, level.alpha, -level.sigma, move.varies))

    def ours(seed: int) -> dict[str, float]:
        tuner = fg.finetune.PPO(
            diffusion,
            reward,
            alpha=ALPHA,
            adapter="full",
            learning_rate=RATE,
            clip=CLIP,
            minibatches=MINIBATCHES,
        )
        history = tuner.train(ITERATIONS, size, num_steps=num_steps, seed=seed, progress=False)
        return history.rows[-1]

    def rival(seed: int) -> dict[str, float]:
        return eager.gaussian_ppo(
            watched,
            reward,
            steps=steps,
            shape=shape,
            num_samples=size,
            iterations=ITERATIONS,
            minibatches=MINIBATCHES,
            alpha=ALPHA,
            clip=CLIP,
            learning_rate=RATE,
        )

    return Contest(f"PPO, {name} {list(shape)}, N={size} T={num_steps}", size, rows, ours, rival)


def masked(method: str, size: int, num_steps: int) -> Contest:
    rows = {False: 0, True: 0}
    task = fg.zoo.load("utr")
    watched = Watched(task.diffusion.denoiser.requires_grad_(False), rows)
    length, mask = task.diffusion.length, task.diffusion.mask_token
    diffusion = fg.MaskedDiffusion(watched, length, mask)
    rates = [step.params[0] for step in diffusion.steps(num_steps)]
    shared: dict[str, Any] = dict(alpha=ALPHA, learning_rate=RATE)
    sizes: dict[str, Any] = dict(
        rates=rates, length=length, mask=mask, num_samples=size, iterations=ITERATIONS
    )
    own: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    if method == "PPO":
        own, rival = dict(minibatches=MINIBATCHES, clip=CLIP), eager.masked_ppo
    elif method == "RewardBackprop":
        own, extra, rival = dict(relaxed_steps=num_steps // 2), dict(tau=1.0), eager.drakes
    else:
        rival = eager.weighted_denoising
    tuned: dict[str, Any] = dict(form="denoise", min_ess=0) if method == KINDS[2] else own

    def build() -> fg.finetune.Method:
        kind: type[fg.finetune.Method] = getattr(fg.finetune, method)
        return kind(diffusion, task.reward, adapter="full", **shared, **tuned)

    def ours(seed: int) -> dict[str, float]:
        history = build().train(ITERATIONS, size, num_steps=num_steps, seed=seed, progress=False)
        return history.rows[-1]

    def theirs(seed: int, **more: Any) -> dict[str, float]:
        row: dict[str, float] = rival(
            watched, task.reward, **shared, **sizes, **own, **extra, **more
        )
        return row

    released = partial(theirs, second_pass=True) if method == "RewardBackprop" else None

    return Contest(f"{method}, utr, N={size} T={num_steps}", size, rows, ours, theirs, released)


CONTESTS: dict[str, Callable[[], Contest]] = {
    "perceptron": lambda: gaussian("perceptron", 256, 16),
    "unet": lambda: gaussian("glyphs", 8, 8),
    "ppo": lambda: masked("PPO", 32, 32),
    "ppo, long": lambda: masked("PPO", 16, 128),
    "backprop": lambda: masked("RewardBackprop", 32, 32),
    "likelihood": lambda: masked("RewardWeightedMLE", 32, 32),
}


Runs = list[tuple[dict[str, float], dict[bool, int]]]


def checked_rows(contest: Contest, ours: Runs, rival: Runs) -> str:
    """Equal rows, or fewer of ours; rewards, KL and losses as of other seeds. The rows in words."""
    counts, due = ours[0][1], rival[0][1]
    assert all(counts[kind] <= due[kind] for kind in (False, True)), (counts, due)
    for name in rival[0][0]:
        one, other = ([row[name] for row, _ in each] for each in (ours, rival))
        error = math.hypot(stdev(one), stdev(other)) / len(one) ** 0.5
        far = 5 * error + 0.01 * abs(mean(other))
        assert abs(mean(one) - mean(other)) < far, (contest.text, name, one, other)
    return (
        f"rows of the network: {counts[False]} and {counts[True]} with a gradient, "
        f"of {due[False]} and {due[True]}"
    )


def measured(make: Callable[[], Contest]) -> dict[str, Any]:
    """The record of one contest."""
    contest = make()
    runs: dict[str, Runs] = {"ours": [], "eager": [], "released": []}

    def run(which: str) -> None:
        runs[which].append(contest.run(which, len(runs[which])))

    providers = {"fastguide": lambda: run("ours"), "eager": lambda: run("eager")}
    if contest.released is not None:
        providers["eager, KL in a second pass"] = lambda: run("released")
    timings = interleaved(providers, rounds=ROUNDS, warm_up=1)
    rows = checked_rows(contest, runs["ours"], runs["eager"])
    speed = {name: ITERATIONS * contest.size / t.p05 for name, t in timings.items()}
    text = (
        f"{contest.text}\n  {speed['fastguide']:.4g} samples trained per second, eager "
        f"{speed['eager']:.4g}; {rows}"
    )
    return compared("finetuning", text, timings, rounds=ROUNDS)


@pytest.mark.benchmark(group="finetuning")
def bench_finetuning(benchmark: Any) -> None:
    """One record per contest."""
    found: list[dict[str, Any]] = []
    with threads(1):
        benchmark.pedantic(
            lambda: found.extend(measured(make) for make in CONTESTS.values()),
            rounds=1,
            iterations=1,
        )
    RECORDS.extend(sorted(found, key=lambda each: each["providers"]["eager"]["ratio_p05"]))
