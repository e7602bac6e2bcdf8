"""numba's reports of what it cannot compile, as one line of the user's source and one sentence."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable
from typing import Any

from fastguide.errors import ArgumentError

# "During: typing of call at path (23)", "Raised from path (23)"; the first is the innermost
PLACE = re.compile(r"(?:typing of [\w ]+ at|Raised from) (.+?) \((\d+)\)")
RAISED = re.compile(r"\.*\s*Raised from .*")
MISSING = re.compile(r"No implementation of function .* found for signature")
CALL = re.compile(r">>> (.+)")
NOISE = re.compile(r"\x1b\[[0-9;]*m")
HELPER = re.compile(r"Untyped global name '(\w+)'.*<class 'function'>")
FIX = (
    "numba compiles numbers, loops, arrays and most of NumPy; the sample is read-only, so change a "
    ".copy()"
)


def compile_error(function: Callable[..., Any], error: Exception, fix: str = FIX) -> ArgumentError:
    """The error to raise for what numba raised: line, reason and fix."""
    text = NOISE.sub("", str(error))
    path, line = _place(function, error, text)
    source = linecache.getline(path, line).strip()
    helper = HELPER.search(text)
    fix = f"decorate {helper[1]} with @numba.njit" if helper else fix
    return ArgumentError(
        f"jit({function.__name__}): numba cannot compile it\n"
        f"  {path}:{line}{f': {source}' if source else ''}\n"
        f"  {_reason(text)}.\n"
        f"Fix: {fix}; or pass fallback=True to run plain Python, 100 times slower or more"
    )


def _place(function: Callable[..., Any], error: Exception, text: str) -> tuple[str, int]:
    """File and line that numba names, or those of the function."""
    found = PLACE.search(text)
    if found:
        return found[1], int(found[2])
    named = getattr(error, "loc", None)
    if named is not None and named.line:
        return named.filename, named.line
    return function.__code__.co_filename, function.__code__.co_firstlineno


def _reason(text: str) -> str:
    """The first sentence that says something."""
    lines = [line.strip() for line in text.splitlines()]
    told = (line for line in lines if line and not line.startswith("Failed in nopython"))
    first = next(told, "It gives no reason")
    if MISSING.match(first):
        call = CALL.search(text)
        first = f"There is no compiled form of {call[1]}" if call else first
    return RAISED.sub("", first).rstrip(". ")
