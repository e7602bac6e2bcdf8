"""End to end: SVDD on the utr task against the published loop with the same networks.

N=32, M=10, T=128, one thread, CPU seconds, programs interleaved, a new seed each round. The alphas
are the demo's, fixed there; every one is shown, the slowest first. Rows are counted by wrappers
outside the engine.
"""

from __future__ import annotations

import exact
import pytest
import torch
from harness import RECORDS, compared, interleaved
from published import published_svdd

import fastguide as fg
from fastguide.report import DEMO

NUM_SAMPLES, NUM_CANDIDATES, NUM_STEPS = 32, 10, 128
ROUNDS = 3


class Counter:
    """Counts rows from outside the engine."""

    def __init__(self, model):
        self.model = model
        self.rows = 0

    def __call__(self, x, *rest):
        self.rows += len(x)
        return self.model(x, *rest)


def check_same_law() -> None:
    """Both programs sample the exact law of a chain small enough to enumerate."""
    torch.manual_seed(0)
    law = exact.output_law(exact.mode_values(), 0.5, 4)
    published = published_svdd(
        exact.denoiser,
        exact.reward,
        num_samples=20_000,
        length=3,
        vocab_size=2,
        num_candidates=4,
        num_steps=exact.STEPS,
        alpha=0.5,
    )
    ours = fg.SVDD(exact.diffusion(), exact.reward, num_candidates=4, alpha=0.5)
    samples = ours.sample(20_000, num_steps=exact.STEPS, progress=False).samples
    for found in (published, samples):
        assert exact.chi_square_p(exact.counts_of(found), law) > 1e-6


class Contest:
    """Both programs at one alpha; each call is one run with the next seed."""

    def __init__(self, task, alpha: float) -> None:
        self._task = task
        self._alpha = alpha
        self._seeds = {"fastguide": 0, "published": 0}
        self.rows: dict[str, tuple[int, int]] = {}
        self.outside: list[tuple[float, float]] = []

    def fastguide(self) -> None:
        denoiser, reward = Counter(self._task.diffusion.denoiser), Counter(self._task.reward)
        diffusion = fg.MaskedDiffusion(
            denoiser, self._task.diffusion.length, self._task.diffusion.vocab_size
        )
        sampler = fg.SVDD(diffusion, reward, num_candidates=NUM_CANDIDATES, alpha=self._alpha)
        cost = sampler.sample(
            NUM_SAMPLES, num_steps=NUM_STEPS, seed=self._next("fastguide"), progress=False
        ).cost
        assert (cost.denoiser_rows, cost.reward_rows) == (denoiser.rows, reward.rows)
        self.rows["fastguide"] = denoiser.rows, reward.rows
        seconds = cost.seconds["kernels"] + cost.seconds["other"]
        requested = NUM_SAMPLES * NUM_CANDIDATES * NUM_STEPS
        self.outside.append((seconds / cost.seconds["total"], 1e6 * seconds / requested))

    def published(self) -> None:
        denoiser, reward = Counter(self._task.diffusion.denoiser), Counter(self._task.reward)
        torch.manual_seed(self._next("published"))
        published_svdd(
            denoiser,
            reward,
            num_samples=NUM_SAMPLES,
            length=self._task.diffusion.length,
            vocab_size=self._task.diffusion.vocab_size,
            num_candidates=NUM_CANDIDATES,
            num_steps=NUM_STEPS,
            alpha=self._alpha,
        )
        self.rows["published"] = denoiser.rows, reward.rows

    def _next(self, name: str) -> int:
        self._seeds[name] += 1
        return self._seeds[name] - 1

    def setting(self) -> str:
        (denoiser, reward), (published, published_reward) = (
            self.rows[name] for name in ("fastguide", "published")
        )
        share, microseconds = sorted(self.outside)[len(self.outside) // 2]
        return (
            f"utr, N={NUM_SAMPLES}, M={NUM_CANDIDATES}, T={NUM_STEPS}, alpha={self._alpha:g}\n"
            f"  denoiser rows {published:,} -> {denoiser:,} ({published / denoiser:.2f}x), "
            f"reward rows {published_reward:,} -> {reward:,} ({published_reward / reward:.2f}x)\n"
            f"  outside the models: {share:.1%} of our time, {microseconds:.1f} us a candidate row"
        )


@pytest.mark.benchmark(group="svdd")
def bench_svdd(benchmark):
    """One comparison per alpha of the demo."""
    check_same_law()
    task = fg.zoo.load("utr")
    records = []

    def measure() -> None:
        for alpha in DEMO.alphas:
            contest = Contest(task, alpha)
            timings = interleaved(
                {"fastguide": contest.fastguide, "published": contest.published},
                rounds=ROUNDS,
                warm_up=0,
            )
            published, ours = contest.rows["published"][0], contest.rows["fastguide"][0]
            due = 4.0 if alpha == DEMO.middle_alpha else 0.9 * published / ours
            records.append(
                compared("svdd", contest.setting(), timings, due={"published": due}, rounds=ROUNDS)
            )

    benchmark.pedantic(measure, rounds=1, iterations=1)
    RECORDS.extend(
        sorted(records, key=lambda record: record["providers"]["published"]["ratio_p05"])
    )
