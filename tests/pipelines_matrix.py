"""The table of tested pipelines in docs/pipelines.md; run this file to write it anew."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from pipelines_tiny import CASES
from pipelines_tiny_parts import Case

from fastguide.errors import FastguideError
from fastguide.integrations.diffusers import guide, replay

PAGE = Path(__file__).parents[1] / "docs" / "pipelines.md"
MARKS = ("<!-- matrix -->", "<!-- end of matrix -->")


def brightness(images: torch.Tensor) -> torch.Tensor:
    """A reward that can be differentiated."""
    return images.flatten(1).mean(dim=1)


def _runs(case: Case, **settings: Any) -> str:
    pipe = case.build()
    reward = None if settings["method"] == "unguided" else brightness
    try:
        with guide(pipe, reward, **settings) as run:
            pipe(**case.call)
        assert run.result is not None
        if not settings.get("record"):
            return "yes"
        path = run.result.trajectory
        with torch.no_grad(), replay(pipe, path) as again:
            pipe(**case.call)
        ratio = (again.log_probs - path.log_probs).exp()
        return "yes" if float((ratio - 1).abs().max()) <= 1e-6 else "NO"
    except FastguideError:
        return "refused"


def row(case: Case) -> list[str]:
    """What the table says of one pair."""
    pipe = case.build()
    noise = {} if case.stochastic else {"eta": 1.0}
    guided = {
        _runs(case, method=method, num_candidates=3, alpha=0.1, **noise)
        for method in ("svdd", "smc")
    }
    return [
        f"`{type(pipe).__name__}`",
        f"`{type(pipe.scheduler).__name__}`",
        "its own" if case.stochastic else "`eta`",
        guided.pop() if len(guided) == 1 else "NO",
        _runs(case, method="dps", alpha=0.1, **noise),
        _runs(case, method="unguided", record=True, **noise),
    ]


def line(entries: list[str]) -> str:
    """One line of the table."""
    return f"| {' | '.join(entries)} |"


def table() -> str:
    """The table as it stands in the page."""
    lines = [line(row(case)) for case in CASES.values()]
    heads = ["pipeline", "scheduler", "noise", "guided", "gradient", "replay"]
    return "\n".join([line(heads), line(["---"] * 6), *dict.fromkeys(lines)])


def written() -> str:
    """The table that the page has."""
    found = re.search(f"{MARKS[0]}\n(.*?)\n?{MARKS[1]}", PAGE.read_text(encoding="utf-8"), re.S)
    assert found, "docs/pipelines.md has lost the marks of its table"
    return found[1]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{after}", encoding="utf-8")
