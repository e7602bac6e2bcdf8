"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from fastguide.errors import ArgumentError

TaskName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
OptionalFolder = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Integer = Annotated[int, tyro.conf.arg(metavar="N")]
OptionalInteger = Annotated[int | None, tyro.conf.arg(metavar="N")]
Number = Annotated[float, tyro.conf.arg(metavar="X")]
OptionalNumber = Annotated[float | None, tyro.conf.arg(metavar="X")]
OptionalName = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
Numbers = Annotated[tuple[float, ...], tyro.conf.arg(metavar="X [X ...]")]


def refuse(task: str, makes: str, **options: object) -> None:
    """Raise ArgumentError if an option was given that means nothing to a task that `makes` this.

    An option was given if it is neither None nor False.
    """
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise ArgumentError(
            f"{given[0]} means nothing to {task!r}, which makes {makes}; leave it away"
        )
