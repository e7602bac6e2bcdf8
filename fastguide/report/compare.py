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
from fastguide.report.budget import TOLERANCE, SizeSearch
from fastguide.report.designs import METHODS, Comparison, Designs, Particles, Settings, Task
from fastguide.report.methods import TABLE, Method, Shape
from fastguide.report.metrics import Array
from fastguide.result import Result
from fastguide.samplers import BestOfN, Unguided
from fastguide.samplers.base import Sampler

Tensor = torch.Tensor

BOUND_ROWS = 32
"""Designs per call of the likelihood bound, so that its progress can be shown."""

REWARD_ROWS = 1024
"""Particles per call of an oracle, when all of them are scored."""

PILOT_SAMPLES = 8
"""Designs of the small runs that look for a size."""


def assess(
    task: Task, key: str, label: str, result: Result, *, num_masks: int, progress: bool = True
) -> Designs:
    """The designs of a run with a reward: as text, judged, and with their likelihood bound.

    The bound is `MaskedDiffusion.elbo` with seed 0, so all designs are seen under the same masks.
    """
    assert result.rewards is not None
    with evaluation_mode(task.oracle, task.reward):
        judged = task.oracle(result.samples)
        particles = _particles(task, result)
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
        particles=particles,
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
    fit = None if settings.budget is None else runner.fit(plain, {})
    plain_designs = runner.assess("unguided", "Unguided", plain, fit)
    made = {"unguided": [plain_designs]}
    for name in TABLE:
        if name in settings.methods and name != "unguided":
            made[name] = runner.runs(name)
    matching = None
    if "matched" in settings.methods:
        # the most expensive of the runs, so that best of N has no fewer rows than any of them
        target = max(made["svdd"], key=lambda designs: designs.result.cost.denoiser_rows)
        due = target.result.cost.denoiser_rows
        known = {1: plain}
        if "best_of_n" in made:
            known[settings.num_candidates] = made["best_of_n"][0].result
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

    def sample(
        self, sampler: Sampler, num: int | None = None, first: int = 0, *, progress: bool = True
    ) -> Result:
        return sampler.sample(
            self.settings.num_samples if num is None else num,
            num_steps=self.settings.num_steps,
            seed=self.settings.seed,
            first_chain=first,
            fixed_rows=self.settings.fixed_rows,
            progress=self.progress and progress,
        )

    def assess(
        self, key: str, label: str, result: Result, fit: dict[str, Any] | None = None
    ) -> Designs:
        made = assess(
            self.task,
            key,
            label,
            result,
            num_masks=self.settings.num_masks,
            progress=self.progress,
        )
        made.fit = fit
        self.keep(made)
        return made

    def unguided(self, num: int | None = None, first: int = 0) -> Result:
        self.say("Unguided" if num is None else f"Unguided, {num:,} more for reference")
        return self.sample(Unguided(self.task.diffusion, self.task.reward), num, first)

    def best_of(self, num: int) -> Result:
        self.say(f"Best of {num}")
        return self.sample(BestOfN(self.task.diffusion, self.task.reward, num_candidates=num))

    def runs(self, name: str) -> list[Designs]:
        """Every run of a method: one for each alpha, where it has one."""
        method, settings = TABLE[name], self.settings
        made = []
        for alpha in method.alphas(settings.alphas):
            key, label = name, method.label
            if alpha is not None:
                key = f"{key}_alpha_{alpha:g}"
                if len(settings.alphas) > 1 or not settings.wide:
                    label = f"{label}, alpha {alpha:g}"
            elif name == "best_of_n" and settings.budget is None:
                num = settings.num_candidates
                key, label = f"best_of_{num}", f"Best of {num}"
            if settings.budget is None:
                width = method.widths[0]
                self.say(label)
                size = max(1, settings.num_candidates // width)
                result, fit = self.sample(self.build(method, size, width, alpha)), None
            else:
                result, fit = self.within(settings.budget, method, label, alpha)
            made.append(self.assess(key, label, result, fit))
        return made

    def build(self, method: Method, size: int, width: int, alpha: float | None) -> Sampler:
        shape = Shape(size, width, math.nan if alpha is None else alpha, self.settings.num_steps)
        return method.build(self.task, shape)

    def within(
        self, due: float, method: Method, label: str, alpha: float | None
    ) -> tuple[Result, dict[str, Any]]:
        """The run that spends closest to `due`, and how its size was found."""
        if not method.size:
            self.say(label)
            result = self.sample(self.build(method, 1, 1, alpha))
            return result, self.fit(result, {})

        def pilot(size: int, width: int) -> float:
            num = min(PILOT_SAMPLES, self.settings.num_samples)
            return self.spent(
                self.sample(self.build(method, size, width, alpha), num, progress=False)
            )

        def run(size: int, width: int) -> tuple[float, Result]:
            shown = f" of {width} candidates" if len(method.widths) > 1 else ""
            self.say(f"{label}: {method.size}={size}{shown}")
            result = self.sample(self.build(method, size, width, alpha))
            return self.spent(result), result

        self.say(f"{label}: looking for its {method.size}")
        found, result = SizeSearch(due, pilot, run, method.widths).find()
        if len(method.widths) == 1:
            del found["width"]
        return result, self.fit(result, {"argument": method.size, **found})

    def fit(self, result: Result, found: dict[str, Any]) -> dict[str, Any]:
        """A record of what a design cost, against the budget."""
        due = self.settings.budget
        assert due is not None
        off = self.spent(result) / due - 1
        rows = self.settings.rows_per_design is not None
        return {
            "unit": "denoiser rows" if rows else "seconds",
            "due": due,
            "spent": self.spent(result),
            "off": off,
            "met": abs(off) <= TOLERANCE,
            **found,
        }

    def spent(self, result: Result) -> float:
        """What a design cost, in the unit of the budget."""
        rows = self.settings.rows_per_design is not None
        cost = result.cost
        return (cost.denoiser_rows if rows else cost.seconds["total"]) / len(result)

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


def _particles(task: Task, result: Result) -> Particles | None:
    """Both rewards of all particles of a method that weighs them."""
    if result.log_z is None or result.particles is None or result.log_weights is None:
        return None
    num, size = result.log_weights.shape
    parts = result.particles.flatten(0, 1).split(REWARD_ROWS)
    guide, judge = (
        np.concatenate([_numbers(oracle(part)) for part in parts]).reshape(num, size)
        for oracle in (task.reward, task.oracle)
    )
    return Particles(guide, judge, _numbers(result.log_weights), _numbers(result.log_z))


def _numbers(values: Any) -> Array:
    return torch.as_tensor(values).detach().double().cpu().numpy()
