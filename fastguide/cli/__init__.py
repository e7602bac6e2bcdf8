"""The command line: `fastguide demo | sample | compare | finetune | zoo | doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastguide.cli.commands import parse
from fastguide.errors import FastguideError

__all__ = ["main"]

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    0: done. 1: `doctor` found a fault. 2: an argument, file or model that cannot work, explained in
    one line. 130: stopped by Ctrl-C; a line says what was kept.

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    command = parse(arguments)
    try:
        return DONE if command.run() else FAILED
    except KeyboardInterrupt:
        print(f"\nfastguide: stopped; {command.kept()}", file=sys.stderr)
        return INTERRUPTED
    except FastguideError as error:
        if command.debug:
            raise
        print(f"fastguide: error: {error}", file=sys.stderr)
        return MISUSED
