"""Choose alpha for `fastguide finetune utr`: the same trials for every method, on the guide alone.

    python benches/tune_utr.py --out out/tune_utr.jsonl

Every method trains with its defaults at each of ALPHAS. The choice is the run with the highest mean
guiding reward of 64 plain designs among those that are all distinct and whose KL to the pre-trained
model is at most MOST_KL nats. The judging oracle is not loaded into anything here.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from fastguide import Unguided, report, zoo
from fastguide.errors import ArgumentError, NonFiniteError
from fastguide.finetune.laws import laws_of
from fastguide.finetune.rollout import roll
from fastguide.report.tuning import TUNERS
from fastguide.rng import chain_ids

ALPHAS = (0.1, 0.05, 0.015)
MOST_KL = 20.0
SEED = 1
"""Of the trials; the defaults of the command have another."""


def trial(task: zoo.Task, method: str, alpha: float) -> dict[str, object]:
    """Train, draw 64 designs, and say what they are by the guide."""
    settings = replace(report.TUNINGS[method], alpha=alpha)
    tuner = TUNERS[method](
        task.diffusion,
        task.reward,
        alpha=alpha,
        adapter=settings.adapter,
        learning_rate=settings.learning_rate,
        **settings.options,
    )
    clock = time.process_time()
    tuner.train(
        settings.num_iterations,
        settings.batch_size,
        num_steps=settings.num_steps,
        seed=SEED,
        progress=False,
    )
    seconds = time.process_time() - clock
    tuned, steps = tuner.diffusion, settings.sample_steps
    found = Unguided(tuned, task.reward).sample(64, num_steps=steps, seed=SEED, progress=False)
    paths = roll(laws_of(tuned, steps), laws_of(task.diffusion, steps), SEED, chain_ids(64, 0))
    assert paths.kl is not None
    apart = (found.samples[:, None] != found.samples[None]).sum(dim=-1).double()
    return {
        "method": method,
        "alpha": alpha,
        "guide": float(found.rewards.mean()),
        "kl": float(paths.kl.sum(dim=1).mean()),
        "distinct": len(found.samples.unique(dim=0)),
        "mean_distance": float(apart.sum() / (64 * 63)),
        "cpu_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/tune_utr.jsonl"))
    parser.add_argument("--methods", nargs="+", default=list(TUNERS), choices=list(TUNERS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    task = zoo.load("utr")
    for method in given.methods:
        rows = []
        for alpha in ALPHAS:
            try:
                row = trial(task, method, alpha)
            except (ArgumentError, NonFiniteError) as error:
                row = {"method": method, "alpha": alpha, "refused": str(error)}
            rows.append(row)
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
        fit = [
            row for row in rows if "guide" in row and row["distinct"] == 64 and row["kl"] <= MOST_KL
        ]
        best = max(fit, key=lambda row: row["guide"], default=None)
        print(f"{method}: {'none fits' if best is None else best['alpha']}", flush=True)


if __name__ == "__main__":
    main()
