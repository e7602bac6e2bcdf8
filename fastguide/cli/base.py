"""What every command has."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(kw_only=True)
class Command:
    """A command: its options are its fields, `run` does the work."""

    debug: bool = False
    """Show the full traceback of an error."""

    def run(self) -> bool:
        """Do it; False if it found a fault."""
        raise NotImplementedError

    def kept(self) -> str:
        """What is left on disk if the command is interrupted now."""
        return "nothing was written"


def say(text: str) -> None:
    """A line of progress, on the standard error stream: standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def show_bars() -> bool:
    """Whether progress bars make sense: somebody is watching."""
    return sys.stderr.isatty()
