"""Finding the size at which a method spends a given budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")

TOLERANCE = 0.05
"""How far from the budget a run may be and still count as meeting it."""

LARGEST = 4096
"""Sizes are not tried beyond."""

_PILOTS = 8
_RUNS = 3


class SizeSearch(Generic[Made]):
    """The size, and the width, whose run spends closest to `due`.

    What is spent grows with the size, about in a line. Pilots find the two sizes on either side of
    the budget; the whole run of the nearer one decides, and is repeated with a corrected size while
    that promises to come closer, at most three times.

    Args:
        due: the budget, positive.
        pilot: what a small run of (size, width) spends, in the unit of `due`.
        run: the whole run of (size, width): what it spent, and what it made.
        widths: tried in this order, until one has a size within TOLERANCE.
    """

    def __init__(
        self,
        due: float,
        pilot: Callable[[int, int], float],
        run: Callable[[int, int], tuple[float, Made]],
        widths: Sequence[int] = (1,),
    ) -> None:
        self._due = due
        self._pilot = pilot
        self._run = run
        self._widths = widths

    def find(self) -> tuple[dict[str, Any], Made]:
        """What was chosen and how, and what that run made."""
        pilots: dict[int, dict[int, float]] = {}
        for width in self._widths:
            pilots[width] = self._bracket(width)
            if self._off(self._nearest(pilots[width])) <= TOLERANCE:
                break
        width = min(pilots, key=lambda each: self._off(self._nearest(pilots[each])))
        spent, made = self._confirm(pilots[width], width)
        size = min(spent, key=lambda each: self._off(spent[each]))
        return (
            {
                "size": size,
                "width": width,
                "spent": spent[size],
                "pilots": {f"{w}": {f"{s}": v for s, v in p.items()} for w, p in pilots.items()},
                "runs": {f"{s}": v for s, v in spent.items()},
            },
            made[size],
        )

    def _bracket(self, width: int) -> dict[int, float]:
        """Pilots by size; the nearest to the budget has a neighbour on its other side."""
        known = {size: self._pilot(size, width) for size in (1, 4)}
        for _ in range(_PILOTS - len(known)):
            best = min(known, key=lambda size: self._off(known[size]))
            beside = best + (1 if known[best] < self._due else -1)
            if beside in known or not 1 <= beside <= LARGEST:
                break
            guess = self._solve(known)
            guess = beside if guess in known else guess
            known[guess] = self._pilot(guess, width)
        return known

    def _solve(self, known: dict[int, float]) -> int:
        """Where the line between the sizes on either side of the budget meets it.

        Small runs are noisy, so that a larger size may spend less: the sides are the largest size
        below the budget and the next one above it.
        """
        below = [size for size in known if known[size] < self._due]
        low = max(below, default=0)
        above = [size for size in known if size > low]
        base = known.get(low, 0.0)
        if above:
            high = min(above)
            guess = low + (self._due - base) * (high - low) / (known[high] - base)
            return min(max(round(guess), low + 1), max(high - 1, low + 1))
        # beyond what was measured: the line from the smallest, approached and not jumped to
        first = min(known)
        slope = (base - known[first]) / max(low - first, 1)
        guess = low + (self._due - base) / slope if slope > 0 else 2.0 * low
        return min(max(round(guess), low + 1), 8 * low, LARGEST)

    def _confirm(
        self, pilots: dict[int, float], width: int
    ) -> tuple[dict[int, float], dict[int, Made]]:
        """Whole runs by size, from the best of the pilots on."""
        spent: dict[int, float] = {}
        made: dict[int, Made] = {}
        size = min(pilots, key=lambda each: self._off(pilots[each]))
        scale = 1.0
        while True:
            spent[size], made[size] = self._run(size, width)
            if self._off(spent[size]) <= TOLERANCE or len(spent) == _RUNS:
                return spent, made
            # pilots spend in proportion to whole runs, to within their noise
            scale = spent[size] / pilots[size] if size in pilots else scale
            expected = {each: scale * amount for each, amount in pilots.items()} | spent
            other = self._solve(expected)
            best = min(self._off(amount) for amount in spent.values())
            helps = other not in expected or self._off(expected[other]) < best + TOLERANCE
            if other in spent or not helps or not 1 <= other <= LARGEST:
                return spent, made
            size = other

    def _nearest(self, known: dict[int, float]) -> float:
        return min(known.values(), key=self._off)

    def _off(self, spent: float) -> float:
        return abs(spent / self._due - 1)
