"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

TaskName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
OptionalFolder = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Integer = Annotated[int, tyro.conf.arg(metavar="N")]
OptionalInteger = Annotated[int | None, tyro.conf.arg(metavar="N")]
Number = Annotated[float, tyro.conf.arg(metavar="X")]
OptionalNumber = Annotated[float | None, tyro.conf.arg(metavar="X")]
Numbers = Annotated[tuple[float, ...], tyro.conf.arg(metavar="X [X ...]")]
