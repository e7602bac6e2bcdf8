"""Error types. Every message names the argument, the value that came, and the fix.

Each class is a `FastguideError` and also the built-in error a caller would expect, so that
`except ValueError` keeps working in code that has never heard of this package.
"""

from __future__ import annotations


class FastguideError(Exception):
    """Base class of every error raised on purpose by fastguide."""


class ArgumentError(FastguideError, ValueError):
    """An argument has a value that cannot work."""


class ShapeError(FastguideError, ValueError):
    """A tensor has another shape than the one due."""


class DtypeError(FastguideError, TypeError):
    """A tensor or object has another type than the one due."""


class NonFiniteError(FastguideError, ValueError):
    """A denoiser, value or reward returned NaN or infinity; says at which step and chain."""


class RewardError(FastguideError, RuntimeError):
    """A per-sample reward raised, or its worker process died; names the sample."""


class BackendError(FastguideError, RuntimeError):
    """A forced backend cannot serve, or the native extension is missing."""


class MissingExtraError(FastguideError, ImportError):
    """An optional dependency is not installed; names the extra that brings it."""


class CheckpointError(FastguideError, RuntimeError):
    """A file is corrupt, was changed, or belongs to another run."""


class OutOfMemoryError(FastguideError, RuntimeError):
    """A model call did not fit; says which `max_rows` does."""


class GradientError(FastguideError, RuntimeError):
    """An op without a gradient was given a tensor that requires one."""
