"""What can be wrong with the contents of an input, and where: the same record for every backend."""

from __future__ import annotations

from enum import IntEnum

import torch


class FaultCode(IntEnum):
    """Why a kernel refused its input; csrc/include/fastguide/fault.cuh holds the same numbers."""

    INDEX = 1
    TOKEN = 2
    CHAIN = 3
    CANDIDATE = 4
    LOGIT = 5
    NO_TOKEN = 6
    VALUE = 7
    GATHER = 8
    NO_WEIGHT = 9
    SCALAR = 10


class Fault(ValueError):
    """The first bad entry of an input.

    Attributes:
        code: what is wrong.   row, column: where (column is -1 for a per-row input).
        value: the offending integer, or 0 where the entry is a float.
    """

    def __init__(self, code: FaultCode, row: int, column: int, value: int) -> None:
        super().__init__(f"{code.name} at row {row}, column {column}: {value}")
        self.code = code
        self.row = row
        self.column = column
        self.value = value


def require(ok: torch.Tensor, code: FaultCode, values: torch.Tensor | None = None) -> None:
    """Raise `Fault` for the first False of `ok` ([N] or [N, L] bool), quoting `values` there."""
    if bool(ok.all()):
        return
    position = [int(i) for i in (~ok).nonzero()[0]]
    value = 0 if values is None else int(values[tuple(position)])
    raise Fault(code, position[0], position[1] if len(position) > 1 else -1, value)
