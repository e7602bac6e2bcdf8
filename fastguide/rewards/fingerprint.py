"""What the machine code of a compiled function depends on, as a short hash."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterator
from typing import Any

import numpy as np


def fingerprint(compiled: Any) -> str | None:
    """16 hexadecimal digits of what numba.njit made, or None if it reads what cannot be told.

    Covers byte code and constants, the values of closures and globals, which numba freezes, and
    the same of every compiled function that is called, whichever file it is in.
    """
    try:
        parts = list(_value(compiled, (), set()))
    except _Unknown:
        return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class _Unknown(Exception):
    """A value whose content cannot be told."""


def _function(function: types.FunctionType, seen: set[int]) -> Iterator[str]:
    if id(function) in seen:
        return
    seen.add(id(function))
    code = function.__code__
    yield from _code(code)
    for cell in function.__closure__ or ():
        yield from _value(cell.cell_contents, (), seen)
    for default in function.__defaults__ or ():
        yield from _value(default, (), seen)
    names = _names(code)
    for name in names:
        if name in function.__globals__:
            yield from _value(function.__globals__[name], names, seen)


def _code(code: types.CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        else:
            yield repr(constant)


def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return code.co_names + tuple(name for one in inner for name in _names(one))


def _value(value: object, names: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """`names`: what the function looks up, of which some are a module's members."""
    if isinstance(getattr(value, "py_func", None), types.FunctionType):
        yield repr(sorted(value.targetoptions.items()))  # type: ignore[attr-defined]
        yield from _function(value.py_func, seen)  # type: ignore[attr-defined]
    elif isinstance(value, types.ModuleType):
        yield value.__name__
        for name in names:
            if hasattr(value, name):
                yield from _value(getattr(value, name), (), seen)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield repr(value)
    elif isinstance(value, tuple | list):
        yield f"{type(value).__name__} {len(value)}"
        for item in value:
            yield from _value(item, names, seen)
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        yield f"{value.dtype.str} {value.shape} {value.tobytes().hex()}"
    elif callable(value):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}"
    else:
        raise _Unknown
