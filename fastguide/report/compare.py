"""Running several methods on one task at equal settings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from fastguide.modes import evaluation_mode
from fastguide.report.designs import METHODS, Comparison, Designs, Settings, Task
from fastguide.report.metrics import Array
from fastguide.result import Result
from fastguide.samplers import SVDD, BestOfN, Unguided
from fastguide.samplers.base import Sampler

Tensor = torch.Tensor

BOUND_ROWS = 32
"""Designs per call of the likelihood bound, so that its progress can be shown."""


def assess(
    task: Task, key: str, label: str, result: Result, *, num_masks: int, progress: bool = True
) -> Designs:
    """The designs of a run with a reward: as text, judged, and with their likelihood bound.

    The bound is `MaskedDiffusion.elbo` with seed 0, so all designs are seen under the same masks.
    """
    assert result.rewards is not None
    with evaluation_mode(task.oracle):
        judged = task.oracle(result.samples)
    parts = tqdm(
        result.samples.split(BOUND_ROWS),
        desc="  naturalness",
        disable=not progress,
        unit="batch",
        leave=False,
    )
    bounds = [task.diffusion.elbo(part, num_masks=num_masks, seed=0) for part in parts]
    return Designs(
        key=key,
        label=label,
        result=result,
        sequences=task.decode(result.samples),
        guide=_numbers(result.rewards),
        judge=_numbers(judged),
        bound=_numbers(torch.cat(bounds)),
        length=result.samples.shape[1],
    )


def compare(
    task: Task,
    settings: Settings,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
    keep: Callable[[Designs], None] = lambda designs: None,
) -> Comparison:
    """Run the methods of `settings` on `task`.

    Args:
        progress: show bars.   say: is told what starts.
        keep: is given each method's designs as soon as they are there.
    """
    wall, processor = time.perf_counter(), time.process_time()
    runner = _Runner(task, settings, progress, say, keep)
    plain = runner.unguided()
    plain_designs = runner.assess("unguided", "Unguided", plain)
    made = {"unguided": [plain_designs]}
    known = {1: plain}
    if "best_of_n" in settings.methods:
        num = settings.num_candidates
        known[num] = runner.best_of(num)
        made["best_of_n"] = [runner.assess(f"best_of_{num}", f"Best of {num}", known[num])]
    if "svdd" in settings.methods:
        made["svdd"] = [runner.svdd(alpha) for alpha in sorted(settings.alphas)]
    matching = None
    if "matched" in settings.methods:
        # the most expensive of the runs, so that best of N has no fewer rows than any of them
        target = max(made["svdd"], key=lambda designs: designs.result.cost.denoiser_rows)
        due = target.result.cost.denoiser_rows
        num, matched, matching = match_rows(due, known, runner.best_of)
        matching = {"target": target.label, **matching}
        made["matched"] = [
            runner.assess("best_of_n_matched", f"Best of {num}, equal rows", matched)
        ]
    reference = runner.reference(plain_designs)
    return Comparison(
        task=task.name,
        card=task.card,
        settings=settings,
        designs=[one for name in METHODS if name in settings.methods for one in made[name]],
        reference=reference,
        matching=matching,
        seconds={"wall": time.perf_counter() - wall, "cpu": time.process_time() - processor},
    )


@dataclass
class _Runner:
    task: Task
    settings: Settings
    progress: bool
    say: Callable[[str], None]
    keep: Callable[[Designs], None]

    def sample(self, what: str, sampler: Sampler, num: int | None = None, first: int = 0) -> Result:
        self.say(what)
        return sampler.sample(
            self.settings.num_samples if num is None else num,
            num_steps=self.settings.num_steps,
            seed=self.settings.seed,
            first_chain=first,
            fixed_rows=self.settings.fixed_rows,
            progress=self.progress,
        )

    def assess(self, key: str, label: str, result: Result) -> Designs:
        made = assess(
            self.task,
            key,
            label,
            result,
            num_masks=self.settings.num_masks,
            progress=self.progress,
        )
        self.keep(made)
        return made

    def unguided(self, num: int | None = None, first: int = 0) -> Result:
        what = "Unguided" if num is None else f"Unguided, {num:,} more for reference"
        return self.sample(what, Unguided(self.task.diffusion, self.task.reward), num, first)

    def best_of(self, num: int) -> Result:
        sampler = BestOfN(self.task.diffusion, self.task.reward, num_candidates=num)
        return self.sample(f"Best of {num}", sampler)

    def svdd(self, alpha: float) -> Designs:
        label = f"SVDD, alpha {alpha:g}"
        sampler = SVDD(
            self.task.diffusion,
            self.task.reward,
            num_candidates=self.settings.num_candidates,
            alpha=alpha,
        )
        return self.assess(f"svdd_alpha_{alpha:g}", label, self.sample(label, sampler))

    def reference(self, plain: Designs) -> Designs:
        """The unguided designs and as many more as are missing to num_reference."""
        settings = self.settings
        missing = settings.num_reference - settings.num_samples
        label = f"{settings.num_reference:,} unguided samples"
        if not missing:
            return replace(plain, key="reference", label=label)
        more = self.assess("reference", label, self.unguided(missing, settings.num_samples))
        return replace(
            more,
            sequences=plain.sequences + more.sequences,
            guide=np.concatenate([plain.guide, more.guide]),
            judge=np.concatenate([plain.judge, more.judge]),
            bound=np.concatenate([plain.bound, more.bound]),
        )


def match_rows(
    due: int, known: dict[int, Result], best_of: Callable[[int], Result]
) -> tuple[int, Result, dict[str, Any]]:
    """The smallest N >= 2 at which best of N executes at least `due` denoiser rows.

    Rows never fall as N grows and are close to linear in it: the line through what was measured
    proposes N, the run confirms it, and N moves on by one where it does not.

    Args:
        known: results of best of N that are there already, by N; N = 1 is the plain sampler.
        best_of: runs it for another N.
    Returns:
        N, its result, and how it was found.
    """
    results = dict(known)
    rows = {num: result.cost.denoiser_rows for num, result in known.items()}
    num = max(2, math.ceil(_solve(rows, due)))
    while True:
        if num not in results:
            results[num] = best_of(num)
            rows[num] = results[num].cost.denoiser_rows
        if rows[num] < due:
            num += 1
        elif num > 2 and num - 1 not in rows and _is_close(rows, num, due):
            results[num - 1] = best_of(num - 1)
            rows[num - 1] = results[num - 1].cost.denoiser_rows
        elif num > 2 and _interpolate(rows, num - 1) >= due:
            num -= 1
        else:
            break
    return (
        num,
        results[num],
        {
            "target_denoiser_rows": due,
            "num_candidates": num,
            "denoiser_rows": rows[num],
            "denoiser_rows_one_fewer": _interpolate(rows, num - 1),
            "one_fewer_is": "measured" if num - 1 in rows else "interpolated",
            "measured": {str(count): rows[count] for count in sorted(rows)},
        },
    )


def _is_close(rows: dict[int, int], num: int, due: int) -> bool:
    """Whether interpolation leaves in doubt that one candidate fewer falls short of `due` rows.

    Rows grow ever more slowly with N, so the line lies below them; a tenth of a candidate's rows
    is far more than that.
    """
    below = _interpolate(rows, num - 1)
    return below > due - 0.1 * (rows[num] - below)


def _solve(rows: dict[int, int], due: int) -> float:
    """N at which the line through the outermost measured points reaches `due` rows."""
    low, high = min(rows), max(rows)
    slope = (rows[high] - rows[low]) / (high - low) if high > low else rows[high] / high
    return low + (due - rows[low]) / max(slope, 1.0)


def _interpolate(rows: dict[int, int], num: int) -> float:
    """Rows at `num` on the line between its measured neighbours; measured points are exact."""
    counts = sorted(rows)
    return float(np.interp(num, counts, [rows[count] for count in counts]))


def _numbers(values: Any) -> Array:
    return torch.as_tensor(values).detach().double().cpu().numpy()
