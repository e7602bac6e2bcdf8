"""Engine overhead of every method on the utr task: time outside denoiser and reward.

N=64 designs, M=10 candidates or as many particles (P M = 10 where there are both), alpha 0.3, one
thread. A method of one chain per design has no M: it runs N=640, which is as many rows a step, and
N=64, where what a step costs at any size falls on a tenth of the rows. The share is of the wall
clock of one run, of which another process takes from both parts alike; microseconds are that share
of the CPU seconds of the process, per candidate row requested. The worst is shown first.

Methods that take gradients run 32 steps and not 128, because a pass with its gradient costs ten
times one without.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch
from harness import RECORDS, Timing, compared, threads

import fastguide as fg
from fastguide.report.methods import TABLE, Shape

NUM_SAMPLES, NUM_CANDIDATES, ALPHA = 64, 10, 0.3
STEPS, GRADIENT_STEPS = 128, 32
GRADIENT = ("classifier_guidance", "dps", "tds", "das")
MOST_SHARE, MOST_MICROSECONDS = 0.05, 15.0


def check_plain_chain(task: fg.zoo.Task) -> None:
    """With one candidate and one particle, methods without a gradient are the plain sampler."""
    options = {"num_steps": 16, "fixed_rows": 8, "progress": False}
    plain = fg.Unguided(task.diffusion, task.reward).sample(8, **options).samples
    for name, method in TABLE.items():
        if name not in GRADIENT:
            sampler = method.build(task, Shape(1, 1, ALPHA, 16))
            assert torch.equal(sampler.sample(8, **options).samples, plain), name


@dataclass
class Overhead:
    """One run of one method."""

    cpu: float
    share: float
    microseconds: float


def run(task: fg.zoo.Task, name: str, num: int) -> tuple[str, Overhead]:
    """One run of a method, and its setting in words."""
    method, steps = TABLE[name], GRADIENT_STEPS if name in GRADIENT else STEPS
    width = method.widths[0]
    size = NUM_CANDIDATES // width
    sampler = method.build(task, Shape(size, width, ALPHA, steps))
    start = time.process_time()
    cost = sampler.sample(num, num_steps=steps, progress=False).cost
    cpu = time.process_time() - start
    share = (cost.seconds["kernels"] + cost.seconds["other"]) / cost.seconds["total"]
    sizes = f", {method.size}={size}" + (f" of {width}" if width > 1 else "")
    setting = f"{method.label}, N={num}{sizes if method.size else ''}, T={steps}"
    return setting, Overhead(cpu, share, 1e6 * share * cpu / cost.candidate_rows)


@pytest.mark.benchmark(group="methods")
def bench_methods(benchmark):
    """One record per method."""
    task = fg.zoo.load("utr")
    check_plain_chain(task)
    found = []

    def measure() -> None:
        sizes = [(name, NUM_SAMPLES) for name in TABLE]
        sizes += [(name, NUM_SAMPLES * NUM_CANDIDATES) for name in TABLE if not TABLE[name].size]
        for name, num in sizes:
            setting, one = run(task, name, num)
            misses = one.share > MOST_SHARE or one.microseconds > MOST_MICROSECONDS
            text = (
                f"utr, {setting}\n  outside the models: {one.share:.1%} of the time, "
                f"{one.microseconds:.1f} us a candidate row{'   MISSES' if misses else ''} "
                f"(at most {MOST_SHARE:.0%} and {MOST_MICROSECONDS:g} us)"
            )
            timing = Timing(one.cpu, one.cpu, one.cpu)
            record = compared("methods", text, {"fastguide": timing}, rounds=1)
            found.append((one.microseconds, record))

    with threads(1):
        benchmark.pedantic(measure, rounds=1, iterations=1)
    RECORDS.extend(record for _, record in sorted(found, key=lambda each: -each[0]))
