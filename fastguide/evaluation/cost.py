"""What a run cost: model rows asked for and executed, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

BUCKETS = ("denoiser", "reward", "kernels", "other", "total")


@dataclass
class Cost:
    """Rows and seconds of a run.

    Attributes:
        denoiser_rows: rows the denoiser executed (a guided pair counts two), without padding.
        denoiser_rows_requested: rows the same run executes with savings="none".
        reward_rows, reward_rows_requested: likewise for rewards and value functions.
        head_rows: sites at which a lazy head ran.   head_rows_requested: sites of the denoiser rows
            requested, which a denoiser with its head inside would have run.
        padding_rows: rows added to reach `fixed_rows`.
        candidate_rows: candidates proposed.
        seconds: wall-clock seconds under "denoiser", "reward", "kernels", "other", "total".
    """

    denoiser_rows: int = 0
    denoiser_rows_requested: int = 0
    reward_rows: int = 0
    reward_rows_requested: int = 0
    head_rows: int = 0
    head_rows_requested: int = 0
    padding_rows: int = 0
    candidate_rows: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(BUCKETS, 0.0))

    @contextmanager
    def timed(self, bucket: str) -> Iterator[None]:
        """Add the time of the block to `bucket`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[bucket] += time.perf_counter() - start

    def finish(self, total: float) -> None:
        """Set "total" and give "other" what no bucket claimed."""
        named = sum(self.seconds[name] for name in ("denoiser", "reward", "kernels"))
        self.seconds["total"] = total
        self.seconds["other"] = max(total - named, 0.0)

    @property
    def overhead_per_candidate(self) -> float:
        """Seconds outside denoiser and reward per proposed candidate row."""
        outside = self.seconds["kernels"] + self.seconds["other"]
        return outside / max(self.candidate_rows, 1)

    def __str__(self) -> str:
        share = 1 - (self.seconds["denoiser"] + self.seconds["reward"]) / max(
            self.seconds["total"], 1e-12
        )
        head = ""
        if self.head_rows_requested:
            head = f"head {self.head_rows:,} of {self.head_rows_requested:,} sites, "
        return (
            f"denoiser {self.denoiser_rows:,} of {self.denoiser_rows_requested:,} rows, {head}"
            f"reward {self.reward_rows:,} of {self.reward_rows_requested:,} rows, "
            f"{self.seconds['total']:.2f} s, {share:.1%} outside the models"
        )
