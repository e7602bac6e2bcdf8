"""Callbacks of `train` that send the rows of the history elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastguide.errors import DtypeError, MissingExtraError
from fastguide.finetune import parallel

Log = Callable[[dict[str, float]], None]


def tensorboard(folder: str | Path) -> Log:
    """A callback that writes every number of a row as a scalar, at its iteration.

    A resumed run goes on in the same folder: steps that are run again replace those there.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "this callback needs TensorBoard: pip install 'fastguide[tensorboard]', or tensorboard"
        ) from error
    writers: list[Any] = []

    def log(row: dict[str, float]) -> None:
        if parallel.world()[0] > 0:
            return
        step = int(row["iteration"])
        if not writers:
            writers.append(SummaryWriter(str(folder), purge_step=step))
        for name, value in row.items():
            writers[0].add_scalar(name, value, step)
        writers[0].flush()

    return log


def wandb(run: Any) -> Log:
    """A callback that logs every row to Weights & Biases, at its iteration.

    Args:
        run: what `wandb.init` returned; any object with `log(row, step=)`. In several processes
            only that of rank 0 logs; the others may give None.

    Raises:
        DtypeError: run cannot log.
    """
    rank = parallel.world()[0]
    if rank == 0 and not callable(getattr(run, "log", None)):
        raise DtypeError(
            f"run must be what wandb.init returned, with a method log, got {type(run).__name__}"
        )

    def log(row: dict[str, float]) -> None:
        if rank == 0:
            run.log(row, step=int(row["iteration"]))

    return log
