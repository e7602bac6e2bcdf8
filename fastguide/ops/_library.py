"""Registration of the ops with torch.library, and the run of a chosen backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from fastguide.ops._check import raise_fault
from fastguide.reference.faults import Fault

# A module global: the operators live as long as this object does.
LIBRARY = torch.library.Library("fastguide", "DEF")

T = TypeVar("T")


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define `fastguide::<schema>`; `run` serves every device and chooses the backend itself."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastguide::{name}", fake, lib=LIBRARY)


def run_reference(op: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a reference function, turning its `Fault` into the error of the op."""
    try:
        return function(*args, **kwargs)
    except Fault as fault:
        raise_fault(op, (fault.code, fault.row, fault.column, fault.value), step=kwargs.get("step"))
        raise
