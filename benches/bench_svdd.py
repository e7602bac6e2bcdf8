"""End to end: SVDD on the utr task against the published loop with the same networks.

N=32, M=10, T=128, one thread, CPU seconds, providers interleaved. The shapes, alphas and seeds
below are fixed; every alpha is shown, the worst first.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from published import published_svdd

import fastguide as fg
from fastguide.report import ALPHAS

NUM_SAMPLES, NUM_CANDIDATES, NUM_STEPS = 32, 10, 128
ROUNDS = 2
MIDDLE = sorted(ALPHAS)[len(ALPHAS) // 2]


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
    import exact

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


def measure(task, alpha: float) -> dict[str, float]:
    """Interleaved rounds of both programs; CPU seconds and rows of each."""
    times: dict[str, list[float]] = {"published": [], "fastguide": []}
    rows: dict[str, tuple[int, int]] = {}

    def published(seed: int) -> None:
        torch.manual_seed(seed)
        denoiser, reward = Counter(task.diffusion.denoiser), Counter(task.reward)
        published_svdd(
            denoiser,
            reward,
            num_samples=NUM_SAMPLES,
            length=task.diffusion.length,
            vocab_size=task.diffusion.vocab_size,
            num_candidates=NUM_CANDIDATES,
            num_steps=NUM_STEPS,
            alpha=alpha,
        )
        rows["published"] = denoiser.rows, reward.rows

    def fastguide(seed: int) -> None:
        reward = Counter(task.reward)
        sampler = fg.SVDD(task.diffusion, reward, num_candidates=NUM_CANDIDATES, alpha=alpha)
        result = sampler.sample(NUM_SAMPLES, num_steps=NUM_STEPS, seed=seed, progress=False)
        assert result.cost.reward_rows == reward.rows
        rows["fastguide"] = result.cost.denoiser_rows, reward.rows
        candidate_rows = NUM_SAMPLES * NUM_CANDIDATES * NUM_STEPS
        seconds = result.cost.seconds
        outside = seconds["kernels"] + seconds["other"]
        overhead.append((outside / seconds["total"], outside / candidate_rows * 1e6))

    overhead: list[tuple[float, float]] = []
    for seed in range(ROUNDS):
        for name, program in (("published", published), ("fastguide", fastguide)):
            start = time.thread_time()
            program(seed)
            times[name].append(time.thread_time() - start)
    best = {name: min(values) for name, values in times.items()}
    return {
        "alpha": alpha,
        "published_seconds": best["published"],
        "fastguide_seconds": best["fastguide"],
        "speedup": best["published"] / best["fastguide"],
        "published_denoiser_rows": rows["published"][0],
        "published_reward_rows": rows["published"][1],
        "denoiser_rows": rows["fastguide"][0],
        "reward_rows": rows["fastguide"][1],
        "row_ratio": rows["published"][0] / rows["fastguide"][0],
        "share_outside": float(np.median([share for share, _ in overhead])),
        "us_outside_per_candidate_row": float(np.median([us for _, us in overhead])),
    }


@pytest.mark.benchmark(group="svdd")
def bench_svdd(benchmark):
    """One record per alpha; `make bench` keeps the table."""
    check_same_law()
    torch.set_num_threads(1)
    task = fg.zoo.load("utr")
    records: list[dict[str, float]] = []
    benchmark.pedantic(
        lambda: records.extend(measure(task, alpha) for alpha in ALPHAS), rounds=1, iterations=1
    )
    records.sort(key=lambda record: record["speedup"])
    benchmark.extra_info["records"] = records
    print(f"\nSVDD on utr, N={NUM_SAMPLES} M={NUM_CANDIDATES} T={NUM_STEPS}, one thread, worst first")
    print("alpha  published s  fastguide s  ratio  rows ratio  outside models  us/candidate row")
    for r in records:
        print(
            f"{r['alpha']:5.2f}  {r['published_seconds']:11.1f}  {r['fastguide_seconds']:11.1f}  "
            f"{r['speedup']:5.2f}  {r['row_ratio']:10.2f}  {r['share_outside']:13.1%}  "
            f"{r['us_outside_per_candidate_row']:16.1f}"
        )
    out = Path("out/bench_svdd.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(records, indent=2))
